"""The frozen model: what encodes a video's input vector to bytes, in one immutable file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import threadpoolctl
from safetensors import SafetensorError

from vidpress.model import range_coder, storage
from vidpress.model.features import FeatureSpec
from vidpress.model.range_coding_tables import RangeCodingTables

FORMAT_VERSION = 1

# OpenBLAS gives a row the same bits whatever its companions and its place only for batches of one fixed size,
# computed by one thread. More rows than this gain no speed.
BATCH_SIZE = 128

# Up to here float32 holds every integer; a bottleneck's values are smaller by orders of magnitude.
MAX_Z = 2**24

_HEADER_KEY = "vidpress"
_MODEL_ID_LENGTH = 16


class ModelError(ValueError):
    """A file that is not a usable vidpress model."""


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenModel:
    """A trained bottleneck network with its range coding tables.

    `z = relu(... relu(x @ kernel + bias) ...)`, `z_hat = rint(z)`; a video's code is `z_hat`, range coded.

    Attributes:
      spec: What `x` is made of.
      hidden: `(kernel float32[in, out], bias float32[out])` of each hidden layer, batch normalisation folded in;
        a ReLU follows each. The last one's output is the bottleneck.
      tables: The range coding tables of the bottleneck.
      head: `(kernel float32[num_dims, num_classes], bias float32[num_classes])` of the task's logits on
        `z_hat`, or None.
      metadata: JSON values that tell where the model comes from: lmbda, steps, the training data's fingerprint,
        metrics at freezing.
    """

    spec: FeatureSpec
    hidden: tuple[tuple[np.ndarray, np.ndarray], ...]
    tables: RangeCodingTables
    head: tuple[np.ndarray, np.ndarray] | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.spec.input_size
        if not self.hidden:
            raise ModelError("A model needs at least one hidden layer.")
        layers = [(f"hidden layer {index}", layer) for index, layer in enumerate(self.hidden)]
        if self.head is not None:
            layers.append(("the head", self.head))
        for name, (kernel, bias) in layers:
            if kernel.dtype != np.float32 or bias.dtype != np.float32:
                raise ModelError(f"{name} must be float32, not {kernel.dtype} and {bias.dtype}.")
            if kernel.shape[:-1] != (size,) or bias.shape != kernel.shape[1:]:
                raise ModelError(f"{name} has shapes {kernel.shape} and {bias.shape} behind {size} numbers.")
            if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
                raise ModelError(f"{name} holds NaN or infinity.")
            size = kernel.shape[1]
        num_dims = self.hidden[-1][0].shape[1]
        if self.tables.num_dims != num_dims:
            raise ModelError(f"The tables have {self.tables.num_dims} dimensions, the bottleneck {num_dims}.")

    @property
    def num_dims(self) -> int:
        """Dimensions of the bottleneck."""
        return self.tables.num_dims

    @functools.cached_property
    def model_id(self) -> str:
        """The SHA-256 of the model's file, shortened to 16 hexadecimal digits."""
        return _model_id(self.to_bytes())

    def bottleneck(self, x: np.ndarray) -> np.ndarray:
        """Run the network up to the bottleneck; a row's result does not depend on its companions.

        Args:
          x: float32[num_videos, input_size].

        Returns:
          float32[num_videos, num_dims], `z` before rounding.

        Raises:
          ValueError: If `x` has another shape.
        """
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.spec.input_size:
            raise ValueError(f"x has shape {x.shape}; this model takes [num_videos, {self.spec.input_size}].")
        z = np.empty((len(x), self.num_dims), np.float32)
        batch = np.zeros((BATCH_SIZE, self.spec.input_size), np.float32)
        with _blas_controller().limit(limits=1):
            for start in range(0, len(x), BATCH_SIZE):
                rows = x[start : start + BATCH_SIZE]
                batch[: len(rows)] = rows
                batch[len(rows) :] = 0
                z[start : start + len(rows)] = self._forward(batch)[: len(rows)]
        return z

    def _forward(self, activations: np.ndarray) -> np.ndarray:
        for kernel, bias in self.hidden:
            activations = activations @ kernel
            activations += bias
            np.maximum(activations, 0, out=activations)
        return activations

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Return `z_hat` of input vectors, int32[num_videos, num_dims]; halves round to even.

        Raises:
          ValueError: If an input is so large, or NaN, that its `z` cannot be rounded to an integer.
        """
        z = self.bottleneck(x)
        if not codable(z).all():
            row = int(np.flatnonzero(~codable(z))[0])
            raise ValueError(f"row {row} of x gives z up to {z[row].max()}, beyond {MAX_Z}: its values are too large.")
        return round_z(z)

    def compress(self, x: np.ndarray) -> list[bytes]:
        """Return the codes of input vectors float32[num_videos, input_size]."""
        return range_coder.compress(self.tables, self.quantize(x))

    def decompress(self, codes: Sequence[bytes]) -> np.ndarray:
        """Return `z_hat` of codes, int32[num_videos, num_dims].

        Raises:
          vidpress.model.range_coder.DamagedCodeError: If a code is seen to be damaged.
        """
        return range_coder.decompress(self.tables, codes)

    def logits(self, z_hat: np.ndarray) -> np.ndarray:
        """Return the task head's logits, float32[num_videos, num_classes].

        Raises:
          ValueError: If the model has no head.
        """
        if self.head is None:
            raise ValueError("This model was frozen without its task head.")
        kernel, bias = self.head
        return np.asarray(z_hat, np.float32) @ kernel + bias

    def to_bytes(self) -> bytes:
        """Return the model's file; equal models give equal bytes."""
        tensors = {}
        for index, (kernel, bias) in enumerate(self.hidden):
            tensors[f"hidden.{index}.kernel"] = kernel
            tensors[f"hidden.{index}.bias"] = bias
        if self.head is not None:
            tensors["head.kernel"], tensors["head.bias"] = self.head
        tensors["tables.cdf"] = self.tables.cdf
        tensors["tables.cdf_start"] = self.tables.cdf_start
        tensors["tables.cdf_offset"] = self.tables.cdf_offset
        header = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_json(),
            "architecture": [self.spec.input_size] + [kernel.shape[1] for kernel, _ in self.hidden],
            "num_classes": None if self.head is None else self.head[0].shape[1],
            "precision": self.tables.precision,
            "metadata": self.metadata,
        }
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        header["sha256"] = _content_sha256(header, tensors)
        return safetensors.numpy.save(tensors, {_HEADER_KEY: json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "the model") -> FrozenModel:
        """Read back what `to_bytes` gave.

        Raises:
          ModelError: If it is not such a file, or of a later format; the message says which, and `name`.
        """
        try:
            tensors = safetensors.numpy.load(data)
            header = json.loads(_metadata(data)[_HEADER_KEY])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ModelError(
                f"{name} is not a vidpress model (a .safetensors file that `vidpress train` wrote): {error!r}"
            ) from error
        if header.get("format_version") != FORMAT_VERSION:
            raise ModelError(
                f"{name} has format version {header.get('format_version')}; this vidpress reads {FORMAT_VERSION}: "
                "install the version that wrote it, or a later one."
            )
        sha256 = header.pop("sha256", None)
        if sha256 != _content_sha256(header, tensors):
            raise ModelError(f"{name} is damaged: its content does not fit its checksum. Fetch it again.")
        try:
            model = cls(
                spec=FeatureSpec.from_json(header["spec"]),
                hidden=tuple(
                    (tensors[f"hidden.{index}.kernel"], tensors[f"hidden.{index}.bias"])
                    for index in range(len(header["architecture"]) - 1)
                ),
                tables=RangeCodingTables(
                    cdf=tensors["tables.cdf"],
                    cdf_start=tensors["tables.cdf_start"],
                    cdf_offset=tensors["tables.cdf_offset"],
                    precision=header["precision"],
                ),
                head=(tensors["head.kernel"], tensors["head.bias"]) if "head.kernel" in tensors else None,
                metadata=header["metadata"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{name} is damaged: {error}") from error
        vars(model)["model_id"] = _model_id(data)  # fills the cached property
        return model

    def save(self, uri: str | os.PathLike[str]) -> str:
        """Write the model to a new local file or `gs://` object and return its `model_id`.

        Raises:
          FileExistsError: If there is a file already: a published model is never replaced.
        """
        data = self.to_bytes()
        storage.write_new(uri, data)
        return _model_id(data)

    @classmethod
    def load(cls, uri: str | os.PathLike[str], *, model_id: str | None = None) -> FrozenModel:
        """Load a model from a local path or `gs://` URI.

        Args:
          uri: The file.
          model_id: The identity that the file must have, if given.

        Raises:
          FileNotFoundError: If there is no such file.
          ModelError: If it is no vidpress model, or another one than `model_id`.
        """
        data = storage.read_bytes(uri)
        if model_id is not None and _model_id(data) != model_id:
            raise ModelError(
                f"{os.fspath(uri)} is model {_model_id(data)}, not {model_id}: it was changed, or another one is meant."
            )
        return cls.from_bytes(data, name=os.fspath(uri))


def codable(z: np.ndarray) -> np.ndarray:
    """Return which rows of `z` float32[n, num_dims] can be rounded to integers and coded: bool[n]."""
    return (z <= MAX_Z).all(axis=1)


def round_z(z: np.ndarray) -> np.ndarray:
    """Return `z_hat` of codable `z`, int32 of the same shape; halves round to even."""
    return np.rint(z).astype(np.int32)


@functools.cache
def _blas_controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def _model_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_MODEL_ID_LENGTH]


def _content_sha256(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """Return the free-form metadata of a safetensors file: a length, then JSON, then the tensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})
