"""Range coding tables as the range coder's loops read them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from vidpress.model.tables.widths import MAX_TILT, cdf_of_widths, tilt_widths, widths_of_cdf

# Where these intervals are in `CoderArrays.cdf`, counted from its end.
BIT_INTERVALS = 5
WHOLE_INTERVAL = 2

_ENTRIES_CHUNK = 1 << 18  # computed at a time


class CoderArrays(NamedTuple):
    """Tables as the range coder's loops read them; all arrays are read-only.

    Attributes:
      cdf: uint32[total + 5], the distributions of all banks one after the other. Banks share the distributions in which
        they agree. After them, there is one for bits, `BIT_INTERVALS` before the end, and then the whole interval,
        `WHOLE_INTERVAL` before the end.
      start: int32[num_banks, num_dims], where each distribution begins.
      first_uppers: uint64[num_banks, num_dims], the upper ends, minus 1, of each distribution's first four intervals,
        in 16 bits each, from the lowest bits on. If there are fewer than four intervals, the last ones are empty.
      escape: int32[num_dims], the index of each distribution's last interval, the escape.
      cdf_offset: int32[num_dims], the value of each distribution's first interval.
    """

    cdf: np.ndarray
    start: np.ndarray
    first_uppers: np.ndarray
    escape: np.ndarray
    cdf_offset: np.ndarray


def lay_out(
    cdf: np.ndarray, cdf_start: np.ndarray, cdf_offset: np.ndarray, precision: int, tilt: np.ndarray
) -> CoderArrays:
    """Compute the distributions of all banks.

    Args:
      cdf: int32[total], as in `RangeCodingTables`.
      cdf_start: int32[num_dims + 1].
      cdf_offset: int32[num_dims].
      precision: 1 to 16.
      tilt: int8[num_banks, num_dims], the tilt by which each bank's distribution differs from the shared one.
    """
    occurs = occurring_tilts(tilt)
    dim, index = np.nonzero(occurs)
    sizes = np.diff(cdf_start)
    start = np.append(0, np.cumsum(sizes[dim], dtype=np.int64))
    whole = 1 << precision
    tilted = np.empty(start[-1] + BIT_INTERVALS, np.uint32)
    tilted[-BIT_INTERVALS:] = 0, whole // 2, whole, 0, whole
    shared, shared_start = widths_of_cdf(cdf, cdf_start)
    chunks = np.unique(np.searchsorted(start, np.arange(0, start[-1], _ENTRIES_CHUNK)))
    for first, last in itertools.pairwise([*chunks, len(dim)]):
        dims = dim[first:last]
        widths_start = np.append(0, np.cumsum(sizes[dims] - 1))
        place = np.arange(widths_start[-1])
        place += np.repeat(shared_start[:-1][dims] - widths_start[:-1], sizes[dims] - 1)
        widths = tilt_widths(shared[place], widths_start, index[first:last] - MAX_TILT, precision)
        tilted[start[first] : start[last]] = cdf_of_widths(widths, widths_start, precision)
    escape = sizes - 2
    first_uppers = np.zeros(len(dim), np.uint64)
    for interval in range(4):
        upper = tilted[start[:-1] + np.minimum(interval, escape[dim]) + 1]
        first_uppers |= (upper - 1).astype(np.uint64) << np.uint64(16 * interval)
    # Distributions are numbered by dimension, then by tilt.
    number = np.cumsum(occurs, dtype=np.int32).reshape(occurs.shape) - 1
    number = number[np.arange(len(sizes)), tilt + np.int8(MAX_TILT)]
    arrays = CoderArrays(tilted, start.astype(np.int32)[number], first_uppers[number], escape, cdf_offset)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def occurring_tilts(tilt: np.ndarray) -> np.ndarray:
    """Return which tilts, counted from `-MAX_TILT`, a dimension has in some bank: bool[num_dims, 2 * MAX_TILT + 1].

    Args:
      tilt: int8[num_banks, num_dims].
    """
    num_dims = tilt.shape[1]
    occurs = np.zeros((num_dims, 2 * MAX_TILT + 1), bool)
    occurs[np.arange(num_dims), tilt + np.int8(MAX_TILT)] = True
    return occurs
