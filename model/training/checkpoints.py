"""A training's folder: what was begun there, and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError, fix_of
from vidpress.model.files import local_files, storage

OPTIONS_FILE = "options.json"
CHECKPOINTS = "checkpoints"

# How the commands call what they do not call by its name.
_OPTION_NAMES = {"num_classes": "classes", "teachers": "teacher"}


class TrainingError(VidpressError, RuntimeError):
    """A training that cannot start, go on or end well: the message names the cause and the fix."""


def check_work_dir(work_dir: str, wanted: dict[str, Any]) -> None:
    """Write down what is trained in a folder, or compare it with what was begun there.

    Args:
      work_dir: The folder, local or a URI that `tf.io.gfile` takes.
      wanted: JSON values of all that a training must not change when it goes on.

    Raises:
      TrainingError: If the folder holds another training, or cannot be written.
    """
    path = os.path.join(work_dir, OPTIONS_FILE)
    _check_readable(work_dir)
    if not tf.io.gfile.exists(path):
        if tf.io.gfile.glob(os.path.join(work_dir, CHECKPOINTS, "*.index")):
            raise TrainingError(f"{work_dir} holds checkpoints, but no {OPTIONS_FILE}: remove it, or name another.")
        try:
            storage.write(path, json.dumps(wanted, indent=1).encode())
        except OSError as error:
            raise _no_access(path, "written", error) from error
        _check_writable(work_dir)
        return
    found = read_options(work_dir)
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        if name == "training_data":
            raise TrainingError(
                f"{work_dir} holds a training on other data than --input's: give the same to go on, or name another "
                "folder with --work_dir, or remove this one."
            )
        if name == "decay_steps":
            raise TrainingError(
                f"{work_dir} holds a training with --decay_steps {found.get(name)}, not {value} (it is a 50th of "
                f"--steps by default, and 1000 at most): add --decay_steps {found.get(name)} to go on, or name another "
                "folder with --work_dir."
            )
        option = f"--{_OPTION_NAMES.get(name, name)}"
        raise TrainingError(
            f"{work_dir} holds a training with {option} {_as_given(found.get(name))}, not {_as_given(value)}: give the "
            "same to go on, or name another folder with --work_dir, or remove this one."
        )
    _check_writable(work_dir)


def _check_readable(work_dir: str) -> None:
    """See that what is in a local folder of a training can be read: TensorFlow takes what cannot for what is not there.

    Raises:
      TrainingError: If not.
    """
    if "://" in work_dir:
        return
    folder = os.path.join(work_dir, CHECKPOINTS)
    paths = [os.path.join(work_dir, OPTIONS_FILE)]
    try:
        paths += [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _no_access(folder, "read", error) from error
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except (FileNotFoundError, NotADirectoryError):
            continue  # what that means is for those to say who need it
        except OSError as error:
            raise _no_access(path, "read", error) from error


def _check_writable(work_dir: str) -> None:
    """See that checkpoints can be written to a local folder of a training, before its first step.

    Raises:
      TrainingError: If not.
    """
    if "://" in work_dir:
        return
    folder = os.path.join(work_dir, CHECKPOINTS)
    try:
        with local_files.temporary_beside(os.path.join(folder, "checkpoint")):
            pass
    except OSError as error:
        raise _no_access(folder, "written", error) from error


def _no_access(path: str, done: str, error: Exception) -> TrainingError:
    fix = fix_of(error) if isinstance(error, OSError) else None
    return TrainingError(f"{path} cannot be {done}: {fix or _reason(error)}.")


def _as_given(value: Any) -> str:
    """Return an option's value as it is given in a command line."""
    if isinstance(value, list):
        return (" " if any(isinstance(each, float) for each in value) else ",").join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def read_options(work_dir: str) -> dict[str, Any]:
    """Return what `check_work_dir` wrote down.

    Raises:
      TrainingError: If there is nothing, or it is damaged, or it or a checkpoint cannot be read.
    """
    path = os.path.join(work_dir, OPTIONS_FILE)
    _check_readable(work_dir)
    if not tf.io.gfile.exists(path):
        raise TrainingError(f"{work_dir} holds no training: there is no {OPTIONS_FILE}. Give the folder of one.")
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return strict_json.decode(file.read(strict_json.MAX_BYTES + 1), dict[str, Any])
    except tf.errors.PermissionDeniedError as error:
        raise _no_access(path, "read", error) from error
    except (strict_json.JsonError, tf.errors.OpError) as error:
        raise damaged(path, error) from error


def damaged(path: str, error: Exception) -> TrainingError:
    """Return the error that says that a file of a training's folder is damaged."""
    return TrainingError(
        f"{path} is damaged, or of another version of vidpress: {_reason(error)}. Remove that training's folder, or "
        "name another."
    )


def checkpoint_paths(work_dir: str) -> list[str]:
    """Return the checkpoints in a folder, the newest first: by their files, since the list beside them may be lost."""
    found = {}
    for path in tf.io.gfile.glob(os.path.join(work_dir, CHECKPOINTS, "*.index")):
        if number := re.search(r"-(\d+)\.index$", path):
            found[int(number.group(1))] = path.removesuffix(".index")
    return [found[number] for number in sorted(found, reverse=True)]


def manager_of(state: tf.train.Checkpoint, work_dir: str, max_to_keep: int) -> tf.train.CheckpointManager:
    """Return what writes checkpoints into a training's folder, and removes those that are older."""
    folder = os.path.join(work_dir, CHECKPOINTS)
    paths = checkpoint_paths(work_dir)
    try:
        known = tf.train.get_checkpoint_state(folder)
    except ValueError:
        known = None
    if paths and (known is None or os.path.basename(known.model_checkpoint_path) != os.path.basename(paths[0])):
        # The list is lost, or damaged, or lists what is lost.
        tf.compat.v1.train.update_checkpoint_state(folder, paths[0], paths[::-1])
    elif known is None and tf.io.gfile.exists(os.path.join(folder, "checkpoint")):
        tf.io.gfile.remove(os.path.join(folder, "checkpoint"))
    return tf.train.CheckpointManager(state, folder, max_to_keep)


def restore_newest(state: tf.train.Checkpoint, work_dir: str) -> Any:
    """Restore the newest checkpoint that is whole, and say so where it is not the newest.

    Returns:
      What `tf.train.Checkpoint.restore` does; None if there is no checkpoint.

    Raises:
      TrainingError: If there are checkpoints, but none is whole and has the variables' shapes; or one may not be read.
    """
    problems: list[TrainingError] = []
    for path in checkpoint_paths(work_dir):
        try:
            _check_whole(path)
            restored = state.restore(path)
        except tf.errors.PermissionDeniedError as error:
            raise _no_access(path, "read", error) from error
        except (ValueError, IndexError, tf.errors.OpError) as error:
            problems.append(damaged(path, error))
            problems[-1].__cause__ = error
            continue
        if problems:
            reason = str(problems[0]).partition(" Remove")[0]
            print(f"Taking an older checkpoint, {path}: {reason}", file=sys.stderr)
        return restored
    if problems:
        raise problems[0]
    return None


def _check_whole(path: str) -> None:
    """Read every value of a checkpoint, which compares it with its checksum; optimizers read theirs much later."""
    reader = tf.train.load_checkpoint(path)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


@contextlib.contextmanager
def written(folder: str) -> Iterator[None]:
    """Explain what TensorFlow says where it cannot write to a folder, or has too little memory.

    Raises:
      TrainingError: If so.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.InternalError, tf.errors.UnimplementedError):
        raise  # a mistake of the program
    except tf.errors.OpError as error:
        if "OOM" in str(error):
            raise TrainingError("Not enough memory: lower --batch_size, or take a larger machine.") from error
        reason = "the disk is full" if "No space left" in str(error) else _reason(error)
        again = "mend that, and run the same command again to go on."
        raise TrainingError(f"{folder} cannot be written: {reason}: {again}") from error


def _reason(error: Exception) -> str:
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(". ")
