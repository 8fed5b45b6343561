"""Rate-aware rounding: of the two integers about an activation, the one that is worth its bits.

The nearest integer is the one with the least error, whatever it costs. A dimension that hardly any video of a bank
switches on costs many bits there, and to round it down to 0 instead costs little: video coders call this
rate-distortion optimised quantisation. Decoders need not know.
"""

from __future__ import annotations

import functools

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.range_coding_tables import RangeCodingTables
from vidpress.model.table_widths import UNITS_PER_BIT, code_lengths


def round_to_cheaper(
    tables: RangeCodingTables,
    z: np.ndarray,
    z_hat: np.ndarray,
    bank: np.ndarray,
    rounding_lmbda: float,
    margin: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Replace nearest integers by their neighbours where those have less of `(integer - z)^2 + rounding_lmbda * bits`.

    Only the neighbour towards a dimension's likeliest value is looked at, and only if both are in the table.

    Args:
      tables: The tables, whose bits are counted.
      z: float32[n, num_dims].
      z_hat: int32[n, num_dims], the nearest integers; changed in place.
      bank: uint8[n], the bank of each row.
      rounding_lmbda: What a bit costs, in squared rounding steps.
      margin: float32[n] and float32[num_dims], of whose product float32 `z` may be off.

    Returns:
      What is too near for float32 `z` to decide, and was left: rows, columns, directions (1 or -1), and thresholds
      float64: the neighbour in the direction is the better one if `direction * (z - z_hat)` is above the threshold.
    """
    cdf, start, _, escape, cdf_offset = tables.coder_arrays
    cost = float(rounding_lmbda) / UNITS_PER_BIT
    bits = _lengths_of_widths(tables.precision)
    arrays = cdf, start, escape, cdf_offset, tables.likeliest_value
    return _round_to_cheaper(z, z_hat, bank, arrays, bits, cost, *margin)


@functools.cache
def _lengths_of_widths(precision: int) -> np.ndarray:
    """Return the code length of every width, int32[2^precision + 1]; no interval has width 0."""
    return np.append(0, code_lengths(np.arange(1, (1 << precision) + 1), precision)).astype(np.int32)


@jit
def _round_to_cheaper(z, z_hat, bank, arrays, bits, cost, row_margin, column_margin):
    cdf, start, escape, cdf_offset, likeliest_value = arrays
    rows, columns, directions = [0 for _ in range(0)], [0 for _ in range(0)], [0 for _ in range(0)]
    thresholds = [0.0 for _ in range(0)]
    for row in range(len(z)):
        for column in range(z.shape[1]):
            value = z_hat[row, column]
            if value == likeliest_value[column]:
                continue
            interval = value - cdf_offset[column]
            if interval < 0 or interval >= escape[column]:
                continue
            direction = 1 if value < likeliest_value[column] else -1
            first = start[bank[row], column] + interval
            other = first + direction
            saved = bits[cdf[first + 1] - cdf[first]] - bits[cdf[other + 1] - cdf[other]]
            if saved <= 0:
                continue
            # (value + direction - z)^2 - (value - z)^2 is 1 - 2 * direction * (z - value).
            threshold = 0.5 * (1.0 - cost * saved)
            beyond = direction * (np.float64(z[row, column]) - value) - threshold
            if abs(beyond) < row_margin[row] * column_margin[column]:
                rows.append(row)
                columns.append(column)
                directions.append(direction)
                thresholds.append(threshold)
            elif beyond > 0:
                z_hat[row, column] = value + direction
    return np.array(rows, np.int64), np.array(columns, np.int64), np.array(directions, np.int64), np.array(thresholds)
