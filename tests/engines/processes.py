"""Starting processes, waiting for them, and killing them with their children."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from typing import Any

# In the environment of what `Process` starts, and so of all that it starts in turn.
_MARK = "VIDPRESS_TEST_PROCESS"


def free_port() -> int:
    """Return a TCP port that nobody listens on, at any address."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def wait_for(what: str, check: Callable[[], Any], timeout: float = 300) -> Any:
    """Return the first true value of a check; raise after so many seconds."""
    end = time.monotonic() + timeout
    while not (value := check()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {timeout:.0f} s")
        time.sleep(0.1)
    return value


def readers_of(path: pathlib.Path) -> list[int]:
    """Return the ids of the other processes that have a file open."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(process.name) != os.getpid() and any(
                os.readlink(fd) == str(path) for fd in (process / "fd").iterdir()
            ):
                found.append(int(process.name))
    return found


class Process:
    """A running process whose output goes to a file."""

    def __init__(self, command: list[str], log: pathlib.Path, **environment: str):
        self.log = log
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, name: value},
            )
        self.pid = self._process.pid

    def wait(self, timeout: float = 420) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait(timeout)

    def is_running(self) -> bool:
        """Return whether it has not ended yet."""
        return self._process.poll() is None

    def family(self) -> list[int]:
        """Return the ids of the process and of all that it started and that still run."""
        found = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def kill(self) -> None:
        """Kill it, and all that it started, at once, as when a machine fails."""
        while family := self.family():
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.05)
        self._process.wait()

    def output(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace")
