"""The files that a data set was encoded from, as its lists have them, and which files are new to it."""

from __future__ import annotations

import builtins
import dataclasses
import json
from collections.abc import Iterable
from typing import Annotated

import msgspec

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.files import input_files

_MAX_LINE_BYTES = 2**16
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class InputChangedError(VidpressError, ValueError):
    """An input file that has changed since it was encoded."""


@dataclasses.dataclass(frozen=True, order=True)
class InputFile:
    """A file that was read.

    Attributes:
      file: Its path or URI.
      bytes: Its size.
      records: How many records it has, including damaged ones.
      record_bytes: The bytes of their payloads.
      lost_bytes: How many bytes of the file could not be read, because what comes before them is damaged. It is not
        known how many records they hold.
      damaged_crc32: The CRC-32 (as in zlib) of the file if a part of it was damaged. It shows later whether the file
        has been repaired.
      labels_key: The key of its labels, if `vidpress encode --labels_key` named it and a record of the file has it. It
        shows later that this key is no misspelling.
    """

    file: str
    bytes: _Number
    records: _Number
    record_bytes: _Number
    lost_bytes: _Number = 0
    damaged_crc32: _Number | None = None
    labels_key: str | None = None

    def to_json(self) -> str:
        """Return the file as one line of JSON."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, line: builtins.bytes) -> InputFile:
        """Read back what `to_json` gave.

        Raises:
          JsonError: If it is anything else.
        """
        return strict_json.decode(line, cls, max_bytes=_MAX_LINE_BYTES)


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
