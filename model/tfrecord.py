"""The TFRecord framing: length, checksum of the length, payload, checksum of the payload."""

from __future__ import annotations

import dataclasses
import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import google_crc32c

# Protocol buffers end at 2 GiB; a longer record is no record.
MAX_PAYLOAD_BYTES = 2**31 - 1

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
    """Return TFRecord's masked CRC-32C of `data` (tensorflow/tsl/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_tfrecords(file: BinaryIO) -> Iterator[tuple[int, bytes | Damage]]:
    """Read the records of a TFRecord file, going on after a damaged payload.

    Args:
      file: A binary file at its start; a `gzip.GzipFile` for a compressed one. Errors of reading itself, which
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
        except (zlib.error, gzip.BadGzipFile, EOFError) as error:
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
