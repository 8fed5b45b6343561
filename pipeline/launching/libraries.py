"""The libraries that only some commands need, and that may not be installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence

from vidpress.model.extras import missing
from vidpress.pipeline.launching.launch import JobError, explained_errors

# What the extra vidpress[train] installs besides the backend of Keras.
TRAINING = ("keras", "tensorboard", "PIL")

_DEFAULT_BACKEND = "tensorflow"

# Lines that TensorFlow logs while it is loaded, and that no setting of its own suppresses: those that are not errors,
# and the error that there is no GPU driver (303).
_LOGGED = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} [\d:.]+ +\d+ \S+\]"
    rb"|E\d{4} .*failed call to cuInit: .*\(303\)"
)

# What the system's loader says if a library does not fit into memory.
_NO_MEMORY = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory")


def quiet_backend() -> None:
    """Let TensorFlow log only errors. This does not load it: loading is slow, and --help does without it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def loading_quietly() -> Iterator[None]:
    """Drop what TensorFlow logs while it is loaded if it is not an error; write all else to stderr afterwards.

    On a full disk the last line may lack its end. It gets one, so that what is written next has its own line.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile(prefix="vidpress-") as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            for line in written:
                if not _LOGGED.match(line):
                    os.write(2, line.removesuffix(b"\n") + b"\n")


def import_quietly() -> None:
    """Import the modules that training needs, and let the backend look for its devices, without log lines."""
    with loading_quietly():
        for module in TRAINING:
            importlib.import_module(module)
        if os.environ.get("KERAS_BACKEND", _DEFAULT_BACKEND) == _DEFAULT_BACKEND:
            importlib.import_module(_DEFAULT_BACKEND).config.list_physical_devices()


def load_keras(prog: str, doing: str) -> None:
    """Load Keras and its backend without log lines. If that fails, end the program with a line that says so.

    The backend is TensorFlow, unless the environment's KERAS_BACKEND names another: jax or torch.

    Args:
      prog: What the line begins with.
      doing: What needs it.
    """
    quiet_backend()
    with explained_errors(prog):
        backend = os.environ.get("KERAS_BACKEND", _DEFAULT_BACKEND)
        if backend not in ("tensorflow", "jax", "torch"):
            raise JobError(f"KERAS_BACKEND={backend} is not a backend that can train: use tensorflow, jax or torch.")
        check_modules(doing, TRAINING, "train")
        if importlib.util.find_spec(backend) is None:
            extra = "train" if backend == _DEFAULT_BACKEND else backend
            raise JobError(missing(doing, f"{backend}, the backend of Keras", extra))
        os.environ["KERAS_BACKEND"] = backend  # a file in the home folder may name another
        try:
            import_quietly()
        except (ImportError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
            fix = "install vidpress[train] again"
            if isinstance(error, ImportError) and error.name and error.name.startswith((backend, "keras")):
                raise JobError(f"{doing} needs {error.name}: {fix}.") from error
            if any(sign in reason for sign in _NO_MEMORY):
                fix = "there is too little memory for it; free some, or raise the limit (`ulimit -v`)"
            raise JobError(f"Keras could not be loaded ({reason}): {fix}.") from error


def check_modules(doing: str, modules: Sequence[str], extras: str) -> None:
    """Check that modules are installed, before any work.

    Args:
      doing: What needs them.
      modules: Their names.
      extras: The extras of vidpress that install them.

    Raises:
      JobError: If some are missing; the message names them all.
    """
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise JobError(missing(doing, " and ".join(filter(None, [", ".join(absent[:-1]), absent[-1]])), extras))
