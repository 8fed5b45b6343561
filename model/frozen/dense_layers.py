"""Dense layers with a ReLU, fast, and with proven error bounds: in NumPy, or in matrix units.

`exact_sums` defines what a layer gives. A fast layer sums in float32, in an order that depends on the processor.
But whatever the order, and whether multiplications and additions are fused or not, a sum of rounded products is off by
at most `gamma(k) = k u / (1 - k u)` times the sum of the products' magnitudes, where u = 2^-24 is float32's unit
roundoff and k the greatest number of roundings that a product goes through on its way into the sum (Higham, "Accuracy
and Stability of Numerical Algorithms", 2nd edition, sections 3.1 and 4.2). By Cauchy and Schwarz that sum of
magnitudes, with the bias as one more product, is at most `|(x, 1)| * |(w, b)|`: a number for each row, times one for
each column.

What is assumed: NumPy's `matmul` of float32 rounds each product and each addition to the nearest float32, or better,
and does not multiply by another formula, such as Strassen's. Denormal numbers may be flushed. `matrix_units` says what
is assumed there.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.frozen import exact_sums, matrix_units
from vidpress.model.frozen.matrix_units import has_matrix_units

_UNIT = 2.0**-24

# NumPy sums over this many inputs at a time, and these sums are added: just as fast, and more precise.
_DEPTH_AT_ONCE = 384

# What a bound includes besides the products' share: inputs that are float64 are first rounded to float32, by 2^-24 of
# each. `exact_sums` and the bound itself round in float64: 2^-52 for each input, and some more.
_INPUT_ERROR = 2.0**-23
_FLOAT64_ERROR = 2.0**-52
_SLACK = 1 + 2.0**-10
# Numbers below 2^-126 may be flushed to 0, or be off by as much. A thousand million of those make less than what this
# adds to a column's norm, times `_INPUT_ERROR` and a row's norm, which is at least 1.
_LEAST_NORM = 2.0**-60


def dense(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return `relu(x @ kernel + bias)` of float32 arrays; what is too large becomes infinity or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        activations = x[:, :_DEPTH_AT_ONCE] @ kernel[:_DEPTH_AT_ONCE]
        part = None
        for first in range(_DEPTH_AT_ONCE, len(kernel), _DEPTH_AT_ONCE):
            if part is not None:
                activations += part
            depth = slice(first, first + _DEPTH_AT_ONCE)
            part = np.matmul(x[:, depth], kernel[depth], out=part)
        if part is None:
            activations += bias
            return np.maximum(activations, 0, out=activations)
    _finish(activations, part, bias)
    return activations


@jit
def _finish(activations, part, bias):
    """Add the last part and the bias, and apply the ReLU, in one go."""
    for row in range(len(activations)):
        for column in range(len(bias)):
            value = activations[row, column] + part[row, column] + bias[column]
            activations[row, column] = np.float32(0) if value < 0 else value  # NaN stays


class Dense:
    """`dense` in float32 with certain weights, by NumPy.

    A subclass that multiplies in another way has its own `multiply`, and `row_bounds` or `num_roundings`.

    Args:
      kernel: float32[in, out].
      bias: float32[out].

    Attributes:
      column_bounds: float32[out]: an output is off by at most its row's bound times its column's.
      num_roundings: How many roundings a product goes through at most.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        self._kernel = kernel
        self._bias = bias
        self._columns = np.ascontiguousarray(kernel.T)
        squares = np.einsum("ij,ij->i", self._columns, self._columns, dtype=np.float64)
        norms = np.sqrt(squares + np.square(bias, dtype=np.float64))
        self._column_norms = norms * (1 + 2.0**-20) + _LEAST_NORM
        self.column_bounds = _round_up(self._column_norms)
        # A product, the sum of a part, the sums of the parts, and the bias.
        self.num_roundings = min(len(kernel), _DEPTH_AT_ONCE) + -(-len(kernel) // _DEPTH_AT_ONCE)
        self._common_error = _INPUT_ERROR + _FLOAT64_ERROR * (len(kernel) + 2 * exact_sums.NUM_PARTS)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return float32[n, out] for `x` float32[n, in]."""
        return self.bounded(x)[0]

    def bounded(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs, and bounds of how far they are off.

        Args:
          x: float32[n, in].

        Returns:
          float32[n, out], and float32[n], the row bounds: times `column_bounds`, they are the bounds of the outputs. If
          a sum may leave float32's range, its bound is above 2^24; if a row has NaN or infinity, it is NaN or infinite.
        """
        outputs = self.multiply(x)
        row_norms = _row_norms(x)
        return outputs, _round_up(self.row_bounds(x, row_norms) + row_norms * self._common_error)

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """Return float32[n, out] for `x` float32[n, in]."""
        return dense(x, self._kernel, self._bias)

    def row_bounds(self, x: np.ndarray, row_norms: np.ndarray) -> np.ndarray:
        """Return bounds of the errors of `multiply` alone, in units of the columns' norms.

        Args:
          x: float32[n, in].
          row_norms: float64[n], of (x, 1).

        Returns:
          float64[n].
        """
        return gamma(self.num_roundings) * row_norms

    def exact(self, x: np.ndarray) -> np.ndarray:
        """Return exactly what `exact_sums` defines, float64[n, out], for `x` float32[n, in] or float64."""
        return exact_sums.exact_layer(np.ascontiguousarray(x), self._columns, self._bias)

    def exact_at(self, x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return exactly what `exact_sums` defines at some rows and columns, int[m] each: float64[m]."""
        # Sorted by columns, each of which is then read only once. NumPy sorts a short type by radix.
        order = np.argsort(columns.astype(np.min_scalar_type(len(self._bias))), kind="stable")
        outputs = np.empty(len(order))
        rows, columns = rows[order], columns[order]
        outputs[order] = exact_sums.exact_sums(np.ascontiguousarray(x), self._columns, self._bias, rows, columns)
        return outputs


class SplitDense(Dense):
    """`Dense` by products of bfloat16.

    Of `x * w`, with `x = x_hi + x_lo + x_rest` and `w` likewise, `x_lo * w_lo + x_rest * (w_hi + w_lo) + x * w_rest` is
    left out: by Cauchy and Schwarz at most `|x_lo| |w_lo| + |x_rest| |w| (1 + 2^-17) + |x| |w_rest|`. These norms are
    computed, those of the weights only once.

    Raises:
      RuntimeError: If this processor or process cannot use matrix units (`has_matrix_units`).
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        if not has_matrix_units():
            raise RuntimeError("SplitDense needs a processor with AMX, and Linux from 5.16 on: use `dense`.")
        super().__init__(kernel, bias)
        self._tiles = matrix_units.split_kernel(kernel)
        # The largest over the columns of what is left out, in units of a column's norm.
        self._low, self._rest = (matrix_units.split_norms(self._columns) / self._column_norms[:, None]).max(axis=0)

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """Return float32[n, out] for `x` float32[n, in]."""
        outputs = matrix_units.multiply(x, self._tiles, self._bias)
        return super().multiply(x) if outputs is None else outputs

    def row_bounds(self, x: np.ndarray, row_norms: np.ndarray) -> np.ndarray:
        """Return bounds of the errors of `multiply` alone, in units of the columns' norms: float64[n]."""
        low, rest = matrix_units.split_norms(x).T
        left_out = low * self._low + rest * _SLACK + row_norms * self._rest
        # The magnitudes of the parts are greater than those of the products, by 1 + 3 * 2^-8 + 2 * 2^-16 at most.
        rounding = gamma(matrix_units.num_roundings(len(self._kernel))) * (1 + 2.0**-6)
        bounds = left_out + rounding * row_norms
        if row_norms.max(initial=0) < matrix_units.MAX_INPUT:
            return bounds
        return np.maximum(bounds, super().row_bounds(x, row_norms))  # what cannot be split is multiplied by NumPy


def gamma(roundings: int) -> float:
    """Return the largest error of a float32 sum after so many roundings of each term, relative to their magnitudes."""
    return roundings * _UNIT / (1 - roundings * _UNIT) if roundings * _UNIT < 1 else np.inf


def _row_norms(x: np.ndarray) -> np.ndarray:
    """Return upper bounds of the norms of (x, 1), float64[n], for `x` float32[n, k]."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", x, x).astype(np.float64)
    # The sum is too small by a share of itself at most.
    share = gamma(x.shape[1])
    return np.sqrt(1 + squares / (1 - share) if share < 1 else np.full(len(x), np.inf)) * (1 + 2.0**-20)


def _round_up(bounds: np.ndarray) -> np.ndarray:
    """Return float32 numbers above float64 ones, by so much that the rounded products of two are above, too."""
    with np.errstate(over="ignore"):
        return np.nextafter((bounds * _SLACK).astype(np.float32), np.float32(np.inf))
