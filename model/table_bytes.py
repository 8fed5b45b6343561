"""Range coding tables as few bytes, and back: what shards hold of them.

A few bytes of LZMA can stand for gigabytes of tables: how large tables may be is limited, and their sizes are checked
against each other before anything is built of them.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import NamedTuple

import numpy as np

from vidpress.model.table_widths import SIGNIFICANT_BITS, by_rank_order, cdf_of_widths, check_dims, rounding_shift

# A row group of 4096 videos is decoded at once, to 128 MiB with so many dimensions.
MAX_DIMS = 2**13
MAX_BANKS = 256
# Of all dimensions' distributions together. Tables fitted to 2000 dimensions of YouTube-8M have some 20,000.
MAX_ENTRIES = 2**21

_MAGIC = b"VPRT"
_FORMAT_VERSION = 2
_HEADER = struct.Struct("<4sBI")  # magic, format version, CRC-32 of the rest
_SIZES = {1: struct.Struct("<BI"), 2: struct.Struct("<BIH")}  # precision, dimensions, and since version 2 banks

_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "pb": 0}]


class TableArrays(NamedTuple):
    """The attributes of `RangeCodingTables`."""

    cdf: np.ndarray
    cdf_start: np.ndarray
    cdf_offset: np.ndarray
    precision: int
    bank_tilt: np.ndarray


def pack(
    cdf: np.ndarray, cdf_start: np.ndarray, cdf_offset: np.ndarray, precision: int, bank_tilt: np.ndarray
) -> bytes:
    """Return the bytes of tables: less than one a value if they were fitted."""
    start = cdf_start.astype(np.int64)
    # The first interval of each dimension follows from the others.
    is_width = np.ones(len(cdf), bool)
    is_width[start[:-1]] = is_width[start[:-1] + 1] = False
    widths = np.diff(cdf, prepend=0)[is_width][by_rank_order(np.diff(start) - 2)]
    shift = rounding_shift(widths)
    codes = (shift << SIGNIFICANT_BITS) + (widths >> shift)
    columns = np.concatenate([np.diff(start), cdf_offset, codes, widths - (widths >> shift << shift)])
    # The four bytes of the numbers apart: nearly all but the lowest are 0.
    planes = columns.astype("<i4").view(np.uint8).reshape(-1, 4).T
    body = lzma.compress(planes.tobytes() + bank_tilt.tobytes(), format=lzma.FORMAT_RAW, filters=_LZMA)
    rest = _SIZES[_FORMAT_VERSION].pack(precision, len(cdf_offset), len(bank_tilt)) + body
    return _HEADER.pack(_MAGIC, _FORMAT_VERSION, zlib.crc32(rest)) + rest


def unpack(data: bytes) -> TableArrays:
    """Read what `pack` wrote.

    Raises:
      ValueError: If these are not tables, are damaged, or are of a version that is not known.
    """
    if len(data) < _HEADER.size + 5 or data[:4] != _MAGIC:
        raise ValueError(f"These {len(data)} bytes are not range coding tables.")
    _, version, checksum = _HEADER.unpack_from(data)
    if version not in _SIZES:
        raise ValueError(
            f"The range coding tables have format version {version}; this vidpress reads {list(_SIZES)}: "
            "install the version that wrote them, or a later one."
        )
    rest = data[_HEADER.size :]
    if zlib.crc32(rest) != checksum:
        raise ValueError("The range coding tables are damaged: they do not fit their checksum. Fetch them again.")
    try:
        precision, num_dims, *banks = _SIZES[version].unpack_from(rest)
        if not (1 <= precision <= 16 and 1 <= num_dims <= MAX_DIMS and all(1 <= each <= MAX_BANKS for each in banks)):
            raise ValueError(
                f"precision {precision}, {num_dims:,} dimensions, banks {banks}, where 16, {MAX_DIMS:,} and "
                f"{MAX_BANKS} are possible"
            )
        num_tilts = sum(banks) * num_dims
        body = _decompress(rest[_SIZES[version].size :], _body_size(MAX_ENTRIES, num_dims) + num_tilts)
        cdf, cdf_start, cdf_offset = _distributions(body[: len(body) - num_tilts], precision, num_dims)
        tilt = np.frombuffer(body, np.int8)[len(body) - num_tilts :].reshape(-1, num_dims)
        return TableArrays(cdf, cdf_start, cdf_offset, precision, tilt if banks else np.zeros((1, 1), np.int8))
    except (struct.error, lzma.LZMAError, IndexError, ValueError) as error:
        raise ValueError(f"The range coding tables are damaged: {error}") from error


def _body_size(num_entries: int, num_dims: int) -> int:
    """Return how many bytes the distributions have: sizes, offsets, and two numbers for all entries but two each."""
    return 4 * (2 * num_dims + 2 * (num_entries - 2 * num_dims))


def _decompress(data: bytes, max_size: int) -> bytes:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA)
    body = decompressor.decompress(data, max_length=max_size + 1)
    if len(body) > max_size:
        raise ValueError(f"they unpack to more than {max_size:,} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("they do not end where their bytes do")
    return body


def _distributions(body: bytes, precision: int, num_dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `cdf`, `cdf_start` and `cdf_offset`, int64."""
    planes = np.frombuffer(body, np.uint8).reshape(4, -1)
    columns = np.ascontiguousarray(planes.T).view("<i4").reshape(-1).astype(np.int64)
    sizes, offset = columns[:num_dims], columns[num_dims : 2 * num_dims]
    most = (1 << precision) + 1
    check_dims((sizes >= 3) & (sizes <= most), sizes, f"a cdf of {{}} entries; with precision {precision} 3 to {most}")
    if len(offset) != num_dims or len(body) != _body_size(int(sizes.sum()), num_dims):
        raise ValueError(f"{len(body):,} bytes do not hold {sizes.sum():,} entries")
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
