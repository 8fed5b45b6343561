"""The numbers of range coding tables as bytes that compress well, and back.

What they claim is checked against how many bytes there are before anything is built of it.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.coding.table_widths import (
    SIGNIFICANT_BITS,
    by_rank_order,
    cdf_of_widths,
    check_dims,
    rounding_shift,
)


def pack(cdf: np.ndarray, cdf_start: np.ndarray, cdf_offset: np.ndarray) -> bytes:
    """Return the bytes of distributions, `num_bytes` of them; the arrays are those of `RangeCodingTables`."""
    start = cdf_start.astype(np.int64)
    # The first interval of each dimension follows from the others.
    is_width = np.ones(len(cdf), bool)
    is_width[start[:-1]] = is_width[start[:-1] + 1] = False
    widths = np.diff(cdf, prepend=0)[is_width][by_rank_order(np.diff(start) - 2)]
    shift = rounding_shift(widths)
    codes = (shift << SIGNIFICANT_BITS) + (widths >> shift)
    columns = np.concatenate([np.diff(start), cdf_offset, codes, widths - (widths >> shift << shift)])
    # The four bytes of the numbers apart: nearly all but the lowest are 0.
    return columns.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes()


def num_bytes(num_entries: int, num_dims: int) -> int:
    """Return how many bytes distributions take: sizes, offsets, and two numbers for all entries but two each."""
    return 4 * (2 * num_dims + 2 * (num_entries - 2 * num_dims))


def unpack(data: bytes, precision: int, num_dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read what `pack` gave.

    Returns:
      `cdf`, `cdf_start` and `cdf_offset`, int64.

    Raises:
      ValueError: If these are not so many distributions.
    """
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
