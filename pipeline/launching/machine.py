"""Which machine and which versions a measurement ran on."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import re

PACKAGES = (
    *("apache-beam", "numpy", "numba", "pyarrow", "keras", "tensorflow", "tensorflow-compression", "jax", "torch"),
    "faiss-cpu",
)


def describe() -> str:
    """Return the machine, its load, and the versions of what is installed, in three lines."""
    cores = os.cpu_count()  # a benchmark may have bound itself to one
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"{package} {version}" for package in PACKAGES if (version := _version(package))]
    return "\n".join(
        [
            f"{_cpu()}, {cores} cores, {memory:.0f} GiB memory, {platform.system()} {platform.machine()}",
            f"load average {os.getloadavg()[0]:.2f} at the start; other processes on the machine disturb the times",
            f"Python {platform.python_version()}, {', '.join(versions)}",
        ]
    )


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or "unknown processor"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
