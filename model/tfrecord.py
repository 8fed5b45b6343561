"""The TFRecord framing: length, checksum of the length, payload, checksum of the payload."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from awscrt.checksums import crc32c
from isal import isal_zlib
from isal.igzip_lib import IsalError

# Protocol buffers end at 2 GiB; a longer record is no record.
MAX_PAYLOAD_BYTES = 2**31 - 1

_COMPRESSED_CHUNK = 1 << 16
_GZIP_FORMAT = 31  # `wbits` of zlib's functions

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Damage:
    """A place in a TFRecord file that cannot be read.

    Attributes:
      offset: Byte offset of the record in the (uncompressed) file.
      reason: What is wrong with it.
      ends_file: Whether the rest of the file could not be read either.
    """

    offset: int
    reason: str
    ends_file: bool


def masked_crc32c(data: bytes) -> int:
    """Return TFRecord's masked CRC-32C of `data` (tensorflow/tsl/lib/hash/crc32c.h).

    awscrt's takes 3 us for a frame-level record, with AVX-512; google-crc32c's takes 15.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def open_gzip(file: BinaryIO) -> BinaryIO:
    """Decompress a file as it is read, checking its checksums and its end.

    Intel's ISA-L takes little more than half of zlib's time, which is most of what gzipped records cost. Its own file
    object, unlike this one, loses what stands shortly before a cut; Beam's checks nothing.
    """
    return cast(BinaryIO, io.BufferedReader(_GzipReader(file), 1 << 18))


class _GzipReader(io.RawIOBase):
    def __init__(self, file: BinaryIO):
        self._file = file
        self._member: Any = None
        self._compressed = b""
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            chunk = self._compressed or self._file.read(_COMPRESSED_CHUNK)
            self._compressed = b""
            if self._member is None or self._member.eof:
                if not chunk:
                    return 0
                chunk = chunk.lstrip(b"\0")  # members may be padded
                if not chunk:
                    continue
                self._member = isal_zlib.decompressobj(wbits=_GZIP_FORMAT)
            elif not chunk:
                raise EOFError("the file ends within it")
            self._data = memoryview(self._member.decompress(chunk))
            self._compressed = self._member.unused_data
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size


def read_tfrecords(file: BinaryIO) -> Iterator[tuple[int, bytes | Damage]]:
    """Read the records of a TFRecord file, going on after a damaged payload.

    Args:
      file: A binary file at its start; for a compressed one, what `open_gzip` gives. Errors of reading itself, which
        a retry may mend, are passed on.

    Yields:
      `(offset, payload)`, or `(offset, Damage)` where a checksum does not fit or the file ends early. After a
      damaged length, and at a cut, nothing of the file can be trusted any more: that `Damage` is the last.
    """
    offset = 0
    while True:
        try:
            header = file.read(_HEADER.size)
            if not header:
                return
            if len(header) < _HEADER.size:
                yield (
                    offset,
                    Damage(offset, f"file ends within a record's length ({len(header)} bytes)", True),
                )
                return
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc or length > MAX_PAYLOAD_BYTES:
                yield offset, Damage(offset, "the record's length fails its checksum", True)
                return
            payload = file.read(length)
            footer = file.read(_CRC.size)
        except (IsalError, EOFError) as error:  # type: ignore[misc]  # its stub is no type
            yield offset, Damage(offset, f"the gzip stream is damaged or cut: {error}", True)
            return
        if len(payload) < length or len(footer) < _CRC.size:
            yield offset, Damage(offset, f"file ends within a record of {length} bytes", True)
            return
        if masked_crc32c(payload) != _CRC.unpack(footer)[0]:
            yield offset, Damage(offset, f"the record's {length} bytes fail their checksum", False)
        else:
            yield offset, payload
        offset += _HEADER.size + length + _CRC.size


def write_tfrecords(file: BinaryIO, payloads: Iterable[bytes]) -> int:
    """Write payloads as TFRecords and return how many there were."""
    count = 0
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        file.write(length)
        file.write(_CRC.pack(masked_crc32c(length)))
        file.write(payload)
        file.write(_CRC.pack(masked_crc32c(payload)))
        count += 1
    return count
