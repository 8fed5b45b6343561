"""A file of which one range was read, and nothing else is to be seen."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from pyarrow import NativeFile


class FileWindow(io.RawIOBase):
    """A file of which Arrow sees no more than the range that was read, and checked.

    Args:
      file: The file, seekable.
      num_bytes: Its size.
    """

    def __init__(self, file: BinaryIO | NativeFile, num_bytes: int):
        self._file = file
        self._num_bytes = num_bytes
        self._position = self._start = 0
        self._data = b""

    def fetch(self, start: int, size: int) -> bytes:
        """Read a range of the file, which is the only one to be seen from now on.

        Raises:
          OSError: If it cannot be read, or the file ends before.
        """
        self._file.seek(start)
        self._start, self._data = start, self._file.read(size)
        if len(self._data) != size:
            raise OSError(f"{len(self._data):,} bytes could be read of {size:,}")
        return self._data

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be sought."""
        return True

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Choose where the next byte is read, and return that place."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read some bytes of the range, or all that are left of it.

        Raises:
          OSError: If they are not in the range.
        """
        start = self._position - self._start
        end = len(self._data) if size is None or size < 0 else start + size
        if start < 0 or end > len(self._data):
            raise OSError("a page claims bytes that are not its column's")
        self._position += end - start
        return self._data[start:end]
