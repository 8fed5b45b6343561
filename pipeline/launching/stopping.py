"""How a command is stopped by Ctrl-C and SIGTERM: within seconds, whatever it is doing."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds that a stopped command has to clean up; that it has instead if it first finishes what it is doing
# (`finishing`); and that, after either, the process has to end.
_CLEAN_UP = 8.0
_FINISH = 60.0
_EXIT = 3.0

# Seconds until `Stopped` is raised again where Python had to ignore it: in a callback from C, or in a finalizer.
_AGAIN = 0.05

_active: _Stopping | None = None


class Stopped(BaseException):
    """The command was told to stop. Like KeyboardInterrupt, it is not an Exception, which libraries might catch."""

    def __init__(self, signum: int, message: str | None = None) -> None:
        """Take the signal, and the line with which the command ends."""
        super().__init__(signum)
        self.signum = signum
        self.message = message or f"stopped by {self.reason}: the same command can be run again."

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that was ended by a signal: 130 or 143."""
        return 128 + self.signum

    @property
    def reason(self) -> str:
        """Who stopped it."""
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name


class _Stopping:
    """The handlers of the signals, and a thread that ends the process if cleaning up takes too long.

    The thread learns of a signal even while the main thread is in a library for minutes and runs no handler.
    """

    def __init__(self, say: Callable[[Stopped], None]) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.finishing = False
        self.signum: int | None = None
        self._say = say
        self._over = threading.Event()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        # A signal that nohup or a script's & ignores stays ignored.
        signums = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
        self._before = {signum: signal.signal(signum, self._handle) for signum in signums}
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._ignored = False
        self._unraisable_before, sys.unraisablehook = sys.unraisablehook, self._handle_unraisable
        threading.Thread(target=self._watch, name="stopping", daemon=True).start()

    def close(self) -> None:
        """Put back what was there before."""
        self._over.set()
        signal.set_wakeup_fd(self._wakeup_before)
        sys.unraisablehook = self._unraisable_before
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self._write_end)

    def _handle_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable_before(unraisable)
            return
        self._ignored = True
        threading.Timer(_AGAIN, self._raise_again, [signal.Signals(unraisable.exc_value.signum)]).start()

    def _raise_again(self, signum: signal.Signals) -> None:
        if not self._over.is_set():
            _thread.interrupt_main(signum)

    def _handle(self, signum: int, _frame: object) -> None:
        if self._ignored:
            self._ignored = False
            raise Stopped(signum)
        again = self.signum is not None
        if not again:
            self.signum = signum
            for callback in self.callbacks:
                callback()
        if self.finishing:
            if not again:
                return
        elif again:
            self._end(self.signum or signum)
        raise Stopped(signum)

    def _watch(self) -> None:
        while received := os.read(self._read_end, 1):
            signum = received[0]
            if signum in self._before:
                if not self._over.wait(_FINISH if self.finishing else _CLEAN_UP):
                    self._end(signum)
                # Threads of libraries can keep a program from ending after its last line.
                threading.main_thread().join()
                time.sleep(_EXIT)
                os._exit(Stopped(signum).exit_code)
        os.close(self._read_end)

    def _end(self, signum: int) -> None:
        stopped = Stopped(signum)
        self._say(stopped)
        os._exit(stopped.exit_code)


@contextlib.contextmanager
def stoppable(say: Callable[[Stopped], None]) -> Iterator[Callable[[], int]]:
    """Raise `Stopped` in the block at the first Ctrl-C or SIGTERM; a second one ends the process at once.

    In a thread, in an interactive interpreter, and within another such block, nothing changes.

    Args:
      say: Prints the command's last line, if the process has to be ended before the block ends.

    Yields:
      A function that returns which signal came, or 0. It is needed because Beam replaces an exception that is raised in
      a step by another one.
    """
    global _active
    main_thread = threading.current_thread() is threading.main_thread()
    if _active is not None or not main_thread or hasattr(sys, "ps1"):
        yield _received(_active)
        return
    _active = _Stopping(say)
    try:
        yield _received(_active)
    finally:
        _active.close()
        _active = None


def _received(stopping: _Stopping | None) -> Callable[[], int]:
    return lambda: 0 if stopping is None else stopping.signum or 0


@contextlib.contextmanager
def finishing() -> Iterator[Callable[[], int]]:
    """Let the block end by itself. It is given a function that returns the signal that told it to end, or 0.

    A second signal raises `Stopped` in the block.

    After the block, `Stopped` is raised if a signal came and the block has not raised anything itself.
    """
    active = _active
    if active is None:
        yield _received(None)
        return
    active.finishing = True
    try:
        yield _received(active)
    finally:
        active.finishing = False
    if active.signum is not None:
        raise Stopped(active.signum)


@contextlib.contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call a function at the first signal in the block, before `Stopped` is raised."""
    active = _active
    if active is None:
        yield
        return
    active.callbacks.append(callback)
    try:
        yield
    finally:
        active.callbacks.remove(callback)
