"""What a command says when it fails or is stopped: one line with the fix, or a traceback if that is needed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from vidpress.pipeline.launching.stopping import Stopped, stoppable

# Set by a command for the processes that it starts.
COMMAND_VARIABLE = "VIDPRESS_COMMAND"

# What libraries log when they are imported, and users cannot act on: Beam about a checksum library that it does not
# need here and about a module that it imports together with PyTorch, Google's clients about Python 3.11.
_NOISE = ("crcmod package not found", "Resource module is not available", "apitools not found")

_NO_MEMORY = "not enough memory: free some, use a larger machine, or use fewer workers at a time."

# Errors of Google's clients, and of Beam's use of them. They are about the network, names and permissions; they are not
# bugs of this program.
_REMOTE_MODULES = ("google.api_core.exceptions", "google.auth.exceptions", "apitools.base.py.exceptions")

# The last line of a traceback in a text, which is what is left of an exception that crossed processes.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t]+.*\n|\n)+(?P<last>\S.*)")
_EXCEPTION = re.compile(r"(?P<module>(?:[A-Za-z_]\w*\.)*)(?P<name>[A-Za-z_]\w*)(?:: (?P<text>.*))?")
_SEE_BEFORE = "Check prior failing response"
_WHERE = re.compile(r" \[while running .*", re.DOTALL)


def quiet_libraries() -> None:
    """Suppress, in this process and those that it starts, what libraries log and no user can act on."""
    os.environ[COMMAND_VARIABLE] = "1"
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    logging.getLogger().addFilter(_is_no_noise)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NOISE)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: '1 shard', '2,000 shards'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """Return a line for a terminal: what strangers wrote into a file must not move its cursor or set its title."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def explanation(error: BaseException) -> str | None:
    """Return one line that fully explains an error, or None if its traceback is needed.

    The errors of vidpress and of the system are explained, also if they arise in a worker and the launcher gets only
    their text.
    """
    # Imported here, so that Ctrl-C is handled before the libraries behind it are loaded.
    from vidpress.model.errors import VidpressError

    if isinstance(error, VidpressError):
        return _one_line(str(error))
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if details := getattr(error, "exception_details", None):  # Beam's errors of several files
        path, cause = next(iter(details.items()))
        return f"{path}: {explanation(cause) or _one_line(str(cause))}"
    if isinstance(error, OSError):
        return _explained_os_error(error)
    if any(base.__module__.startswith(_REMOTE_MODULES) for base in type(error).__mro__):
        return _one_line(str(error)) or type(error).__name__
    return _explained_text(f"{type(error).__name__}: {error}")


def _explained_os_error(error: OSError) -> str:
    from vidpress.model.errors import fix_of

    # An OSError that vidpress itself raises is a whole sentence, without a number.
    fix = fix_of(error)
    if fix is None:
        return _one_line(str(error)) or type(error).__name__
    name = error.filename if error.filename is not None else _path_in(str(error))
    place = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) and name else ""
    return f"{place}{fix}."


def _path_in(text: str) -> str | None:
    found = re.search(r"'([^']*/[^']*)'", text)
    return found.group(1) if found else None


def _explained_text(text: str) -> str | None:
    """Explain an error that is given as text, with or without a traceback, by the name of its class."""
    from vidpress.model.errors import VidpressError

    lasts = [text, *(found.group("last") for found in _TRACEBACK.finditer(text))]
    # If Beam is asked to split work that has failed, its error only refers to the one before.
    last = next(line for line in reversed(lasts) if line is text or _SEE_BEFORE not in line)
    found = _EXCEPTION.match(last)
    if found is None:
        return None
    name, message = found.group("name"), found.group("text") or ""
    if name in _names(VidpressError) or name == "BeamIOError" or found.group("module").startswith(_REMOTE_MODULES):
        return _one_line(message) or name
    message = _WHERE.sub("", message)
    if name == "MemoryError":
        return _NO_MEMORY
    if name in _names(OSError):
        return _explained_os_error(OSError(message))
    # Beam wraps an error that it cannot raise again with the step's name.
    return _explained_text(message) if name == "RuntimeError" and message else None


def _names(base: type) -> set[str]:
    """Return the names of a class and of all that is derived from it."""
    subclasses: list[type] = base.__subclasses__()
    return {base.__name__}.union(*map(_names, subclasses))


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in _WHERE.sub("", text).splitlines() if line.strip())


@contextlib.contextmanager
def explained_errors(prog: str) -> Iterator[None]:
    """End the program with one line and exit code 1 if an error's message explains it; 130 or 143 if stopped.

    Args:
      prog: What the line begins with.
    """
    said: list[str] = []

    def say(text: str) -> None:
        if not said:
            said.append(text)
            with contextlib.suppress(OSError):
                print(printable(f"{prog}: {text}"), file=sys.stderr, flush=True)

    def say_stopped(stopped: Stopped) -> None:
        say(stopped.message)

    try:
        with stoppable(say_stopped) as signum:
            try:
                try:
                    yield
                except SystemExit:
                    sys.stdout.flush()  # of --help
                    raise
                sys.stdout.flush()
            except Exception as error:
                if signum():
                    raise Stopped(signum()) from error
                raise
    except Stopped as stopped:
        say_stopped(stopped)
        raise SystemExit(stopped.exit_code) from stopped
    except BrokenPipeError as error:
        # The reader of the output, such as `head`, has seen enough.
        _drop_unwritten()
        raise SystemExit(1) from error
    except Exception as error:
        text = explanation(error)
        if text is None:
            raise
        say(f"error: {text}")
        _drop_unwritten()
        raise SystemExit(1) from error


def _drop_unwritten() -> None:
    """Throw away output that cannot be written: Python would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
