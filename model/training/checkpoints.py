"""The folder of a training run: its options and its checkpoints."""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError, fix_of
from vidpress.model.files import local_files, storage
from vidpress.model.files.uris import PathError

OPTIONS_FILE = "options.json"
CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"step-(\d+)\.safetensors")
_CHECKSUM = "crc32"


class TrainingError(VidpressError, RuntimeError):
    """A training run that cannot start, resume or finish: the message names the cause and the fix."""


def check_work_dir(work_dir: str, wanted: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Record in a folder what is trained there, or compare it with what is recorded.

    Args:
      work_dir: The folder, local or on `gs://`.
      wanted: JSON values of everything that must not change when a training run resumes.
      defaults: What those have that are not recorded: an earlier version did not have them yet.

    Raises:
      TrainingError: If the folder contains another training run, or cannot be written.
    """
    path = f"{work_dir}/{OPTIONS_FILE}"
    paths = checkpoint_paths(work_dir)
    if not _exists(path):
        if paths:
            raise TrainingError(
                f"{work_dir} contains checkpoints, but no {OPTIONS_FILE}: remove the folder, or name another one."
            )
        _write(path, json.dumps(wanted, indent=1).encode())
        _check_writable(work_dir)
        return
    recorded = read_options(work_dir)
    found = {**defaults, **recorded}
    # What is recorded is compared first: a training for a range of lmbda has recorded the range, and no lmbda.
    for name in sorted(wanted, key=lambda name: name not in recorded):
        value = wanted[name]
        if found.get(name) == value:
            continue
        if name == "training_data":
            raise TrainingError(
                f"{work_dir} contains a training run on other data than these: give the same data to resume it, or "
                "name another folder, or remove this one."
            )
        if name == "decay_steps":
            raise TrainingError(
                f"{work_dir} contains a training run with decay_steps {found.get(name)}, not {value} (it is a 50th of "
                f"the steps by default, and 1000 at most): give decay_steps {found.get(name)} to resume it, or name "
                "another folder."
            )
        raise TrainingError(
            f"{work_dir} contains a training run with {name} {_shown(found.get(name))}, not {_shown(value)}: give the "
            "same value to resume it, or name another folder, or remove this one."
        )
    _check_writable(work_dir)


def read_options(work_dir: str) -> dict[str, Any]:
    """Return what `check_work_dir` recorded.

    Raises:
      TrainingError: If the folder does not contain a training run, or if the record is damaged or cannot be read.
    """
    path = f"{work_dir}/{OPTIONS_FILE}"
    if not _exists(path):
        raise TrainingError(
            f"{work_dir} does not contain a training run: it has no {OPTIONS_FILE}. Give the folder of a training run."
        )
    try:
        return strict_json.decode(_read(path, strict_json.MAX_BYTES), dict[str, Any])
    except (strict_json.JsonError, PathError) as error:
        raise damaged(path, error) from error


def damaged(path: str, error: Exception) -> TrainingError:
    """Return the error that says that a file in the folder of a training run is damaged."""
    return TrainingError(
        f"{path} is damaged, or was written by another version of vidpress: {_reason(error)}. Remove the folder of "
        "that training run, or name another one."
    )


def checkpoint_paths(work_dir: str) -> list[str]:
    """Return the checkpoints in a folder, the newest first.

    Raises:
      TrainingError: If the folder cannot be read.
    """
    folder = f"{work_dir}/{CHECKPOINTS}"
    try:
        names = [file.name for file in storage.list_files(folder, "step-")]
    except OSError as error:
        raise _no_access(folder, "read", error) from error
    steps = sorted((int(found.group(1)) for name in names if (found := _NAME.fullmatch(name))), reverse=True)
    return [_path(work_dir, step) for step in steps]


def save(work_dir: str, step: int, state: Mapping[str, Sequence[keras.Variable]], *, max_to_keep: int) -> None:
    """Write a checkpoint, and remove older ones.

    Args:
      work_dir: The folder of the training run.
      step: The last step that was made.
      state: All that a step changes, by what it belongs to.
      max_to_keep: How many checkpoints are kept.

    Raises:
      TrainingError: If it cannot be written.
    """
    tensors = {
        f"{owner}.{index}": keras.ops.convert_to_numpy(variable)
        for owner, variables in state.items()
        for index, variable in enumerate(variables)
    }
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    data = safetensors.numpy.save({**tensors, _CHECKSUM: _checksum(tensors)})
    _write(_path(work_dir, step), data)
    try:
        storage.remove(checkpoint_paths(work_dir)[max_to_keep:])
    except OSError as error:
        raise _no_access(f"{work_dir}/{CHECKPOINTS}", "written", error) from error


def restore_newest(work_dir: str, state: Mapping[str, Sequence[keras.Variable]]) -> int | None:
    """Restore the newest checkpoint that is not damaged, and say so if there are newer ones that are.

    Args:
      work_dir: The folder of the training run.
      state: As for `save`; owners may be left out.

    Returns:
      Its step; None if there is no checkpoint.

    Raises:
      TrainingError: If there are checkpoints, but all are damaged or of other shapes; or if one may not be read.
    """
    problems: list[TrainingError] = []
    for path in checkpoint_paths(work_dir):
        try:
            _restore(_read(path, None), state)
        except ValueError as error:
            problems.append(damaged(path, error))
            problems[-1].__cause__ = error
            continue
        if problems:
            reason = str(problems[0]).rpartition(" Remove ")[0]
            print(f"Using an older checkpoint, {path}: {reason}", file=sys.stderr)
        return _step(path)
    if problems:
        raise problems[0]
    return None


def _restore(data: bytes, state: Mapping[str, Sequence[keras.Variable]]) -> None:
    """Assign the values in a checkpoint to variables.

    Raises:
      ValueError: If it is damaged, or was made of other variables.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it is not in safetensors' format: {error}") from error
    if _CHECKSUM not in tensors or tensors.pop(_CHECKSUM) != _checksum(tensors):
        raise ValueError("its values do not fit its checksum")
    for owner, variables in state.items():
        shapes = [tuple(variable.shape) for variable in variables]
        names = [f"{owner}.{index}" for index in range(len(variables))]
        found = [tensors[name].shape if name in tensors else None for name in names]
        if found != shapes or f"{owner}.{len(variables)}" in tensors:
            raise ValueError(f"the values of its {owner} have other shapes")
    for owner, variables in state.items():
        for index, variable in enumerate(variables):
            variable.assign(tensors[f"{owner}.{index}"].astype(keras.ops.convert_to_numpy(variable).dtype))


def _checksum(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the CRC-32 of names and values, uint32[1]."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), checksum))
    return np.array([checksum], np.uint32)


def _path(work_dir: str, step: int) -> str:
    return f"{work_dir}/{CHECKPOINTS}/step-{step:08d}.safetensors"


def _step(path: str) -> int:
    found = _NAME.search(path)
    assert found is not None
    return int(found.group(1))


def _exists(path: str) -> bool:
    try:
        return storage.exists(path)
    except OSError as error:
        raise _no_access(path, "read", error) from error


def _read(path: str, max_bytes: int | None) -> bytes:
    try:
        return storage.read_bytes(path, max_bytes=max_bytes)
    except OSError as error:
        raise _no_access(path, "read", error) from error


def _write(path: str, data: bytes) -> None:
    try:
        storage.write(path, data)
    except OSError as error:
        raise _no_access(path, "written", error) from error


def _check_writable(work_dir: str) -> None:
    """Check, before the first step, that checkpoints can be written to the local folder of a training run.

    Raises:
      TrainingError: If not.
    """
    if "://" in work_dir:
        return
    folder = f"{work_dir}/{CHECKPOINTS}"
    try:
        with local_files.temporary_beside(f"{folder}/checkpoint"):
            pass
    except OSError as error:
        raise _no_access(folder, "written", error) from error


def _no_access(path: str, done: str, error: Exception) -> TrainingError:
    fix = fix_of(error) if isinstance(error, OSError) else None
    return TrainingError(f"{path} cannot be {done}: {fix or _reason(error)}.")


def _shown(value: Any) -> str:
    """Return an option's value as it is given on a command line."""
    if isinstance(value, list):
        return (" " if any(isinstance(each, float) for each in value) else ",").join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
