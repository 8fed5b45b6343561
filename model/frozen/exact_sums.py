"""The sums that define what a layer gives: float64, in one order, the same on every machine.

A layer's `z[j]` is `relu(sum over k of x[k] * w[k, j] + b[j])`. The sum is made of 32 partial sums, which begin with 0:
the i-th adds the products of k = i, i + 32, i + 64 and so on, in this order. They are added from the first to the
last, and then the bias. Each of these operations is rounded to the nearest float64, as IEEE 754 defines it.

The product of two float32 numbers is a float64 number: it has 48 bits at most, and an exponent within range. So it is
the same whether it is rounded before it is added (as here: see `compiled.jit`) or not. No sum is out of range either.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit

# Vector registers of any length hold some of the partial sums at a time.
NUM_PARTS = 32

_ROWS_AT_ONCE = 128


@jit
def exact_sums(
    x: np.ndarray, columns: np.ndarray, bias: np.ndarray, rows: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """Return `z` of a layer at some rows and columns.

    Args:
      x: float32[n, in], or float64 where the layer below is not rounded.
      columns: float32[out, in], the kernel's columns.
      bias: float32[out].
      rows: int[m], rows of `x`.
      numbers: int[m], numbers of columns; this is fastest if equal ones are next to each other.

    Returns:
      float64[m].
    """
    sums = np.empty(len(rows))
    parts = np.empty(NUM_PARTS)
    for i in range(len(rows)):
        sums[i] = _exact_sum(x[rows[i]], columns[numbers[i]], bias[numbers[i]], parts)
    return sums


@jit
def exact_layer(x: np.ndarray, columns: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return all `z` of a layer, float64[n, out]; the arguments are as for `exact_sums`."""
    outputs = np.empty((len(x), len(columns)))
    parts = np.empty(NUM_PARTS)
    for first in range(0, len(x), _ROWS_AT_ONCE):
        for number in range(len(columns)):
            for row in range(first, min(first + _ROWS_AT_ONCE, len(x))):
                outputs[row, number] = _exact_sum(x[row], columns[number], bias[number], parts)
    return outputs


@jit
def _exact_sum(x, column, bias, parts):
    parts[:] = 0
    whole = len(x) // NUM_PARTS * NUM_PARTS
    for first in range(0, whole, NUM_PARTS):
        for part in range(NUM_PARTS):
            parts[part] += np.float64(x[first + part]) * np.float64(column[first + part])
    for k in range(whole, len(x)):
        parts[k - whole] += np.float64(x[k]) * np.float64(column[k])
    total = np.float64(0)
    for part in range(NUM_PARTS):
        total += parts[part]
    total += np.float64(bias)
    return np.float64(0) if total <= 0 else total  # NaN stays
