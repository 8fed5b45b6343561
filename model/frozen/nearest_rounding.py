"""Rounding to the nearest integer, the same on every machine: by fast sums if these decide, otherwise by exact ones.

A fast sum is off by at most its bound (`dense_layers`). If its distance from the nearest half, where rounding changes,
is larger than that, the exact sum lies on the same side. All others are summed exactly (`exact_sums`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.frozen.dense_layers import Dense, dense

# Up to here float32 represents every integer; a layer's activations are smaller by orders of magnitude.
MAX_Z = 2**24

# Lower layers are rounded to this share of their activations' root mean square, or down to half of it.
_STEP = 1 / 8

_COLUMNS_AT_ONCE = 32


def round_to_nearest(layer: Dense, x: np.ndarray, z: np.ndarray, row_bounds: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Round a layer's exact sums to the nearest integers, halves to even.

    Args:
      layer: The layer.
      x: Its input, float32[n, in], or float64 if that is not rounded.
      z: float32[n, out], its outputs.
      row_bounds: float32[n], how far they are off, in units of `layer.column_bounds`.
      out: [n, out], where the integers go: int32, or float32, which may be `z` itself.

    Returns:
      bool[n], which rows could be rounded: no sum of them is NaN or beyond `MAX_Z`.
    """
    usable = np.ones(len(z), bool)
    rows, columns = _round(z, row_bounds, layer.column_bounds, out)
    if len(rows):
        exact = layer.exact_at(x, rows, columns)
        fits = exact <= MAX_Z  # false for NaN; bounds are such that larger values are always summed exactly
        usable[rows[~fits]] = False
        out[rows, columns] = np.rint(np.where(fits, exact, 0))
    return usable


@jit
def _round(z, row_bounds, column_bounds, out):
    """Round to integers, and return the rows and columns of the values that the bounds leave undecided."""
    num_rows, num_columns = z.shape
    rows, columns = [0 for _ in range(0)], [0 for _ in range(0)]
    for i in range(num_rows):
        for first in range(0, num_columns, _COLUMNS_AT_ONCE):
            end = min(first + _COLUMNS_AT_ONCE, num_columns)
            num_undecided = 0
            for j in range(first, end):
                num_undecided += _undecided(z[i, j], row_bounds[i] * column_bounds[j])
            if num_undecided:
                for j in range(first, end):
                    if _undecided(z[i, j], row_bounds[i] * column_bounds[j]):
                        rows.append(i)
                        columns.append(j)
            for j in range(first, end):
                out[i, j] = np.rint(z[i, j])
    return np.array(rows, np.int64), np.array(columns, np.int64)


@jit
def _undecided(z, bound):
    # Rounding this distance to float32 does not move it across a bound that is float32. NaN is never greater.
    return not (np.float32(0.5) - abs(z - np.rint(z)) > bound)


def fit_steps(
    hidden: Sequence[tuple[np.ndarray, np.ndarray]], x: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return the same network, with its lower layers' activations in units of a step that they are then rounded to.

    The step is a power of two, from a sixteenth to an eighth of the root mean square of the activations that are not 0:
    the error that this adds to the bottleneck is far smaller than that of the bottleneck's own rounding.

    Args:
      hidden: `(kernel float32[in, out], bias float32[out])` of each hidden layer.
      x: float32[n, in], inputs.

    Returns:
      The layers; the outputs of the last one stay the same.
    """
    layers = []
    scale = np.float32(1)
    for kernel, bias in hidden[:-1]:
        x = dense(x, kernel, bias)
        active = x[x > 0]
        step = 1.0
        if len(active):
            step = 2.0 ** np.floor(np.log2(_STEP * np.sqrt(np.mean(np.square(active, dtype=np.float64)))))
        layers.append((kernel * (scale / np.float32(step)), bias / np.float32(step)))
        scale = np.float32(step)
    kernel, bias = hidden[-1]
    return (*layers, (kernel * scale, bias))
