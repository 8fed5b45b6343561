"""Rate-aware rounding: of the two integers around an activation, the one that is worth its bits.

The nearest integer is the one with the least error, whatever it costs. A dimension that hardly any video of a bank
switches on costs many bits there, and rounding it down to 0 instead costs little accuracy. Video coders call this
rate-distortion optimised quantisation. Decoders need not know about it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.tables.banks import list_switched_on
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.model.tables.widths import UNITS_PER_BIT, code_lengths

# The exact `z - z_hat`, below 1, is rounded to float64 before it is compared.
_ROUNDING = 2.0**-50


class Undecided(NamedTuple):
    """Activations for which float32 is not precise enough to decide.

    Attributes:
      row: int64[k].
      column: int64[k].
      direction: int64[k], 1 or -1: on which side the neighbour is.
      threshold: float64[k]. The neighbour is the better one if `direction * (z - z_hat)` is above it.
    """

    row: np.ndarray
    column: np.ndarray
    direction: np.ndarray
    threshold: np.ndarray


def round_to_cheaper(
    tables: RangeCodingTables,
    z: np.ndarray,
    z_hat: np.ndarray,
    bank: np.ndarray,
    rounding_lmbda: float,
    bounds: tuple[np.ndarray, np.ndarray],
) -> Undecided:
    """Replace nearest integers by their neighbours where `(integer - z)^2 + rounding_lmbda * bits` is less for these.

    Only the neighbour towards a dimension's likeliest value is considered, and only if both are in the table.

    Args:
      tables: The tables, under which the bits are counted.
      z: float32[n, num_dims].
      z_hat: int32[n, num_dims], the nearest integers; changed in place.
      bank: uint8[n], the bank of each row.
      rounding_lmbda: Cost of a bit, in squared rounding steps.
      bounds: float32[n] and float32[num_dims]; their product bounds the error of float32 `z`.

    Returns:
      The values that are too close for float32 `z` to decide; they are not changed. The thresholds are the same numbers
      on every machine: integers, and three operations in float64.
    """
    cost = float(rounding_lmbda) / UNITS_PER_BIT
    lists = _round_to_cheaper(
        z, z_hat, bank, tables.coder_arrays, tables.likeliest_value, _saved_bits(tables), cost, *bounds
    )
    return Undecided(*lists)


@functools.lru_cache(maxsize=1)
def _saved_bits(tables: RangeCodingTables) -> np.ndarray:
    """Return how much shorter the neighbour's code is, int32, for each interval of the banks' distributions."""
    arrays = tables.coder_arrays
    first, index = np.unique(arrays.start, return_index=True)
    dim = index % tables.num_dims
    sizes = arrays.escape[dim] + 2  # with the escape, and the end
    dim = np.repeat(dim, sizes)
    place = np.arange(len(dim)) - np.repeat(first, sizes)
    # A place that is not an interval does not have a positive width.
    widths = np.diff(arrays.cdf[: len(dim) + 1].astype(np.int64))
    bits = code_lengths(np.maximum(widths, 1), tables.precision)
    direction = np.sign((tables.likeliest_value - arrays.cdf_offset)[dim] - place)
    return (bits - bits[np.arange(len(dim)) + direction]).astype(np.int32)


@jit
def _round_to_cheaper(z, z_hat, bank, tables, likeliest_value, saved_bits, cost, row_bounds, column_bounds):
    rows, columns, directions = [0 for _ in range(0)], [0 for _ in range(0)], [0 for _ in range(0)]
    thresholds = [0.0 for _ in range(0)]
    is_on, on = np.empty(z.shape[1], np.uint8), np.empty(z.shape[1], np.uint32)
    for row in range(len(z)):
        num_on = list_switched_on(z_hat[row], likeliest_value, is_on, on)
        for column in on[:num_on]:
            value = z_hat[row, column]
            interval = value - tables.cdf_offset[column]
            if interval < 0 or interval >= tables.escape[column]:
                continue
            direction = 1 if value < likeliest_value[column] else -1
            if interval + direction == tables.escape[column]:
                continue
            saved = saved_bits[tables.start[bank[row], column] + interval]
            if saved <= 0:
                continue
            # (value + direction - z)^2 - (value - z)^2 is 1 - 2 * direction * (z - value).
            threshold = 0.5 * (1.0 - cost * saved)
            beyond = direction * (np.float64(z[row, column]) - value) - threshold
            # For NaN, both comparisons are false.
            if not abs(beyond) > np.float64(row_bounds[row] * column_bounds[column]) + _ROUNDING:
                rows.append(row)
                columns.append(column)
                directions.append(direction)
                thresholds.append(threshold)
            elif beyond > 0:
                z_hat[row, column] = value + direction
    return np.array(rows, np.int64), np.array(columns, np.int64), np.array(directions, np.int64), np.array(thresholds)
