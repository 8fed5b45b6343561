"""Rate-aware rounding: of the two integers about an activation, the one that is worth its bits.

The nearest integer is the one with the least error, whatever it costs. A dimension that hardly any video of a bank
switches on costs many bits there, and to round it down to 0 instead costs little: video coders call this
rate-distortion optimised quantisation. Decoders need not know.
"""

from __future__ import annotations

import functools

import numpy as np

from vidpress.model.coding.range_coding_tables import RangeCodingTables
from vidpress.model.coding.table_banks import list_switched_on
from vidpress.model.coding.table_widths import UNITS_PER_BIT, code_lengths
from vidpress.model.compiled import jit

# The exact `z - z_hat`, below 1, is rounded to float64 before it is compared.
_ROUNDING = 2.0**-50


def round_to_cheaper(
    tables: RangeCodingTables,
    z: np.ndarray,
    z_hat: np.ndarray,
    bank: np.ndarray,
    rounding_lmbda: float,
    bounds: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Replace nearest integers by their neighbours where those have less of `(integer - z)^2 + rounding_lmbda * bits`.

    Only the neighbour towards a dimension's likeliest value is looked at, and only if both are in the table.

    Args:
      tables: The tables, whose bits are counted.
      z: float32[n, num_dims].
      z_hat: int32[n, num_dims], the nearest integers; changed in place.
      bank: uint8[n], the bank of each row.
      rounding_lmbda: What a bit costs, in squared rounding steps.
      bounds: float32[n] and float32[num_dims], by whose product float32 `z` is off at most.

    Returns:
      What is too near for float32 `z` to decide, and was left: rows, columns, directions (1 or -1), and thresholds
      float64: the neighbour in the direction is the better one if `direction * (z - z_hat)` is above the threshold. The
      thresholds are the same numbers on every machine: integers, and three operations in float64.
    """
    _, start, _, escape, cdf_offset = tables.coder_arrays
    arrays = start, escape, cdf_offset, tables.likeliest_value, _saved_bits(tables)
    return _round_to_cheaper(z, z_hat, bank, arrays, float(rounding_lmbda) / UNITS_PER_BIT, *bounds)


@functools.lru_cache(maxsize=1)
def _saved_bits(tables: RangeCodingTables) -> np.ndarray:
    """Return how much shorter the neighbour's code is, int32, for each interval of the banks' distributions."""
    cdf, start, _, escape, cdf_offset = tables.coder_arrays
    first, index = np.unique(start, return_index=True)
    dim = index % tables.num_dims
    sizes = escape[dim] + 2  # with the escape, and the end
    dim = np.repeat(dim, sizes)
    place = np.arange(len(dim)) - np.repeat(first, sizes)
    # What is no interval has no positive width.
    widths = np.diff(cdf[: len(dim) + 1].astype(np.int64))
    bits = code_lengths(np.maximum(widths, 1), tables.precision)
    direction = np.sign((tables.likeliest_value - cdf_offset)[dim] - place)
    return (bits - bits[np.arange(len(dim)) + direction]).astype(np.int32)


@jit
def _round_to_cheaper(z, z_hat, bank, arrays, cost, row_bounds, column_bounds):
    start, escape, cdf_offset, likeliest_value, saved_bits = arrays
    rows, columns, directions = [0 for _ in range(0)], [0 for _ in range(0)], [0 for _ in range(0)]
    thresholds = [0.0 for _ in range(0)]
    is_on, on = np.empty(z.shape[1], np.uint8), np.empty(z.shape[1], np.uint32)
    for row in range(len(z)):
        num_on = list_switched_on(z_hat[row], likeliest_value, is_on, on)
        for column in on[:num_on]:
            value = z_hat[row, column]
            interval = value - cdf_offset[column]
            if interval < 0 or interval >= escape[column]:
                continue
            saved = saved_bits[start[bank[row], column] + interval]
            if saved <= 0:
                continue
            # (value + direction - z)^2 - (value - z)^2 is 1 - 2 * direction * (z - value).
            direction = 1 if value < likeliest_value[column] else -1
            threshold = 0.5 * (1.0 - cost * saved)
            beyond = direction * (np.float64(z[row, column]) - value) - threshold
            # Of NaN, neither is greater.
            if not abs(beyond) > np.float64(row_bounds[row] * column_bounds[column]) + _ROUNDING:
                rows.append(row)
                columns.append(column)
                directions.append(direction)
                thresholds.append(threshold)
            elif beyond > 0:
                z_hat[row, column] = value + direction
    return np.array(rows, np.int64), np.array(columns, np.int64), np.array(directions, np.int64), np.array(thresholds)
