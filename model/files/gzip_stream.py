"""gzip as it is read: every checksum and the end are checked, and where the damage begins is known."""

from __future__ import annotations

import bisect
import io
from typing import Any, BinaryIO, cast

from isal import isal_zlib
from isal.igzip_lib import IsalError

_CHUNK = 1 << 16
_BUFFER = 1 << 18
_FORMAT = 31  # `wbits` of zlib's functions


class GzipError(ValueError):
    """A gzip stream that is damaged, cut, or followed by something else."""


class GzipStream(io.BufferedReader):
    """What a gzip file unpacks to.

    Intel's ISA-L takes little more than half of zlib's time, which is most of what gzipped records cost. Its own file
    object, unlike this one, loses what stands shortly before a cut; Beam's checks nothing.

    Raises:
      GzipError: From every read that meets damage.
    """

    def __init__(self, file: BinaryIO, start: bytes = b""):
        """Unpack a file, of which `start` was read already."""
        super().__init__(_GzipReader(file, start), _BUFFER)

    def packed_bytes(self, offset: int) -> int:
        """Return about how many bytes of the file gave the first `offset` unpacked ones."""
        return cast(_GzipReader, self.raw).packed_bytes(offset)


class _GzipReader(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: bytes):
        self._file = file
        self._member: Any = None
        self._packed = start
        self._data = memoryview(b"")
        self._num_read = len(start)
        # Unpacked and packed bytes after each chunk.
        self._marks: tuple[list[int], list[int]] = ([0], [0])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            chunk = self._next_chunk()
            if self._member is None:
                self._member = isal_zlib.decompressobj(wbits=_FORMAT)
            elif self._member.eof:
                if chunk[:1] in (b"", b"\0"):
                    self._refuse_zeros(chunk)
                    return 0
                self._member = isal_zlib.decompressobj(wbits=_FORMAT)
            elif not chunk:
                raise GzipError("the file ends within it")
            try:
                self._data = memoryview(self._member.decompress(chunk))
            except IsalError as error:  # type: ignore[misc]  # its stub is no type
                raise GzipError(str(error)) from error
            self._packed = self._member.unused_data
            unpacked, packed = self._marks
            unpacked.append(unpacked[-1] + len(self._data))
            packed.append(self._num_read - len(self._packed))
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def _next_chunk(self) -> bytes:
        chunk, self._packed = self._packed, b""
        if not chunk:
            chunk = self._file.read(_CHUNK)
            self._num_read += len(chunk)
        return chunk

    def _refuse_zeros(self, chunk: bytes) -> None:
        # gzip itself takes them for the padding of a tape; a crash leaves them where a member of the file was.
        zeros = 0
        while chunk:
            zeros += len(chunk)
            if chunk.strip(b"\0"):
                raise GzipError("zeros and then something else follow its end")
            chunk = self._next_chunk()
        if zeros:
            raise GzipError(
                f"{zeros:,} {'zero follows' if zeros == 1 else 'zeros follow'} its end, where a part of the file may "
                "have been: if nothing is missing, unpack and pack it again"
            )

    def packed_bytes(self, offset: int) -> int:
        unpacked, packed = self._marks
        after = bisect.bisect_left(unpacked, offset)
        if after == 0 or after == len(unpacked):
            return packed[min(after, len(packed) - 1)]
        share = (offset - unpacked[after - 1]) / (unpacked[after] - unpacked[after - 1])
        return packed[after - 1] + int(share * (packed[after] - packed[after - 1]))
