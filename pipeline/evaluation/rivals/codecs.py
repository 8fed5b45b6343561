"""Codecs that know nothing of the task and store each number by itself, or principal components.

Some are the paper's baselines (Singh et al., ICIP 2020, section 3), which compress the activations of a network that
was trained without a rate. The others are what users of feature warehouses would pick.
"""

from __future__ import annotations

import abc
import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model.metrics import deflated_bytes

# Rows, or columns, whose products are added up at a time.
_CHUNK = 4096
# Of vectors that have more dimensions than there are of them, so many components are found: more than any rival uses.
_MOST_OF_FEW = 4096


class Codec(abc.ABC):
    """Stores vectors, and restores them approximately."""

    @abc.abstractmethod
    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return what is stored for float32[num_videos, num_dims]: an array with as many rows."""

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return float32[num_videos, num_dims] of what `encode` gave."""

    def num_bytes(self, codes: np.ndarray) -> float:
        """Return how many bytes all rows of `encode` take in storage; without a subclass, they are not compressed."""
        return codes.nbytes


class _Deflated(Codec):
    def num_bytes(self, codes: np.ndarray) -> float:
        return deflated_bytes(codes)


class _InParquet(Codec):
    def num_bytes(self, codes: np.ndarray) -> float:
        return parquet_bytes(codes)


class Float32(_Deflated):
    """Lossless: float32, each video deflated by zlib at level 9."""

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return float32[num_videos, num_dims]."""
        return np.asarray(z, np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the same numbers."""
        return codes


class Float16(_Deflated):
    """16 bit: float16, each video deflated by zlib at level 9. Larger numbers become float16's largest ones."""

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return float16[num_videos, num_dims]."""
        limit = np.finfo(np.float16).max
        return np.clip(z, -limit, limit).astype(np.float16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the numbers as float32."""
        return codes.astype(np.float32)


class Float16Parquet(_InParquet, Float16):
    """Float16 in a Parquet column with zstd."""


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized(_Deflated):
    """Scaled to the unit range, rounded to equal bins, each video deflated by zlib at level 9.

    The middles of the first and the last bin are the ends of the range, so that the many zeros after a ReLU stay
    zeros: with 16 bins that begin at the ends, the accuracy was much lower.

    Attributes:
      low: The low end of the range, a number or float32[num_dims]; values outside the range are moved to its ends.
      high: The high end of the range, likewise.
      num_bins: How many bins, 2 to 2**16. Up to 256 an entry takes a byte, else two.
    """

    low: np.ndarray
    high: np.ndarray
    num_bins: int

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the bins, uint8 or uint16[num_videos, num_dims]."""
        unit = (np.asarray(z, np.float64) - self.low) / self._width
        bins = np.rint(np.clip(unit, 0, 1) * (self.num_bins - 1))
        return bins.astype(np.uint8 if self.num_bins <= 256 else np.uint16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the middles of the bins."""
        return (codes / (self.num_bins - 1) * self._width + self.low).astype(np.float32)

    @property
    def _width(self) -> np.ndarray:
        width = np.asarray(self.high, np.float64) - self.low
        return np.where(width > 0, width, 1.0)


class Int8Parquet(_InParquet, Quantized):
    """A byte for each dimension, each with its own range, in a Parquet column with zstd."""


@dataclasses.dataclass(frozen=True, eq=False)
class PrincipalComponents(Codec):
    """PCA: the first principal components as float32. The basis is not counted.

    Attributes:
      mean: float64[num_dims].
      variances: float64[num_components], descending.
      basis: float64[num_dims, num_components], orthonormal.
    """

    mean: np.ndarray
    variances: np.ndarray
    basis: np.ndarray

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the components, float32[num_videos, num_components]."""
        return ((z - self.mean) @ self.basis).astype(np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the vectors that have these components and no others."""
        return (codes @ self.basis.T + self.mean).astype(np.float32)

    def first(self, num_components: int) -> PrincipalComponents:
        """Return the codec of the first components."""
        return PrincipalComponents(self.mean, self.variances[:num_components], self.basis[:, :num_components])


def fit_quantized(z: np.ndarray, num_bins: int) -> Quantized:
    """Return the paper's quantizer, with the one range of all numbers of float32[num_videos, num_dims]."""
    return Quantized(z.min(), z.max(), num_bins)


def fit_int8(z: np.ndarray) -> Int8Parquet:
    """Return the quantizer with a range for each dimension of float32[num_videos, num_dims]."""
    return Int8Parquet(z.min(axis=0), z.max(axis=0), 256)


def fit_principal_components(z: np.ndarray) -> PrincipalComponents:
    """Return all principal components, by the eigenvectors of the full covariance.

    If there are more dimensions than vectors, they are found from the vectors' products with each other instead, which
    give the same components in a smaller matrix. Of these, the first `_MOST_OF_FEW` are returned.

    Args:
      z: float32[num_videos, num_dims], all of the training data.
    """
    mean = np.asarray(np.mean(z, axis=0, dtype=np.float64))
    if len(z) < z.shape[1]:
        return _components_of_few(z, mean)
    covariance = np.zeros((z.shape[1], z.shape[1]))
    for start in range(0, len(z), _CHUNK):
        centred = z[start : start + _CHUNK] - mean
        covariance += centred.T @ centred
    variances, basis = np.linalg.eigh(covariance / len(z))
    return PrincipalComponents(mean, np.maximum(variances[::-1], 0), np.ascontiguousarray(basis[:, ::-1]))


def _components_of_few(z: np.ndarray, mean: np.ndarray) -> PrincipalComponents:
    # With centred rows C, C C' u = n s u where C' C / n has the eigenvector C' u / |C' u| to the same eigenvalue s.
    num_rows, num_dims = z.shape
    products = np.zeros((num_rows, num_rows))
    for start in range(0, num_dims, _CHUNK):
        centred = z[:, start : start + _CHUNK] - mean[start : start + _CHUNK]
        products += centred @ centred.T
    variances, weights = np.linalg.eigh(products / num_rows)
    # The rows add up to 0, so that there is one component less than rows.
    first = slice(None, -min(_MOST_OF_FEW, num_rows - 1) - 1, -1)
    variances, weights = np.maximum(variances[first], 0), weights[:, first]
    basis = np.empty((num_dims, len(variances)))
    for start in range(0, num_dims, _CHUNK):
        part = slice(start, start + _CHUNK)
        basis[part] = (z[:, part] - mean[part]).T @ weights
    norms = np.linalg.norm(basis, axis=0)
    return PrincipalComponents(mean, variances, basis / np.where(norms > 0, norms, 1))


def parquet_bytes(rows: np.ndarray) -> int:
    """Return the size of a Parquet column, compressed with zstd, that stores each row as a binary of fixed size."""
    rows = np.ascontiguousarray(rows)
    width = rows.nbytes // len(rows)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])
    file = io.BytesIO()
    table = pa.table({"features": column})
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
    metadata = pq.ParquetFile(file).metadata
    groups = range(metadata.num_row_groups)
    return sum(metadata.row_group(group).column(0).total_compressed_size for group in groups)
