"""What every command does before its work: parse options, and check its input and output."""

from __future__ import annotations

import errno
import os
import pathlib
import re
from collections.abc import Callable, Sequence

from vidpress.model.data_set.manifest import MAX_BYTES, Manifest, manifest_numbers
from vidpress.model.errors import VidpressError, fix_of
from vidpress.model.files import input_files, storage
from vidpress.model.files.file_names import generation_of_manifest, join
from vidpress.model.files.input_files import MatchedFile
from vidpress.model.files.uris import PathError
from vidpress.pipeline.launching.options import (
    Parser,
    absolute,
    boolean,
    fraction,
    local_folder,
    model_output,
    not_negative,
    positive_int,
    shards,
)
from vidpress.pipeline.launching.reporting import count, explained_errors

__all__ = [
    "JobError",
    "Parser",
    "absolute",
    "boolean",
    "check_data_set_writable",
    "check_no_folder",
    "check_num_shards",
    "check_output",
    "check_writable",
    "count",
    "explained_errors",
    "fraction",
    "local_folder",
    "match_input",
    "model_output",
    "not_negative",
    "positive_int",
    "shards",
]

# What a shard takes in a manifest: some 290 bytes with two row groups, and ten more for each further one.
_BYTES_OF_ENTRY = 300

_PROBE = re.compile(rf"/{re.escape(storage.PROBE)}[0-9a-f]{{32}}")


class JobError(VidpressError):
    """A job that cannot start or did not finish: the message names the cause and the fix."""


def match_input(patterns: Sequence[str]) -> list[MatchedFile]:
    """Return the files of some patterns, each once.

    Raises:
      JobError: If a pattern matches nothing, or something that cannot be read.
    """
    try:
        return input_files.match(patterns)
    except VidpressError as error:
        raise JobError(f"--input {error}") from error


def check_output(output: str, *, fix: str = "name another folder, or remove it first") -> None:
    """Check that a folder can be written and holds no data set.

    Raises:
      JobError: If not. If it holds a data set, the message ends with `fix`.
    """
    if manifest_numbers(output):
        raise JobError(f"--output {output} holds a data set already: {fix}.")
    check_data_set_writable(output)


def check_data_set_writable(output: str, option: str = "--output ") -> None:
    """Check that a data set can be written to a folder, its manifest included.

    Args:
      output: The folder.
      option: What the folder was named by, for the message.

    Raises:
      JobError: If not.
    """
    check_writable(output, output, option)
    check_no_folder(output, lambda name: generation_of_manifest(name) is not None, option)


def check_num_shards(before: Manifest | None, num_shards: int, output: str) -> None:
    """Check that a data set's next manifest can be read.

    Args:
      before: What it has besides the new shards, if there is a data set already.
      num_shards: How many shards the next generation may have.
      output: The data set's folder.

    Raises:
      JobError: If it would be too large.
    """
    size = _BYTES_OF_ENTRY * num_shards + (0 if before is None else len(before.to_json()))
    if size > MAX_BYTES:
        fix = "use fewer with --num_shards" + (", or compact the data set first" if before and before.shards else "")
        raise JobError(
            f"The manifest of {output} could have {size:,} bytes with {num_shards:,} more shards, more than the "
            f"{MAX_BYTES:,} that are read: {fix}."
        )


def check_no_folder(output: str, is_files: Callable[[str], bool], option: str = "--output ") -> None:
    """Check that no folder has the name of a file that a job writes. Otherwise the job would find out at its end.

    Args:
      output: The output.
      is_files: Returns whether a name is that of such a file.
      option: What the output was named by, for the message.

    Raises:
      JobError: If there is such a folder.
    """
    for name in filter(is_files, storage.list_folders(output)):
        raise JobError(
            f"{option}{output} cannot be written: {join(output, name)} is a folder, where a file has to go: "
            "remove it, or name another folder."
        )


def check_writable(output: str, folder: str, option: str = "--output ") -> None:
    """Check that an output can be written, and that one of two runs that write the same file would fail.

    Args:
      output: The output, for the message.
      folder: Where its files will be.
      option: What the output was named by, for the message.

    Raises:
      JobError: If not.
    """
    try:
        storage.check_writable(folder)
    except PathError as error:
        raise JobError(f"{option}{output} cannot be written: {error}") from error
    except OSError as error:
        if error.errno == errno.ENOTDIR and (file := _file_in_the_way(folder)):
            reason = f"{file} is a file, not a folder: name another --output."
        elif fix := fix_of(error):
            reason = f"{fix}."
        else:
            reason = _PROBE.sub("", str(error))
        raise JobError(f"{option}{output} cannot be written: {reason}") from error


def _file_in_the_way(folder: str) -> str | None:
    """Return the first of a folder's path and the paths above it that is a file, if there is one."""
    paths = (folder, *map(str, pathlib.Path(folder).parents))
    return next((path for path in paths if os.path.exists(path) and not os.path.isdir(path)), None)
