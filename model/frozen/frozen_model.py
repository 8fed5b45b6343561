"""The frozen model, one file that never changes: it encodes a video's input vector to bytes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from vidpress.model import strict_json
from vidpress.model.coding import range_coder
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.files import file_kinds, storage
from vidpress.model.frozen import dense_layers, model_file
from vidpress.model.frozen.bottleneck_rounding import round_bottleneck
from vidpress.model.frozen.dense_layers import Dense, SplitDense, dense
from vidpress.model.frozen.input_decoder import InputDecoder
from vidpress.model.frozen.nearest_rounding import MAX_Z, round_to_nearest
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Version 2 has banks of tables, 3 rate-aware rounding, 4 lower layers that are rounded, 5 a decoder of the input, 6
# `top_k` and heads that are a scale for each class.
FORMAT_VERSION = 6
_READABLE_VERSIONS = (1, 2, 3, 4, 5, 6)

# The loaded models that are in use, by their identity.
_LOADED: weakref.WeakValueDictionary[str, FrozenModel] = weakref.WeakValueDictionary()
_LOADING = threading.Lock()

# Size as JSON. With the rest of the header, and quoted in it, that is less than what is read at most.
MAX_METADATA_BYTES = 2**18


class UncodableError(VidpressError, ValueError):
    """Inputs whose activations cannot be rounded to integers, because they are NaN or beyond `MAX_Z`.

    Attributes:
      usable: bool[num_videos], which inputs can be encoded.
    """

    def __init__(self, usable: np.ndarray):
        row = int(np.flatnonzero(~usable)[0])
        super().__init__(f"row {row} of x gives activations that are NaN or beyond {MAX_Z}: its values are too large.")
        self.usable = usable


class ModelError(VidpressError, ValueError):
    """A file that is not a usable vidpress model."""


# Kernel and bias of a layer, and those of each layer.
Layer: TypeAlias = tuple[np.ndarray, np.ndarray]
Layers: TypeAlias = tuple[Layer, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FrozenModel:
    """A trained bottleneck network with its range coding tables.

    `z = relu(... relu(x @ kernel + bias) ...)`, and `z_hat` is `z` rounded. A video's code is its `z_hat`, range coded.
    The tables may have several banks, which are sets of tables; each video uses the one that makes its code shortest.

    Attributes:
      spec: The features that make up `x`.
      hidden: `(kernel float32[in, out], bias float32[out])` of each hidden layer, with batch normalisation folded in.
        A ReLU follows each. The output of the last one is the bottleneck.
      tables: The range coding tables of the bottleneck.
      head: `(kernel float32[num_dims, num_classes], bias float32[num_classes])`, which gives the logits of the task
        for `z_hat`; or None.
      metadata: JSON values that say where the model comes from: lmbda, steps, a fingerprint of the training data,
        metrics at freezing.
      rounding_lmbda: How much a bit costs in rounding, in squared rounding steps (`rate_aware_rounding`). With 0,
        `z_hat` are the nearest integers.
      rounds_every_layer: Whether the activations of every hidden layer are rounded to the nearest integers, halves to
        even, before they go to the next layer. If not, they are computed in float64, which takes several times as
        long.
      decoder: Restores `x` from `z_hat`, approximately; or None.
      top_k: How many values of each video's `z` are kept, the largest; the others become 0. With 0, all are kept.
    """

    spec: FeatureSpec
    hidden: Layers
    tables: RangeCodingTables
    head: tuple[np.ndarray, np.ndarray] | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounding_lmbda: float = 0.0
    rounds_every_layer: bool = False
    decoder: InputDecoder | None = None
    top_k: int = 0

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
                raise ModelError(
                    f"{name} has shapes {kernel.shape} and {bias.shape}, but its input has {size} numbers."
                )
            if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
                raise ModelError(f"{name} holds NaN or infinity.")
            size = kernel.shape[1]
        object.__setattr__(self, "rounding_lmbda", float(self.rounding_lmbda))
        if not (self.rounding_lmbda >= 0 and math.isfinite(self.rounding_lmbda)):
            raise ModelError(f"rounding_lmbda={self.rounding_lmbda} must not be negative.")
        try:
            strict_json.decode(json.dumps(self.metadata), Any, max_bytes=MAX_METADATA_BYTES)
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"metadata must be JSON values that can be read back: {error}") from error
        num_dims = self.hidden[-1][0].shape[1]
        if self.tables.num_dims != num_dims:
            raise ModelError(f"The tables have {self.tables.num_dims} dimensions, the bottleneck {num_dims}.")
        if self.top_k not in range(num_dims + 1):
            raise ModelError(f"top_k={self.top_k} must be from 0 to {num_dims}, the bottleneck's dimensions.")
        object.__setattr__(self, "top_k", int(self.top_k))
        sizes = (num_dims, self.spec.input_size)
        if self.decoder is not None and self.decoder.kernel.shape != sizes:
            raise ModelError(f"The decoder has shape {self.decoder.kernel.shape}, not {sizes}.")

    def __repr__(self) -> str:
        sizes = [self.spec.input_size, *(kernel.shape[1] for kernel, _ in self.hidden)]
        return f"<FrozenModel {self.model_id}: {self.spec}, {' -> '.join(map(str, sizes))}>"

    @property
    def num_dims(self) -> int:
        """Dimensions of the bottleneck."""
        return self.tables.num_dims

    @functools.cached_property
    def model_id(self) -> str:
        """The SHA-256 of the model's file, shortened to 16 hexadecimal digits."""
        return model_file.model_id(self.to_bytes())

    def bottleneck(self, x: np.ndarray) -> np.ndarray:
        """Run the network up to the bottleneck.

        Args:
          x: float32[num_videos, input_size].

        Returns:
          float32[num_videos, num_dims], `z` before rounding. Its last bits depend on the processor and on a row's
          place in the batch. The result of `quantize` does not.

        Raises:
          ValueError: If `x` has another shape.
        """
        activations = self._checked(x)
        for index, (kernel, bias) in enumerate(self.hidden):
            if index and self.rounds_every_layer:
                activations = np.rint(activations, out=activations)
            activations = dense(activations, kernel, bias)
        return activations

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Return `z_hat` of input vectors: the network's `z` as `exact_sums` defines it, rounded.

        Values are rounded to the nearest integers, halves to even. With `top_k`, only the largest are kept. With a
        `rounding_lmbda`, a value then moves to a neighbour that costs fewer bits, if that is worth the error, in the
        bank that codes the nearest integers shortest.

        The result of a row depends only on that row: not on the other rows, its place in the batch, the processor or
        the number of threads. Matrix products in float32 do depend on these. They decide a rounding only where it is
        proven that they are near enough (`dense_layers`, `nearest_rounding`).

        Args:
          x: float32[num_videos, input_size].

        Returns:
          int32[num_videos, num_dims].

        Raises:
          ValueError: If `x` has another shape.
          UncodableError: If an input is NaN or infinite, or so large that an activation cannot be rounded.
        """
        x = self._checked(x)
        usable = np.isfinite(x).all(axis=1)
        if not usable.all():
            x = np.where(usable[:, None], x, np.float32(0))
        *lower_layers, last_layer = self._fast_layers
        inputs = x  # of the next layer, exactly
        for layer in lower_layers:
            if self.rounds_every_layer:
                z, row_bounds = layer.bounded(inputs)
                rounded = round_to_nearest(layer, inputs, z, row_bounds, out=z)
                z[~rounded] = 0
                usable &= rounded
                inputs = z
            else:
                inputs = layer.exact(inputs)
        z_hat, rounded = round_bottleneck(
            last_layer, inputs, self.tables, rounding_lmbda=self.rounding_lmbda, top_k=self.top_k
        )
        usable &= rounded
        if not usable.all():
            raise UncodableError(usable)
        return z_hat

    @functools.cached_property
    def _fast_layers(self) -> Sequence[Dense]:
        kind = SplitDense if dense_layers.has_matrix_units() else Dense
        return [kind(*layer) for layer in self.hidden]

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.spec.input_size:
            raise ValueError(f"x has shape {x.shape}; this model takes [num_videos, {self.spec.input_size}].")
        return x

    def compress(self, x: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Return the codes of input vectors, and the bank of tables that each code uses.

        Args:
          x: float32[num_videos, input_size].

        Returns:
          num_videos strings; uint8[num_videos].

        Raises:
          ValueError: As `quantize` does.
        """
        encoded = range_coder.encode_cheapest(self.tables, self.quantize(x))
        return encoded.strings(), encoded.bank

    def decompress(self, codes: Sequence[bytes], bank: np.ndarray | None = None) -> np.ndarray:
        """Return `z_hat` of codes, int32[num_videos, num_dims].

        Args:
          codes: num_videos strings.
          bank: uint8[num_videos], the bank of each code; None if the model has only one.

        Raises:
          vidpress.model.coding.range_coder.DamagedCodeError: If a code is found to be damaged.
          ValueError: If there is no such bank.
        """
        return range_coder.decompress(self.tables, codes, bank=bank)

    def logits(self, z_hat: np.ndarray) -> np.ndarray:
        """Return the task head's logits, float32[num_videos, num_classes].

        Raises:
          ValueError: If the model has no head.
        """
        if self.head is None:
            raise ValueError("This model was frozen without its task head.")
        kernel, bias = self.head
        return np.asarray(z_hat, np.float32) @ kernel + bias

    def restore(self, z_hat: np.ndarray) -> np.ndarray:
        """Return the input vectors that integers stand for, float32[num_videos, input_size] (`InputDecoder`).

        Raises:
          ValueError: If the model has no decoder.
        """
        if self.decoder is None:
            raise ValueError("This model has no decoder of its input: freeze it again with this vidpress.")
        return self.decoder.restore(z_hat)

    def to_bytes(self) -> bytes:
        """Return the bytes of the model's file. Equal models give equal bytes."""
        tensors = {}
        for index, (kernel, bias) in enumerate(self.hidden):
            tensors[f"hidden.{index}.kernel"] = kernel
            tensors[f"hidden.{index}.bias"] = bias
        diagonal_head = self.head is not None and model_file.is_diagonal(self.head[0])
        if self.head is not None:
            kernel, tensors["head.bias"] = self.head
            tensors["head.kernel"] = kernel.diagonal() if diagonal_head else kernel
        tensors["tables.cdf"] = self.tables.cdf
        tensors["tables.cdf_start"] = self.tables.cdf_start
        tensors["tables.cdf_offset"] = self.tables.cdf_offset
        tensors["tables.bank_tilt"] = self.tables.bank_tilt
        if self.decoder is not None:
            tensors |= {f"decoder.{name}": tensor for name, tensor in self.decoder.tensors().items()}
        header = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_json(),
            "architecture": [self.spec.input_size] + [kernel.shape[1] for kernel, _ in self.hidden],
            "num_classes": None if self.head is None else self.head[0].shape[1],
            "precision": self.tables.precision,
            "rounding_lmbda": self.rounding_lmbda,
            "rounds_every_layer": self.rounds_every_layer,
            "has_decoder": self.decoder is not None,
            "top_k": self.top_k,
            "diagonal_head": diagonal_head,
            "metadata": self.metadata,
        }
        return model_file.to_bytes(header, tensors)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "the model") -> FrozenModel:
        """Read back what `to_bytes` gave.

        Raises:
          ModelError: If it is not such a file, or has a later format. The message says which, and names `name`.
        """
        return cls._parse(data, name, model_file.model_id(data), verified=False)

    @classmethod
    def _parse(cls, data: bytes, name: str, model_id: str, *, verified: bool) -> FrozenModel:
        try:
            text = model_file.header_text(data)
            fields = strict_json.decode(text, dict[str, Any])
        except ValueError as error:
            kind = file_kinds.stand_in(data[: file_kinds.START_BYTES])
            why = f"it {kind}." if kind else error
            raise ModelError(
                f"{name} is not a vidpress model (a .safetensors file that `vidpress train` wrote): {why}"
            ) from error
        if fields.get("format_version") not in _READABLE_VERSIONS:
            raise ModelError(
                f"{name} has format version {json.dumps(fields.get('format_version'))[:20]}; this vidpress reads "
                f"{', '.join(map(str, _READABLE_VERSIONS))}: install the version that wrote it, or a later one."
            )
        try:
            header, tensors = model_file.parse(data, text)
            fields.pop("sha256")
            if not verified and header.sha256 != model_file.content_sha256(fields, tensors):
                raise ValueError("its content does not fit its checksum. Fetch it again.")
            tables = RangeCodingTables(
                cdf=tensors["tables.cdf"],
                cdf_start=tensors["tables.cdf_start"],
                cdf_offset=tensors["tables.cdf_offset"],
                precision=header.precision,
                **({} if header.format_version == 1 else {"bank_tilt": tensors["tables.bank_tilt"]}),
            )
            if not tables.has_bank.any():
                raise ValueError("its tables have no bank")
            head_kernel = tensors.get("head.kernel")
            model = cls(
                spec=FeatureSpec.from_json(header.spec),
                hidden=tuple(
                    (tensors[f"hidden.{index}.kernel"], tensors[f"hidden.{index}.bias"])
                    for index in range(len(header.architecture) - 1)
                ),
                tables=tables,
                head=(np.diag(head_kernel) if header.diagonal_head else head_kernel, tensors["head.bias"])
                if head_kernel is not None
                else None,
                rounding_lmbda=header.rounding_lmbda,
                rounds_every_layer=header.rounds_every_layer,
                decoder=InputDecoder(*(tensors[f"decoder.{name}"] for name in ("kernel", "scale", "bias")))
                if header.has_decoder
                else None,
                top_k=header.top_k,
                metadata=header.metadata,
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{name} is damaged: {error}") from error
        vars(model)["model_id"] = model_id  # fills the cached property
        return model

    def save(self, uri: str | os.PathLike[str]) -> str:
        """Write the model to a new local file or `gs://` object and return its `model_id`.

        Raises:
          FileExistsError: If the file exists already. A published model is never replaced.
        """
        data = self.to_bytes()
        storage.write_new(uri, data)
        return model_file.model_id(data)

    @classmethod
    def load(cls, uri: str | os.PathLike[str], *, model_id: str | None = None) -> FrozenModel:
        """Load a model from a local path or `gs://` URI. A model with this id that is loaded already is shared.

        Args:
          uri: The file.
          model_id: The id that the model must have, if given.

        Raises:
          FileNotFoundError: If there is no such file.
          ModelError: If it is not a vidpress model, or is another model than `model_id`.
        """
        # The launcher and all workers of a process share one model, and those that wait need not load it.
        with _LOADING:
            model = None if model_id is None else _LOADED.get(model_id)
            if model is None:
                data = storage.read_bytes(uri, max_bytes=model_file.MAX_BYTES)
                found = model_file.model_id(data)
                if model_id not in (None, found):
                    raise ModelError(
                        f"{os.fspath(uri)} is model {found}, not {model_id}: it was changed, or it is the wrong file."
                    )
                model = cls._parse(data, os.fspath(uri), found, verified=model_id is not None)
                _LOADED[found] = model
            return model
