"""Vector quantizers of faiss: a part of a vector, or all of it, is replaced by the nearest of some centroids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from vidpress.pipeline.evaluation.rivals.codecs import Codec, PrincipalComponents

# Each part of a product quantizer's code is the number of one of this many centroids: one byte.
PQ_CENTROIDS = 256

# Faiss asks for at least this many training rows for each centroid. If there are more than 256, it uses a sample.
_PQ_ROWS_PER_CENTROID = 39

# Components that a byte of a product quantizer stands for. On YouTube-8M, 2 and 4 were worse and 8 no better (16 and
# 64 bytes).
COMPONENTS_PER_BYTE = 16

# The same of the others, whose training takes hours on all dimensions. Faiss's own advice is 4.
COMPONENTS_PER_BYTE_OF_SLOW = 8

# Bytes of a part of a local-search quantizer: its search grows fast with them.
BYTES_A_SEARCH = 4

# How many codes a residual quantizer keeps in mind while it looks for the best one. Faiss's default is 5.
_BEAM = 2

# A rotation, and a local-search quantizer, is trained on at most this many vectors, the rotation in this many rounds.
_ROTATION_ROWS = 16_384
_ROTATION_ROUNDS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Quantizer(Codec):
    """A quantizer of faiss.

    Attributes:
      quantizer: A trained `faiss.Quantizer`.
      num_dims: Dimensions of the vectors; if the quantizer has more, they are filled with zeros.
    """

    quantizer: Any
    num_dims: int

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the centroids, uint8[num_videos, num_bytes]."""
        return self.quantizer.compute_codes(_padded(z, self.quantizer.d))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the centroids' vectors."""
        return self.quantizer.decode(codes)[:, : self.num_dims]


@dataclasses.dataclass(frozen=True, eq=False)
class Rotation:
    """A rotation that faiss has trained.

    Attributes:
      transform: A trained `faiss.LinearTransform`, orthonormal.
      num_dims: Dimensions of the vectors; if the transform takes more, they are filled with zeros.
    """

    transform: Any
    num_dims: int

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the rotated vectors."""
        return self.transform.apply(_padded(z, self.transform.d_in))

    def decode(self, rotated: np.ndarray) -> np.ndarray:
        """Return the vectors that `encode` turns into these."""
        return self.transform.reverse_transform(np.ascontiguousarray(rotated))[:, : self.num_dims]


@dataclasses.dataclass(frozen=True, eq=False)
class RotatedQuantizer(Codec):
    """Another basis, and a quantizer of the vectors in it.

    Attributes:
      rotation: What turns the vectors, in the order in which the quantizer cuts them into parts.
      quantizer: The quantizer of what is turned.
    """

    rotation: PrincipalComponents | Rotation
    quantizer: Codec

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the centroids, uint8[num_videos, num_bytes]."""
        return self.quantizer.encode(self.rotation.encode(z))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the vectors that the centroids stand for."""
        return self.rotation.decode(self.quantizer.decode(codes))


def _faiss(num_videos: int) -> ModuleType:
    """Return faiss, on one thread.

    Its threads wait for each other in busy loops: if other processes use the cores, one thread is many times as fast as
    two.

    Raises:
      ValueError: If there are too few videos for the centroids.
    """
    import faiss

    if num_videos < PQ_CENTROIDS:
        raise ValueError(f"{num_videos} videos are too few for product quantization: it needs at least {PQ_CENTROIDS}.")
    faiss.omp_set_num_threads(1)
    return faiss


def _check_bytes(num_dims: int, num_bytes: int) -> None:
    if num_bytes > num_dims:
        raise ValueError(f"{num_dims} dimensions cannot be quantized to {num_bytes} bytes: use fewer bytes.")


def fit_product_quantizer(z: np.ndarray, num_bytes: int) -> Quantizer:
    """Train a product quantizer: dimensions are cut into parts, each replaced by the nearest of 256 centroids.

    Args:
      z: float32[num_videos, num_dims], at least 256 videos.
      num_bytes: Bytes of a code, which is the number of parts that the dimensions are cut into.

    Raises:
      ValueError: If there are too few videos for the centroids, or fewer dimensions than bytes.
    """
    faiss = _faiss(len(z))
    num_dims = z.shape[1]
    _check_bytes(num_dims, num_bytes)
    quantizer = faiss.ProductQuantizer(-(-num_dims // num_bytes) * num_bytes, num_bytes, 8)
    # Otherwise faiss warns about few rows, once for every part.
    quantizer.cp.min_points_per_centroid = min(_PQ_ROWS_PER_CENTROID, len(z) // PQ_CENTROIDS)
    quantizer.train(_padded(z, quantizer.d))
    return Quantizer(quantizer, num_dims)


def fit_optimized_product_quantizer(z: np.ndarray, num_bytes: int) -> RotatedQuantizer:
    """Train a product quantizer and the rotation before it (Ge et al., Optimized Product Quantization).

    Args:
      z: As for `fit_product_quantizer`.
      num_bytes: Bytes of a code.

    Raises:
      ValueError: As `fit_product_quantizer`.
    """
    faiss = _faiss(len(z))
    num_dims = z.shape[1]
    _check_bytes(num_dims, num_bytes)
    rows = z[np.linspace(0, len(z) - 1, min(len(z), _ROTATION_ROWS)).astype(np.int64)]
    rotation = faiss.OPQMatrix(-(-num_dims // num_bytes) * num_bytes, num_bytes)
    rotation.niter = _ROTATION_ROUNDS
    rotation.train(_padded(rows, rotation.d_in))
    rotated = Rotation(rotation, num_dims)
    return RotatedQuantizer(rotated, fit_product_quantizer(rotated.encode(z), num_bytes))


def fit_residual_quantizer(z: np.ndarray, num_bytes: int) -> Quantizer:
    """Train a residual quantizer: 256 centroids for the vectors, 256 for what these leave, and so on.

    Args:
      z: As for `fit_product_quantizer`.
      num_bytes: Bytes of a code, which is the number of steps.

    Raises:
      ValueError: If there are too few videos for the centroids.
    """
    faiss = _faiss(len(z))
    quantizer = faiss.ResidualQuantizer(z.shape[1], num_bytes, 8)
    quantizer.max_beam_size = _BEAM
    quantizer.train(np.ascontiguousarray(z, np.float32))
    return Quantizer(quantizer, z.shape[1])


def fit_local_search_quantizer(z: np.ndarray, num_bytes: int) -> Quantizer:
    """Train local-search quantizers, a code of four bytes for each part of the dimensions.

    A part is the sum of four centroids, one of each of four sets of 256 (Martinez et al., LSQ++).

    Args:
      z: As for `fit_product_quantizer`.
      num_bytes: Bytes of a code, a multiple of 4.

    Raises:
      ValueError: If there are too few videos for the centroids, too few dimensions, or no such number of bytes.
    """
    faiss = _faiss(len(z))
    num_dims, num_parts = z.shape[1], num_bytes // BYTES_A_SEARCH
    if num_bytes % BYTES_A_SEARCH:
        raise ValueError(f"{num_bytes} bytes are not whole parts of a local-search quantizer: use a multiple of 4.")
    _check_bytes(num_dims, num_bytes)
    quantizer = faiss.ProductLocalSearchQuantizer(-(-num_dims // num_parts) * num_parts, num_parts, BYTES_A_SEARCH, 8)
    rows = z[np.linspace(0, len(z) - 1, min(len(z), _ROTATION_ROWS)).astype(np.int64)]
    quantizer.train(_padded(rows, quantizer.d))
    return Quantizer(quantizer, num_dims)


def fit_to_components(
    fit: Callable[[np.ndarray, int], Codec],
    z: np.ndarray,
    num_bytes: int,
    components: PrincipalComponents,
    components_per_byte: int,
) -> RotatedQuantizer:
    """Train a quantizer on the first principal components, divided among its bytes so that all carry about as much.

    The products of the variances of each byte's components are made similar by eigenvalue allocation (Ge et al.,
    Optimized Product Quantization, section 3.2): the largest variance goes to the byte with the smallest product so far
    that has room.

    Args:
      fit: Trains the quantizer.
      z: float32[num_videos, num_dims].
      num_bytes: Bytes of a code.
      components: All principal components of `z`.
      components_per_byte: How many components there are for each byte; fewer, if there are not as many.

    Raises:
      ValueError: As `fit`.
    """
    variances = components.variances
    num_parts = min(len(variances), num_bytes)
    size = min(len(variances) // num_parts, components_per_byte)
    order = balanced_parts(variances[: size * num_parts], num_parts)
    rotation = PrincipalComponents(components.mean, variances[order], components.basis[:, order])
    return RotatedQuantizer(rotation, fit(rotation.encode(z), num_bytes))


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


def _padded(z: np.ndarray, num_dims: int) -> np.ndarray:
    z = np.ascontiguousarray(z, np.float32)
    return z if z.shape[1] == num_dims else np.pad(z, ((0, 0), (0, num_dims - z.shape[1])))
