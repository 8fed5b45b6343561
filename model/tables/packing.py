"""Range coding tables packed into few bytes, and unpacked.

The sizes that the bytes claim are checked against the number of bytes before anything is built from them.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import NamedTuple

import numpy as np

from vidpress.model.tables.limits import MAX_BANKS, MAX_DIMS, MAX_ENTRIES
from vidpress.model.tables.widths import (
    SIGNIFICANT_BITS,
    by_rank_order,
    cdf_of_widths,
    check_dims,
    rounding_shift,
)

FORMAT_VERSION = 2
MAGIC = b"VPRT"
HEADER = struct.Struct("<4sBI")  # magic, format version, CRC-32 of the rest
SIZES = {1: struct.Struct("<BI"), 2: struct.Struct("<BIH")}  # precision, dimensions, and since version 2 banks
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "pb": 0}]


class PackedArrays(NamedTuple):
    """The fields of `RangeCodingTables`, which documents them."""

    cdf: np.ndarray
    cdf_start: np.ndarray
    cdf_offset: np.ndarray
    precision: int
    bank_tilt: np.ndarray


def pack(arrays: PackedArrays) -> bytes:
    """Return the arrays of tables as bytes, less than one a value if the tables were fitted."""
    num_banks, num_dims = arrays.bank_tilt.shape
    body = pack_distributions(arrays.cdf, arrays.cdf_start, arrays.cdf_offset) + arrays.bank_tilt.tobytes()
    rest = SIZES[FORMAT_VERSION].pack(arrays.precision, num_dims, num_banks)
    rest += lzma.compress(body, format=lzma.FORMAT_RAW, filters=LZMA)
    return HEADER.pack(MAGIC, FORMAT_VERSION, zlib.crc32(rest)) + rest


def unpack(data: bytes) -> PackedArrays:
    """Read what `pack` gave.

    Raises:
      ValueError: If these are not tables, are damaged or too large, or are of a version that is not known.
    """
    if len(data) < HEADER.size + 5 or data[:4] != MAGIC:
        raise ValueError(f"These {len(data)} bytes are not range coding tables.")
    _, version, checksum = HEADER.unpack_from(data)
    if version not in SIZES:
        raise ValueError(
            f"The range coding tables have format version {version}; this vidpress reads {list(SIZES)}: "
            "install the version that wrote them, or a later one."
        )
    rest = data[HEADER.size :]
    if zlib.crc32(rest) != checksum:
        raise ValueError("The range coding tables are damaged: they do not fit their checksum. Fetch them again.")
    try:
        return _unpack(rest, version)
    except (struct.error, lzma.LZMAError, IndexError, ValueError) as error:
        raise damaged(error) from error


def damaged(error: Exception) -> ValueError:
    """Return the error for tables that fit their checksum, but are damaged."""
    return ValueError(f"The range coding tables are damaged: {error}")


def _unpack(rest: bytes, version: int) -> PackedArrays:
    precision, num_dims, *banks = SIZES[version].unpack_from(rest)
    num_banks = banks[0] if banks else 1
    if not (1 <= precision <= 16 and 1 <= num_dims <= MAX_DIMS and 1 <= num_banks <= MAX_BANKS):
        raise ValueError(f"{num_banks:,} banks of {num_dims:,} dimensions with precision {precision}")
    num_tilts = num_banks * num_dims if banks else 0
    body = _decompress(rest[SIZES[version].size :], num_bytes(MAX_ENTRIES, num_dims) + num_tilts)
    numbers, tilts = body[: len(body) - num_tilts], body[len(body) - num_tilts :]
    tilt = np.frombuffer(tilts, np.int8).reshape(num_banks, num_dims) if banks else np.zeros((1, 1), np.int8)
    return PackedArrays(*_unpack_distributions(numbers, precision, num_dims), precision, tilt)


def _decompress(data: bytes, most: int) -> bytes:
    """Return what LZMA unpacks to, at most `most` bytes: a few bytes can claim to be gigabytes."""
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=LZMA)
    body = decompressor.decompress(data, max_length=most + 1)
    if len(body) > most:
        raise ValueError(f"they unpack to more than {most:,} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("they do not end where their bytes do")
    return body


def pack_distributions(cdf: np.ndarray, cdf_start: np.ndarray, cdf_offset: np.ndarray) -> bytes:
    """Return the numbers of distributions as `num_bytes` bytes, which compress well."""
    start = cdf_start.astype(np.int64)
    # The first interval of each dimension follows from the others.
    is_width = np.ones(len(cdf), bool)
    is_width[start[:-1]] = is_width[start[:-1] + 1] = False
    widths = np.diff(cdf, prepend=0)[is_width][by_rank_order(np.diff(start) - 2)]
    shift = rounding_shift(widths)
    codes = (shift << SIGNIFICANT_BITS) + (widths >> shift)
    columns = np.concatenate([np.diff(start), cdf_offset, codes, widths - (widths >> shift << shift)])
    # The numbers' four bytes are stored separately: nearly all but the lowest are 0.
    return columns.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()


def num_bytes(num_entries: int, num_dims: int) -> int:
    """Return how many bytes distributions take: sizes, offsets, and for all entries but two of each two numbers."""
    return 4 * (2 * num_dims + 2 * (num_entries - 2 * num_dims))


def _unpack_distributions(data: bytes, precision: int, num_dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `cdf`, `cdf_start` and `cdf_offset`, int64, that `pack_distributions` was given."""
    planes = np.frombuffer(data, np.uint8).reshape(4, -1)
    columns = np.ascontiguousarray(planes.T).view("<i4").reshape(-1).astype(np.int64)
    sizes, offset = columns[:num_dims], columns[num_dims : 2 * num_dims]
    most = (1 << precision) + 1
    check_dims((sizes >= 3) & (sizes <= most), sizes, f"a cdf of {{}} entries; with precision {precision} 3 to {most}")
    if len(offset) != num_dims or len(data) != num_bytes(int(sizes.sum()), num_dims):
        raise ValueError(f"{len(data):,} bytes do not hold {sizes.sum():,} entries")
    codes, remainders = columns[2 * num_dims :].reshape(2, -1)
    shift = np.maximum((codes >> SIGNIFICANT_BITS) - 1, 0)
    by_rank = ((codes - (shift << SIGNIFICANT_BITS)) << shift) + remainders
    widths = np.empty_like(by_rank)
    widths[by_rank_order(sizes - 2)] = by_rank
    start = np.concatenate([[0], np.cumsum(sizes - 2)])
    first = (1 << precision) - np.add.reduceat(widths, start[:-1])
    widths = np.insert(widths, start[:-1], first)
    start += np.arange(num_dims + 1)
    return cdf_of_widths(widths, start, precision), start + np.arange(num_dims + 1), offset
