"""Which input files a data set was not encoded from yet."""

from __future__ import annotations

from collections.abc import Iterable

from vidpress.model.errors import VidpressError
from vidpress.model.files import input_files


class InputChangedError(VidpressError, ValueError):
    """An input file that has changed since it was encoded."""


def is_new(file: str, num_bytes: int, recorded: Iterable[tuple[int, int | None]]) -> bool:
    """Return whether an input file has to be encoded.

    A file that has grown is read again, and so is one that was damaged and has changed since. Those of its videos that
    the data set does not have are added.

    Args:
      file: Its path.
      num_bytes: Its size.
      recorded: Its `bytes` and `damaged_crc32` in the data set's lists of input files, if they list it.

    Raises:
      InputChangedError: If it is smaller than it was.
    """
    recorded = list(recorded)
    largest = max((size for size, _ in recorded), default=-1)
    if num_bytes < largest:
        raise InputChangedError(
            f"{file} has {num_bytes} bytes, but had {largest} when it was encoded: give the changed file a new name "
            "(videos that the data set has already are not added twice), or encode everything to another folder."
        )
    damaged = [crc32 for size, crc32 in recorded if size == largest]
    if num_bytes > largest or None in damaged:
        return num_bytes > largest
    return input_files.crc32(file, num_bytes) not in damaged
