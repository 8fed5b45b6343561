"""The decoder of the input: from stored integers back to the features that were put in, equal on every machine."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import threadpoolctl

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen import model_file

# Sums of integers up to here are exact in float32, and up to here in float64, in any order.
_EXACT_IN_FLOAT32 = 2**24
_EXACT_IN_FLOAT64 = 2**53

_INT8_MAX = 127

_FILE_VERSION = 1
# Decoders of YouTube-8M's input have 2.3 MB for 2000 dimensions.
MAX_FILE_BYTES = 2**30

# Ridge penalties that are tried, as shares of the mean variance of a dimension, on one video in so many.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HELD_OUT_EVERY = 10


class DecoderError(VidpressError, ValueError):
    """A file that is not a usable decoder of the input."""


@dataclasses.dataclass(frozen=True, eq=False)
class InputDecoder:
    """Restores a video's input vector from its integers: `(z_hat @ kernel) * scale + bias`.

    The product is one of integers, and exact. The rest is float64, rounded once to float32. So all machines restore the
    same numbers.

    Attributes:
      kernel: int8[num_dims, input_size].
      scale: float32[input_size], what one unit of the product stands for.
      bias: float32[input_size].

    Raises:
      ValueError: If shapes or types do not fit, or a number is not finite.
    """

    kernel: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    def __post_init__(self) -> None:
        size = self.kernel.shape[-1:]
        if self.kernel.dtype != np.int8 or self.kernel.ndim != 2 or not self.scale.shape == self.bias.shape == size:
            raise ValueError(
                f"a decoder of {self.kernel.dtype}{list(self.kernel.shape)} cannot have a scale {self.scale.shape} and "
                f"a bias {self.bias.shape}"
            )
        for name in ("scale", "bias"):
            values = getattr(self, name)
            if values.dtype != np.float32 or not np.isfinite(values).all():
                raise ValueError(f"the decoder's {name} is not float32, or holds NaN or infinity")

    @property
    def num_dims(self) -> int:
        """Dimensions of the bottleneck."""
        return self.kernel.shape[0]

    @property
    def input_size(self) -> int:
        """Numbers in a video's input vector."""
        return self.kernel.shape[1]

    def restore(self, z_hat: np.ndarray) -> np.ndarray:
        """Return the input vectors that integers stand for.

        Args:
          z_hat: int32[num_videos, num_dims].

        Returns:
          float32[num_videos, input_size].

        Raises:
          ValueError: If `z_hat` has another shape.
        """
        if z_hat.ndim != 2 or z_hat.shape[1] != self.num_dims:
            raise ValueError(f"z_hat has shape {z_hat.shape}; this decoder takes [num_videos, {self.num_dims}].")
        largest = _INT8_MAX * int(np.abs(z_hat, dtype=np.int64).sum(axis=1).max(initial=0))
        if largest > _EXACT_IN_FLOAT64:
            raise ValueError(f"z_hat holds {np.abs(z_hat).max()}, which no encoder writes.")
        dtype = np.float32 if largest <= _EXACT_IN_FLOAT32 else np.float64
        product = z_hat.astype(dtype) @ self._kernel_float32.astype(dtype, copy=False)
        restored = product.astype(np.float64) * self.scale + self.bias
        return restored.astype(np.float32)

    @functools.cached_property
    def _kernel_float32(self) -> np.ndarray:
        return self.kernel.astype(np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors by their names in files."""
        return {"kernel": self.kernel, "scale": self.scale, "bias": self.bias}


@dataclasses.dataclass(frozen=True, eq=False)
class DecoderFile:
    """A decoder of the input in a file of its own, which lies beside the shards of a data set.

    Attributes:
      model_id: The model whose integers it restores.
      spec: What the input vector is made of.
      decoder: The decoder.
    """

    model_id: str
    spec: FeatureSpec
    decoder: InputDecoder

    def to_bytes(self) -> bytes:
        """Return the bytes of the file. Equal decoders give equal bytes."""
        header = {"format_version": _FILE_VERSION, "model_id": self.model_id, "spec": self.spec.to_json()}
        return model_file.to_bytes(header, self.decoder.tensors())

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "the decoder") -> DecoderFile:
        """Read back what `to_bytes` gave.

        Raises:
          DecoderError: If it is not such a file, or has a later format. The message says which, and names `name`.
        """
        try:
            fields = strict_json.decode(model_file.header_text(data), dict[str, Any])
            version = fields.get("format_version")
        except ValueError as error:
            raise DecoderError(f"{name} is not a decoder of vidpress: {error}. Fetch it again.") from error
        if version != _FILE_VERSION:
            raise DecoderError(
                f"{name} has format version {json.dumps(version)[:20]}; this vidpress reads {_FILE_VERSION}: install "
                "the version that wrote it, or a later one."
            )
        try:
            header = strict_json.decode(json.dumps(fields), _FileHeader)
            spec = FeatureSpec.from_json(header.spec)
            tensors = model_file.tensors_of(data, model_file.expected_decoder(None, spec.input_size))
            del fields["sha256"]
            if header.sha256 != model_file.content_sha256(fields, tensors):
                raise ValueError("its content does not fit its checksum")
            return cls(header.model_id, spec, InputDecoder(**tensors))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DecoderError(f"{name} is damaged: {error}. Fetch it again.") from error


@dataclasses.dataclass(frozen=True)
class _FileHeader:
    format_version: int
    model_id: str
    spec: dict[str, Any]
    sha256: str


class _Moments:
    """Sums over videos, from which a linear regression and its error follow."""

    def __init__(self, num_dims: int, input_size: int):
        self.count = 0
        self.z = np.zeros(num_dims)
        self.x = np.zeros(input_size)
        self.zz = np.zeros((num_dims, num_dims))
        self.zx = np.zeros((num_dims, input_size))
        self.xx = 0.0

    def add(self, z: np.ndarray, x: np.ndarray) -> None:
        self.count += len(z)
        self.z += z.sum(axis=0)
        self.x += x.sum(axis=0)
        self.zz += z.T @ z
        self.zx += z.T @ x
        self.xx += float(np.square(x).sum())

    def __add__(self, other: _Moments) -> _Moments:
        total = _Moments(len(self.z), len(self.x))
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(other, name))
        return total

    def regression(self, penalty: float) -> np.ndarray:
        """Return the weights float64[num_dims, input_size] of the ridge regression of `x` on `z`."""
        mean_z, mean_x = self.z / self.count, self.x / self.count
        covariance = self.zz / self.count - np.outer(mean_z, mean_z)
        ridge = penalty * max(np.trace(covariance) / len(covariance), np.finfo(np.float32).tiny)
        covariance[np.diag_indices_from(covariance)] += ridge
        return np.linalg.solve(covariance, self.zx / self.count - np.outer(mean_z, mean_x))

    def bias(self, weights: np.ndarray) -> np.ndarray:
        return (self.x - self.z @ weights) / self.count

    def error(self, weights: np.ndarray, bias: np.ndarray) -> float:
        """Return the sum over videos of the squared error of `z @ weights + bias`."""
        predicted = np.einsum("io,io->", weights, self.zz @ weights) + 2 * self.z @ weights @ bias
        return float(
            self.xx
            - 2 * np.einsum("io,io->", weights, self.zx)
            - 2 * self.x @ bias
            + predicted
            + self.count * bias @ bias
        )


def fit_input_decoder(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> InputDecoder:
    """Fit a decoder by ridge regression. The penalty is the one with the smallest error on every tenth video.

    Args:
      parts: `(z_hat int32[num_videos, num_dims], x float32[num_videos, input_size])` of some videos at a time.

    Raises:
      ValueError: If there are no videos.
    """
    fitted: _Moments | None = None
    held_out: _Moments | None = None
    with threadpoolctl.threadpool_limits(1, "blas"):  # the sums' order does not depend on the number of cores
        for z_hat, x in parts:
            if fitted is None or held_out is None:
                sizes = z_hat.shape[1], x.shape[1]
                fitted, held_out = _Moments(*sizes), _Moments(*sizes)
            apart = (np.arange(len(z_hat)) + fitted.count + held_out.count) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
            for moments, rows in ((fitted, ~apart), (held_out, apart)):
                moments.add(z_hat[rows].astype(np.float64), x[rows].astype(np.float64))
        if fitted is None or held_out is None or not fitted.count:
            raise ValueError("A decoder needs at least one video to be fitted to.")
        errors = []
        for penalty in _PENALTIES:
            weights = fitted.regression(penalty)
            errors.append(held_out.error(weights, fitted.bias(weights)))
        everything = fitted + held_out
        weights = everything.regression(_PENALTIES[int(np.argmin(errors))])
        scale = (np.abs(weights).max(axis=0) / _INT8_MAX).astype(np.float32)
        scale[scale == 0] = 1
        kernel = np.rint(weights / scale).clip(-_INT8_MAX, _INT8_MAX).astype(np.int8)
        return InputDecoder(kernel, scale, everything.bias(kernel * scale.astype(np.float64)).astype(np.float32))
