"""Runs in processes of their own, and what they took."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run took.

    Attributes:
      seconds: Of the work, the loading of the model included, after imports.
      process_seconds: As above, with the start of the interpreter, imports and its end.
      cpu_seconds: User and system time of the work, worker processes included.
      peak_bytes: The process's largest resident set.
    """

    seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_bytes: int


def in_fresh_process(function: Callable[..., T], *args: object) -> T:
    """Run a function in an interpreter of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(function, *args).result()


def timed_in_fresh_process(function: Callable[..., Run], *args: object) -> Run:
    """Run a function that measures itself in a fresh process, and add what the process as a whole took."""
    start = time.perf_counter()
    run = in_fresh_process(function, *args)
    return dataclasses.replace(run, process_seconds=time.perf_counter() - start)


def measure(work: Callable[[], object]) -> Run:
    """Do some work and say what it took."""
    cpu_start, start = cpu_seconds(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return Run(seconds, seconds, cpu_seconds() - cpu_start, peak_bytes())


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """Return the largest resident set of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):  # ru_maxrss starts from what the parent process held
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM.")
