"""The libraries that only some commands need, and that are not there for everybody."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence

from vidpress.pipeline.launching.launch import JobError, explained_errors

# What the extra vidpress[train] brings.
TRAINING = ("tensorflow", "tensorflow_compression")

# What the system's loader says where a library does not fit into the memory.
_NO_MEMORY = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory")


def quiet_tensorflow() -> None:
    """Let TensorFlow say only what is an error. It is slow to load, too: --help and a mistyped option do without it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def load_tensorflow(prog: str, doing: str) -> None:
    """Load TensorFlow, quietly; end the program with a line that says so where that fails.

    Args:
      prog: What the line begins with.
      doing: What needs it.
    """
    quiet_tensorflow()
    with explained_errors(prog):
        check_modules(doing, TRAINING, "train")
        try:
            for module in TRAINING:
                importlib.import_module(module)
        except (ImportError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
            fix = "install vidpress[train] anew, with Python 3.11"
            if isinstance(error, ImportError) and error.name and error.name.startswith(("tensorflow", "keras")):
                raise JobError(f"{doing} needs {error.name}: {fix}.") from error
            if any(sign in reason for sign in _NO_MEMORY):
                fix = "there is too little memory for it; free some, or raise the limit (`ulimit -v`)"
            raise JobError(f"TensorFlow could not be loaded ({reason}): {fix}.") from error


def check_modules(doing: str, modules: Sequence[str], extras: str) -> None:
    """See that modules are installed, before any work.

    Args:
      doing: What needs them.
      modules: Their names.
      extras: Those of vidpress that they come with.

    Raises:
      JobError: If some are missing; the message names them all.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise JobError(f"{doing} needs {needed}: install vidpress[{extras}], with Python 3.11.")
