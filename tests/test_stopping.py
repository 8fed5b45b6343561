"""A stopped command, where the signal comes at a moment at which Python can raise nothing."""

import ctypes
import signal
import time
from collections.abc import Callable

import pytest

from vidpress.pipeline.launching.stopping import Stopped, stoppable

LIMIT = 30  # as in test_signals: generous


def work_while(something_happens: Callable[[], object]) -> None:
    with stoppable(lambda stopped: None):
        something_happens()
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            time.sleep(0.01)


def in_a_callback_from_c(signum: int) -> None:
    # As LLVM calls back for each function that is compiled.
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signum))()


class Finalized:
    def __init__(self, signum: int) -> None:
        self.signum = signum

    def __del__(self) -> None:
        signal.raise_signal(self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("interrupted", [in_a_callback_from_c, Finalized])
def test_a_signal_that_comes_where_nothing_can_be_raised_is_raised_soon_after(signum, interrupted, capfd):
    with pytest.raises(Stopped, match=str(int(signum))):
        work_while(lambda: interrupted(signum))
    assert capfd.readouterr().err == ""


def test_other_exceptions_that_cannot_be_raised_are_still_shown(capfd, monkeypatch):
    shown = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: shown.append(unraisable.exc_value))
    error = ValueError("in a callback")

    def fail() -> None:
        raise error

    with stoppable(lambda stopped: None):
        ctypes.CFUNCTYPE(None)(fail)()
    assert shown == [error]
