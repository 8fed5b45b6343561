"""The frozen model: what encodes a video's input vector to bytes, in one immutable file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy

from vidpress.model import dense_layers, model_file, range_coder, storage, strict_json
from vidpress.model.compiled import jit
from vidpress.model.dense_layers import Dense, SplitDense, dense
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.range_coding_tables import RangeCodingTables
from vidpress.model.rate_aware_rounding import round_to_cheaper
from vidpress.model.table_banks import choose_banks

# Version 2 has banks of tables, 3 rate-aware rounding.
FORMAT_VERSION = 3
_READABLE_VERSIONS = (1, 2, 3)

# Up to here float32 holds every integer; a bottleneck's values are smaller by orders of magnitude.
MAX_Z = 2**24

# The loaded models that are in use, by their identity.
_LOADED: weakref.WeakValueDictionary[str, FrozenModel] = weakref.WeakValueDictionary()
_LOADING = threading.Lock()

_MODEL_ID_LENGTH = 16

# As JSON. Together with the rest of the header, and quoted in it, that is less than is read.
MAX_METADATA_BYTES = 2**18


class UncodableError(ValueError):
    """Inputs whose `z` cannot be rounded to an integer: NaN, or beyond `MAX_Z`.

    Attributes:
      usable: bool[num_videos], which inputs are not to blame.
    """

    def __init__(self, z: np.ndarray, usable: np.ndarray):
        row = int(np.flatnonzero(~usable)[0])
        super().__init__(f"row {row} of x gives z up to {z[row].max()}, beyond {MAX_Z}: its values are too large.")
        self.usable = usable


class ModelError(VidpressError, ValueError):
    """A file that is not a usable vidpress model."""


# Kernel and bias of each.
Layers: TypeAlias = tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FrozenModel:
    """A trained bottleneck network with its range coding tables.

    `z = relu(... relu(x @ kernel + bias) ...)`, and `z_hat` is `z` rounded; a video's code is `z_hat`, range coded.

    Attributes:
      spec: What `x` is made of.
      hidden: `(kernel float32[in, out], bias float32[out])` of each hidden layer, batch normalisation folded in;
        a ReLU follows each. The last one's output is the bottleneck.
      tables: The range coding tables of the bottleneck.
      head: `(kernel float32[num_dims, num_classes], bias float32[num_classes])` of the task's logits on
        `z_hat`, or None.
      metadata: JSON values that tell where the model comes from: lmbda, steps, the training data's fingerprint,
        metrics at freezing.
      rounding_lmbda: What a bit costs when rounding, in squared rounding steps (`rate_aware_rounding`). With 0, `z_hat`
        are the nearest integers.
    """

    spec: FeatureSpec
    hidden: Layers
    tables: RangeCodingTables
    head: tuple[np.ndarray, np.ndarray] | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    rounding_lmbda: float = 0.0

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
        if not (self.rounding_lmbda >= 0 and math.isfinite(self.rounding_lmbda)):
            raise ModelError(f"rounding_lmbda={self.rounding_lmbda} must not be negative.")
        try:
            strict_json.decode(json.dumps(self.metadata), Any, max_bytes=MAX_METADATA_BYTES)
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"metadata must be JSON values that can be read back: {error}") from error
        num_dims = self.hidden[-1][0].shape[1]
        if self.tables.num_dims != num_dims:
            raise ModelError(f"The tables have {self.tables.num_dims} dimensions, the bottleneck {num_dims}.")

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
        return _model_id(self.to_bytes())

    def bottleneck(self, x: np.ndarray) -> np.ndarray:
        """Run the network up to the bottleneck.

        Args:
          x: float32[num_videos, input_size].

        Returns:
          float32[num_videos, num_dims], `z` before rounding. Its last bits depend on the processor and on a row's
          place in the batch; `quantize` does not.

        Raises:
          ValueError: If `x` has another shape.
        """
        return _forward(self._checked(x), self.hidden)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Return `z_hat` of input vectors: the exact network's `z`, rounded.

        To the nearest integer, halves to even; with a `rounding_lmbda`, then to a cheaper neighbour where that is worth
        it in the bank that codes the nearest integers shortest.

        A row's result depends on nothing but the row: not on its companions or its place in the batch, nor on the
        processor or the number of threads. Matrix products in float32 differ in the last bits by all of these, and
        more where the processor has matrix units (`dense_layers`), so the `z` that lie near to where rounding turns
        are computed again in float64.

        Args:
          x: float32[num_videos, input_size].

        Returns:
          int32[num_videos, num_dims].

        Raises:
          ValueError: If `x` has another shape.
          UncodableError: If an input is NaN, or so large that its `z` cannot be rounded to an integer.
        """
        x = self._checked(x)
        *lower_layers, last_layer = self._fast_layers
        last_input = functools.reduce(lambda activations, layer: layer(activations), lower_layers, x)
        z = last_layer(last_input)
        usable = z.max(axis=1, initial=0) <= MAX_Z
        if not usable.all():
            raise UncodableError(z, usable)
        row_margin = last_layer.margin * _row_norms(last_input)

        near_rows = []

        def fast_z(row: np.ndarray, column: np.ndarray) -> np.ndarray:
            near_rows.append(row)
            return z[row, column]

        z_hat = self._round(z, row_margin, fast_z)
        near = np.unique(np.concatenate(near_rows))
        if len(near):
            exact_input = _forward(x[near].astype(np.float64), self._lower_layers_float64)
            exact_z = functools.partial(_exact_z, exact_input, *self.hidden[-1])
            z_hat[near] = self._round(z[near], row_margin[near], exact_z)
        return z_hat

    def _round(
        self, z: np.ndarray, row_margin: np.ndarray, z_at: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return `z_hat` of `z`; what is in the margins is decided by `z_at` some rows and columns."""
        margin = row_margin, self._column_norms
        z_hat, row, column = _round_to_nearest(z, *margin)
        z_hat[row, column] = np.rint(z_at(row, column))
        if self.rounding_lmbda:
            bank = choose_banks(self.tables, z_hat)
            row, column, direction, threshold = round_to_cheaper(
                self.tables, z, z_hat, bank, self.rounding_lmbda, margin
            )
            beyond = direction * (z_at(row, column) - z_hat[row, column])
            z_hat[row, column] += np.where(beyond > threshold, direction, 0).astype(np.int32)
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

    @functools.cached_property
    def _column_norms(self) -> np.ndarray:
        kernel, bias = self.hidden[-1]
        return np.sqrt(np.einsum("ij,ij->j", kernel, kernel) + bias**2)

    @functools.cached_property
    def _lower_layers_float64(self) -> Layers:
        return tuple((kernel.astype(np.float64), bias.astype(np.float64)) for kernel, bias in self.hidden[:-1])

    def compress(self, x: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Return the codes of input vectors, and the bank of tables of each.

        Args:
          x: float32[num_videos, input_size].

        Returns:
          num_videos strings; uint8[num_videos].

        Raises:
          ValueError: As `quantize` does.
        """
        z_hat = self.quantize(x)
        bank = choose_banks(self.tables, z_hat)
        return range_coder.compress(self.tables, z_hat, bank), bank

    def decompress(self, codes: Sequence[bytes], bank: np.ndarray | None = None) -> np.ndarray:
        """Return `z_hat` of codes, int32[num_videos, num_dims].

        Args:
          codes: num_videos strings.
          bank: uint8[num_videos], the bank of each; None if the model has only one.

        Raises:
          vidpress.model.range_coder.DamagedCodeError: If a code is seen to be damaged.
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
        tensors["tables.bank_tilt"] = self.tables.bank_tilt
        header = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_json(),
            "architecture": [self.spec.input_size] + [kernel.shape[1] for kernel, _ in self.hidden],
            "num_classes": None if self.head is None else self.head[0].shape[1],
            "precision": self.tables.precision,
            "rounding_lmbda": self.rounding_lmbda,
            "metadata": self.metadata,
        }
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        header["sha256"] = _content_sha256(header, tensors)
        return safetensors.numpy.save(tensors, {model_file.HEADER_KEY: json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "the model") -> FrozenModel:
        """Read back what `to_bytes` gave.

        Raises:
          ModelError: If it is not such a file, or of a later format; the message says which, and `name`.
        """
        return cls._parse(data, name, _model_id(data), verified=False)

    @classmethod
    def _parse(cls, data: bytes, name: str, model_id: str, *, verified: bool) -> FrozenModel:
        try:
            text = model_file.header_text(data)
            fields = strict_json.decode(text, dict[str, Any])
        except ValueError as error:
            raise ModelError(
                f"{name} is not a vidpress model (a .safetensors file that `vidpress train` wrote): {error}"
            ) from error
        if fields.get("format_version") not in _READABLE_VERSIONS:
            raise ModelError(
                f"{name} has format version {json.dumps(fields.get('format_version'))[:20]}; this vidpress reads "
                f"{', '.join(map(str, _READABLE_VERSIONS))}: install the version that wrote it, or a later one."
            )
        try:
            header, tensors = model_file.parse(data, text)
            fields.pop("sha256")
            if not verified and header.sha256 != _content_sha256(fields, tensors):
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
            model = cls(
                spec=FeatureSpec.from_json(header.spec),
                hidden=tuple(
                    (tensors[f"hidden.{index}.kernel"], tensors[f"hidden.{index}.bias"])
                    for index in range(len(header.architecture) - 1)
                ),
                tables=tables,
                head=(tensors["head.kernel"], tensors["head.bias"]) if header.num_classes else None,
                rounding_lmbda=header.rounding_lmbda,
                metadata=header.metadata,
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{name} is damaged: {error}") from error
        vars(model)["model_id"] = model_id  # fills the cached property
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
        """Load a model from a local path or `gs://` URI, or take it from whoever in this process has it.

        Args:
          uri: The file.
          model_id: The identity that the file must have, if given.

        Raises:
          FileNotFoundError: If there is no such file.
          ModelError: If it is no vidpress model, or another one than `model_id`.
        """
        # The launcher and all workers of a process share one model, and those that wait need not load it.
        with _LOADING:
            model = None if model_id is None else _LOADED.get(model_id)
            if model is None:
                data = storage.read_bytes(uri, max_bytes=model_file.MAX_BYTES)
                found = _model_id(data)
                if model_id not in (None, found):
                    raise ModelError(
                        f"{os.fspath(uri)} is model {found}, not {model_id}: it was changed, or another one is meant."
                    )
                model = cls._parse(data, os.fspath(uri), found, verified=model_id is not None)
                _LOADED[found] = model
            return model


@jit
def _round_to_nearest(
    z: np.ndarray, row_margin: np.ndarray, column_norms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round `z` float32[n, num_dims] to int32; and give the rows and columns of what comes near a half, by row."""
    num_rows, num_dims = z.shape
    z_hat = np.empty((num_rows, num_dims), np.int32)
    rows, columns = [0 for _ in range(0)], [0 for _ in range(0)]
    for i in range(num_rows):
        num_near = 0
        for j in range(num_dims):
            rounded = np.rint(z[i, j])
            z_hat[i, j] = np.int32(rounded)
            num_near += np.float32(0.5) - abs(z[i, j] - rounded) < row_margin[i] * column_norms[j]
        if num_near:
            for j in range(num_dims):
                if np.float32(0.5) - abs(z[i, j] - np.rint(z[i, j])) < row_margin[i] * column_norms[j]:
                    rows.append(i)
                    columns.append(j)
    return z_hat, np.array(rows, np.int64), np.array(columns, np.int64)


@jit
def _exact_z(
    inputs: np.ndarray, kernel: np.ndarray, bias: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Return `z` float64[n] of `inputs` float64[:, k] at some rows and columns."""
    exact = np.empty(len(rows))
    for i in range(len(rows)):
        z = np.float64(0)
        for k in range(len(kernel)):
            if inputs[rows[i], k] != 0:  # weights of a column lie far apart: most inputs are 0, and spare a look
                z += inputs[rows[i], k] * np.float64(kernel[k, columns[i]])
        exact[i] = np.maximum(z + np.float64(bias[columns[i]]), 0.0)
    return exact


def _forward(x: np.ndarray, layers: Layers) -> np.ndarray:
    return functools.reduce(lambda activations, layer: dense(activations, *layer), layers, x)


def _row_norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", x, x))


def _model_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_MODEL_ID_LENGTH]


def _content_sha256(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
