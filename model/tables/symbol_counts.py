"""Counts of the values of each dimension of `z_hat`, to which range coding tables are fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

_CHUNK = 1 << 20  # symbols counted at a time


@dataclasses.dataclass(frozen=True, eq=False)
class SymbolCounts:
    """How often each dimension took each value. Counts of parts of the data add up to those of the whole.

    Attributes:
      num_dims: Dimensions.
      num_symbols: Symbols counted in each dimension.
      dim: int32[k], sorted.
      value: int32[k], sorted within a dimension.
      count: int64[k], at least 1.
    """

    num_dims: int
    num_symbols: int
    dim: np.ndarray
    value: np.ndarray
    count: np.ndarray

    def __add__(self, other: SymbolCounts) -> SymbolCounts:
        if self.num_dims != other.num_dims:
            raise ValueError(f"Counts of {self.num_dims} and of {other.num_dims} dimensions cannot be added.")
        return _sum_counts((self, other))

    def bits(self) -> float:
        """The empirical factorised entropy: the sum over the dimensions of their values' entropies, in bits."""
        return float((self.count * (np.log2(self.num_symbols) - np.log2(self.count))).sum() / max(self.num_symbols, 1))


def count_symbols(z_hat: np.ndarray) -> SymbolCounts:
    """Count the values of each dimension.

    Args:
      z_hat: Integers [n, ..., num_dims], within int32.

    Returns:
      Counts, which can be added to others.

    Raises:
      ValueError: If `z_hat` is of another shape or type, or has values beyond int32.
    """
    z_hat = np.asarray(z_hat)
    if z_hat.ndim < 2 or z_hat.shape[-1] == 0 or z_hat.dtype.kind not in "iu":
        raise ValueError(f"z_hat must be integers [n, ..., num_dims], not {z_hat.dtype}{list(z_hat.shape)}.")
    num_dims = z_hat.shape[-1]
    rows = z_hat.reshape(-1, num_dims)
    step = max(1, _CHUNK // num_dims)
    parts = [_count_rows(rows[start : start + step]) for start in range(0, max(len(rows), 1), step)]
    return _sum_counts(parts)


def _count_rows(rows: np.ndarray) -> SymbolCounts:
    # Most values are 0: only the others are sorted.
    row, dim = np.nonzero(rows)
    value = rows[row, dim].astype(np.int64)
    if len(value) and not -(2**31) <= value.min() <= value.max() < 2**31:
        raise ValueError(f"z_hat has values from {value.min()} to {value.max()}, beyond int32: training diverged?")
    key, count = np.unique((dim << 32) + (value + 2**31), return_counts=True)
    num_dims = rows.shape[1]
    zeros = len(rows) - np.bincount(dim, minlength=num_dims)
    key = np.concatenate([key, (np.flatnonzero(zeros) << 32) + 2**31])
    return _from_keys(num_dims, len(rows), key, np.concatenate([count, zeros[zeros > 0]]))


def _sum_counts(parts: Sequence[SymbolCounts]) -> SymbolCounts:
    key = np.concatenate([(part.dim.astype(np.int64) << 32) + (part.value.astype(np.int64) + 2**31) for part in parts])
    count = np.concatenate([part.count for part in parts])
    return _from_keys(parts[0].num_dims, sum(part.num_symbols for part in parts), key, count)


def _from_keys(num_dims: int, num_symbols: int, key: np.ndarray, count: np.ndarray) -> SymbolCounts:
    key, inverse = np.unique(key, return_inverse=True)
    total = np.zeros(len(key), np.int64)
    np.add.at(total, inverse.reshape(-1), count)
    value = ((key & 0xFFFFFFFF) - 2**31).astype(np.int32)
    return SymbolCounts(num_dims, num_symbols, (key >> 32).astype(np.int32), value, total)
