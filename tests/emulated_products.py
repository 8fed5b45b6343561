"""Matrix products of other processors, in NumPy: kinds of layers as `dense_layers` has them, and matrix units.

Each claims a bound as its products' arithmetic allows. `EMULATED` lists them, and `with_kind` puts one into a model;
`Undecided` claims none, so that everything is summed exactly; `TooFarOff` claims one that it does not keep.
"""

import dataclasses
from unittest import mock

import numpy as np

from vidpress.model.frozen import dense_layers, matrix_units
from vidpress.model.frozen.dense_layers import Dense, SplitDense

_TINY = np.float32(2.0**-126)


def flushed(values):
    return np.where(np.abs(values) < _TINY, np.float32(0), values)


class _Sums(Dense):
    """A product after the other, in an order of its own; all roundings of the whole depth are allowed."""

    def __init__(self, kernel, bias):
        super().__init__(kernel, bias)
        self.num_roundings = len(kernel) + 1

    def order(self):
        return np.arange(len(self._kernel))

    def add(self, sums, x, weights):
        return sums + x * weights

    def multiply(self, x):
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.zeros((len(x), len(self._bias)), np.float32)
            for k in self.order():
                sums = self.add(sums, x[:, k, None], self._kernel[k])
            return np.maximum(sums + self._bias, 0)


class FromTheFirst(_Sums):
    pass


class FromTheLast(_Sums):
    def order(self):
        return super().order()[::-1]


class InRandomOrder(_Sums):
    def order(self):
        return np.random.default_rng(0).permutation(len(self._kernel))


class Fused(_Sums):
    """Multiplies and adds with one rounding."""

    def add(self, sums, x, weights):
        exact = sums.astype(np.float64) + x.astype(np.float64) * weights.astype(np.float64)
        return exact.astype(np.float32)


class Flushing(_Sums):
    """Takes denormal numbers for 0, and leaves none."""

    def add(self, sums, x, weights):
        return flushed(sums + flushed(flushed(x) * flushed(weights)))


class Pairwise(_Sums):
    """Sums halves of halves, as trees."""

    def multiply(self, x):
        with np.errstate(over="ignore", invalid="ignore"):
            terms = np.append(x, np.ones((len(x), 1), np.float32), axis=1)[:, :, None] * np.append(
                self._kernel, self._bias[None], axis=0
            )
            while terms.shape[1] > 1:
                half = -(-terms.shape[1] // 2)
                rest = terms[:, half:]
                terms = terms[:, :half].copy()
                terms[:, : rest.shape[1]] += rest
            return np.maximum(terms[:, 0], 0)


class InParts(_Sums):
    """As `Dense` sums on another processor: any order, but the parts that it makes; so it claims no more than that."""

    def __init__(self, kernel, bias):
        super().__init__(kernel, bias)
        self.num_roundings = Dense(kernel, bias).num_roundings

    def multiply(self, x):
        sums = np.zeros((len(x), len(self._bias)), np.float32)
        rng = np.random.default_rng(1)
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(self._kernel), dense_layers._DEPTH_AT_ONCE):
                part = np.zeros_like(sums)
                end = min(first + dense_layers._DEPTH_AT_ONCE, len(self._kernel))
                for k in rng.permutation(np.arange(first, end)):
                    part = part + x[:, k, None] * self._kernel[k]
                sums = sums + part
            return np.maximum(sums + self._bias, 0)


class Undecided(Dense):
    """Claims nothing."""

    def row_bounds(self, x, row_norms):
        return np.full(len(x), np.inf)


class TooFarOff(Dense):
    """Is off by twice of what it claims."""

    def multiply(self, x):
        outputs = super().multiply(x)
        row_norms = np.sqrt(1 + np.square(x, dtype=np.float64).sum(axis=1))
        return outputs + (2 * self.row_bounds(x, row_norms)[:, None] * self.column_bounds).astype(np.float32)


def with_kind(model, kind):
    """The model with another kind of fast layers."""
    model = dataclasses.replace(model)
    vars(model)["_fast_layers"] = [kind(*layer) for layer in model.hidden]
    return model


class Units:
    """Tiles, and TDPBF16PS as Intel's manual has it, or with sums that products are added to one by one."""

    def __init__(self, one_by_one=False):
        self._tiles = np.zeros((8, 16, 64), np.uint8)
        self._one_by_one = one_by_one

    def _rows(self, array, offset, stride):
        bytes_ = array.reshape(-1).view(np.uint8)
        assert offset >= 0
        assert offset + 15 * stride + 64 <= len(bytes_)
        return np.lib.stride_tricks.as_strided(bytes_[offset:], (16, 64), (stride, 1))

    def load(self, tile, array, offset, stride):
        self._tiles[tile] = self._rows(array, offset, stride)

    def store(self, tile, array, offset, stride):
        self._rows(array, offset, stride)[:] = self._tiles[tile]

    def zero(self, tile):
        self._tiles[tile] = 0

    def add_products(self, sums, a, b):
        a, b = (
            flushed((self._tiles[tile].view(np.uint16).astype(np.uint32) << 16).view(np.float32)) for tile in (a, b)
        )
        with np.errstate(all="ignore"):
            # [pair, row, column, even or odd]
            products = a.reshape(16, 16, 2).transpose(1, 0, 2)[:, :, None] * b.reshape(16, 1, 16, 2)
            products = flushed(products)
            total = self._tiles[sums].view(np.float32)
            if self._one_by_one:
                for pair in products:
                    total[:] = flushed(flushed(total + pair[..., 0]) + pair[..., 1])
                return
            part = np.zeros((16, 16, 2), np.float32)
            for pair in products:
                part = flushed(part + pair)
            total[:] = flushed(flushed(total) + flushed(part[..., 0] + part[..., 1]))

    def patches(self):
        """Return the patches that let `matrix_units` run on these, its instructions apart as it is written."""
        instructions = {
            "_load": self.load,
            "_store": self.store,
            "_zero": self.zero,
            "_add_products": self.add_products,
            "_load_config": lambda config: None,
            "_release": lambda: None,
        }
        in_python = ("_multiply", "_multiply_tiles", "_store_sums", "_add_four_products", "_add_once")
        functions = {name: getattr(matrix_units, name).py_func for name in in_python}
        return mock.patch.multiple(matrix_units, **instructions, **functions)


class EmulatedSplit(SplitDense):
    """`SplitDense` as it is, on emulated matrix units."""

    def __init__(self, kernel, bias):
        with mock.patch.object(dense_layers, "has_matrix_units", return_value=True):
            super().__init__(kernel, bias)

    def multiply(self, x):
        with Units().patches():
            return super().multiply(x)


EMULATED = [FromTheFirst, FromTheLast, InRandomOrder, Fused, Flushing, Pairwise, InParts, EmulatedSplit]
KINDS = [Dense, *EMULATED, *([SplitDense] if dense_layers.has_matrix_units() else [])]
