"""What the bottleneck is compared with: codecs that know nothing of the task.

The first four are the paper's baselines (Singh et al., ICIP 2020, section 3), which compress the activations of a
network that was trained without a rate. The others are what users of feature warehouses would pick.
"""

from __future__ import annotations

import abc
import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model.deflate import deflated_bytes

# Rows whose covariance is added up at a time.
_CHUNK = 4096

# Each part of a product quantizer's code is the number of one of this many centroids: one byte.
PQ_CENTROIDS = 256

# Faiss asks for at least this many training rows for each centroid. If there are more than 256, it uses a sample.
_PQ_ROWS_PER_CENTROID = 39

# Components that a byte stands for. On YouTube-8M, 2 and 4 were worse and 8 no better (16 and 64 bytes).
_COMPONENTS_PER_BYTE = 16


class Codec(abc.ABC):
    """Stores vectors, and restores them approximately."""

    @abc.abstractmethod
    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return what is stored for float32[num_videos, num_dims]: an array with as many rows."""

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return float32[num_videos, num_dims] of what `encode` gave."""

    def num_bytes(self, codes: np.ndarray) -> int:
        """Return how many bytes all rows of `encode` take in storage; without a subclass, they are not compressed."""
        return codes.nbytes


class _Deflated(Codec):
    def num_bytes(self, codes: np.ndarray) -> int:
        return deflated_bytes(codes)


class _InParquet(Codec):
    def num_bytes(self, codes: np.ndarray) -> int:
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


@dataclasses.dataclass(frozen=True, eq=False)
class ProductQuantizer(Codec):
    """Product quantization: dimensions are cut into parts, and each part is replaced by the nearest of 256 centroids.

    Attributes:
      quantizer: A trained `faiss.ProductQuantizer`.
      num_dims: Dimensions of the vectors; if the quantizer has more, they are filled with zeros.
    """

    quantizer: object
    num_dims: int

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the centroids, uint8[num_videos, num_bytes]."""
        return self.quantizer.compute_codes(_padded(z, self.quantizer.d))  # type: ignore[attr-defined]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the centroids' vectors."""
        return self.quantizer.decode(codes)[:, : self.num_dims]  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True, eq=False)
class RotatedProductQuantizer(Codec):
    """PCA followed by product quantization of the components.

    Attributes:
      rotation: The components, in the order in which the quantizer cuts them into parts.
      quantizer: The quantizer of the components.
    """

    rotation: PrincipalComponents
    quantizer: ProductQuantizer

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the centroids, uint8[num_videos, num_bytes]."""
        return self.quantizer.encode(self.rotation.encode(z))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the vectors of the centroids' components."""
        return self.rotation.decode(self.quantizer.decode(codes))


def fit_quantized(z: np.ndarray, num_bins: int) -> Quantized:
    """Return the paper's quantizer, with the one range of all numbers of float32[num_videos, num_dims]."""
    return Quantized(z.min(), z.max(), num_bins)


def fit_int8(z: np.ndarray) -> Int8Parquet:
    """Return the quantizer with a range for each dimension of float32[num_videos, num_dims]."""
    return Int8Parquet(z.min(axis=0), z.max(axis=0), 256)


def fit_principal_components(z: np.ndarray) -> PrincipalComponents:
    """Return all principal components, by the eigenvectors of the full covariance.

    Args:
      z: float32[num_videos, num_dims], all of the training data.
    """
    mean = np.asarray(np.mean(z, axis=0, dtype=np.float64))
    covariance = np.zeros((z.shape[1], z.shape[1]))
    for start in range(0, len(z), _CHUNK):
        centred = z[start : start + _CHUNK] - mean
        covariance += centred.T @ centred
    variances, basis = np.linalg.eigh(covariance / len(z))
    return PrincipalComponents(mean, np.maximum(variances[::-1], 0), np.ascontiguousarray(basis[:, ::-1]))


def fit_product_quantizer(z: np.ndarray, num_bytes: int) -> ProductQuantizer:
    """Train a product quantizer with faiss.

    Args:
      z: float32[num_videos, num_dims], at least 256 videos.
      num_bytes: Bytes of a code, which is the number of parts that the dimensions are cut into.

    Raises:
      ValueError: If there are too few videos for the centroids, or fewer dimensions than bytes.
    """
    import faiss

    if len(z) < PQ_CENTROIDS:
        raise ValueError(f"{len(z)} videos are too few for product quantization: it needs at least {PQ_CENTROIDS}.")
    num_dims = z.shape[1]
    if num_bytes > num_dims:
        raise ValueError(f"{num_dims} dimensions cannot be quantized to {num_bytes} bytes: use fewer bytes.")
    # Its threads wait for each other in busy loops: if other processes use the cores, one thread is many times as fast
    # as two.
    faiss.omp_set_num_threads(1)
    quantizer = faiss.ProductQuantizer(-(-num_dims // num_bytes) * num_bytes, num_bytes, 8)
    # Otherwise faiss warns about few rows, once for every part.
    quantizer.cp.min_points_per_centroid = min(_PQ_ROWS_PER_CENTROID, len(z) // PQ_CENTROIDS)
    quantizer.train(_padded(z, quantizer.d))
    return ProductQuantizer(quantizer, num_dims)


def fit_rotated_product_quantizer(
    z: np.ndarray, num_bytes: int, components: PrincipalComponents
) -> RotatedProductQuantizer:
    """Train a product quantizer on principal components, divided among its parts so that all carry about as much.

    The parts' products of variances are made similar by eigenvalue allocation (Ge et al., Optimized Product
    Quantization, section 3.2): the largest variance goes to the part with the smallest product so far that has room.

    Args:
      z: float32[num_videos, num_dims].
      num_bytes: Bytes of a code.
      components: All principal components of `z`.

    Raises:
      ValueError: As `fit_product_quantizer`.
    """
    variances = components.variances
    size = max(1, min(len(variances) // num_bytes, _COMPONENTS_PER_BYTE))
    order = balanced_parts(variances[: size * num_bytes], num_bytes)
    rotation = PrincipalComponents(components.mean, variances[order], components.basis[:, order])
    return RotatedProductQuantizer(rotation, fit_product_quantizer(rotation.encode(z), num_bytes))


def balanced_parts(variances: np.ndarray, num_parts: int) -> np.ndarray:
    """Divide dimensions among parts of equal size whose products of variances are similar, by a greedy choice.

    Args:
      variances: float64[num_dims], descending.
      num_parts: How many parts; it divides `num_dims`.

    Returns:
      int64[num_dims], a permutation: the dimensions of the first part, then those of the second, ...
    """
    size = len(variances) // num_parts
    # Relative to the smallest variance: products must grow with every dimension.
    log_variances = np.log(np.maximum(variances, variances[0] * 1e-12) / max(variances[-1], variances[0] * 1e-12))
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    products = np.zeros(num_parts)
    for dim, log_variance in enumerate(log_variances):
        part = min((part for part in range(num_parts) if len(parts[part]) < size), key=lambda part: products[part])
        parts[part].append(dim)
        products[part] += log_variance
    return np.concatenate(parts).astype(np.int64)


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


def _padded(z: np.ndarray, num_dims: int) -> np.ndarray:
    z = np.ascontiguousarray(z, np.float32)
    return z if z.shape[1] == num_dims else np.pad(z, ((0, 0), (0, num_dims - z.shape[1])))
