"""The files of frozen models: tensors in safetensors' format, and a JSON header in their metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vidpress.model import strict_json
from vidpress.model.strict_json import JsonError

HEADER_KEY = "vidpress"

# The file is read whole. Networks of some thousand units have less than 0.1 GB.
MAX_BYTES = 2**33

_METADATA_KEY = "__metadata__"
_LENGTH_BYTES = 8
_MODEL_ID_LENGTH = 16

# Dtype and shape of each tensor; None stands for a size that the header does not say.
Expected: TypeAlias = dict[str, tuple[str, tuple[int | None, ...]]]


class NoModelError(ValueError):
    """Bytes that are not the file of a model."""


class UnexpectedTensorsError(ValueError):
    """A file whose tensors have other names than they should.

    Attributes:
      odd: The names that are missing, and those that should not be there, sorted.
    """

    def __init__(self, odd: list[str]):
        super().__init__(f"its tensors are not those that its header says: {str(odd[:5])[:200]}")
        self.odd = odd


@dataclasses.dataclass(frozen=True)
class Header:
    """What a model's header says; `vidpress.model.frozen.frozen_model` explains it.

    Attributes:
      architecture: The widths of `x` and of each layer.
      num_classes: The head's classes; None without a head.
      precision: The precision of the range coding tables.
      sha256: The SHA-256 of the other fields and the tensors.
    """

    format_version: int
    spec: dict[str, Any]
    architecture: list[int]
    num_classes: int | None
    precision: int
    metadata: dict[str, Any]
    sha256: str
    rounding_lmbda: float = 0.0
    rounds_every_layer: bool = False
    has_decoder: bool = False
    top_k: int = 0
    diagonal_head: bool = False


def model_id(data: bytes) -> str:
    """Return the id of the model that a file holds: its SHA-256, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:_MODEL_ID_LENGTH]


def to_bytes(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return a file with these tensors and this header, to which `sha256` is added. Equal ones give equal bytes."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    checked = {**header, "sha256": content_sha256(header, contiguous)}
    return safetensors.numpy.save(contiguous, {HEADER_KEY: json.dumps(checked, sort_keys=True)})


def content_sha256(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of a header without its own `sha256`, and of tensors."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def header_text(data: bytes) -> str:
    """Return the JSON of a file's header, and read nothing else.

    Raises:
      NoModelError: If there is no header, or if it is too large.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise NoModelError(f"its {len(data):,} bytes are not in safetensors' format")
    try:
        described = strict_json.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + length], dict[str, dict[str, Any]])
        text = described[_METADATA_KEY][HEADER_KEY]
    except (JsonError, KeyError) as error:
        raise NoModelError(f"it does not have a model's header: {error}") from error
    if not isinstance(text, str):
        raise NoModelError("its header is not text")
    return text


def tensors_of(data: bytes, expected: Expected) -> dict[str, np.ndarray]:
    """Return the tensors of a file, after checking that they are the expected ones.

    Raises:
      UnexpectedTensorsError: If they have other names.
      ValueError: If they cannot be read, or have other dtypes or shapes; the message says what is wrong.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"its tensors cannot be read: {error!r}") from error
    if set(tensors) != set(expected):
        raise UnexpectedTensorsError(sorted(set(tensors) ^ set(expected)))
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        fits = found.ndim == len(shape) and all(
            size in (None, own) for size, own in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise ValueError(f"{name} is {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}")
    return tensors


def parse(data: bytes, text: str) -> tuple[Header, dict[str, np.ndarray]]:
    """Return the header and the tensors of a model, after checking that they fit each other.

    Args:
      data: The file.
      text: Its header, of a known format version.

    Raises:
      ValueError: If they do not fit; the message says what is wrong.
    """
    header = strict_json.decode(text, Header)
    if len(header.architecture) < 2 or min(header.architecture) < 1 or header.num_classes == 0:
        raise ValueError(f"its architecture, {_shown(header)}, has an empty layer")
    try:
        return header, tensors_of(data, _expected_tensors(header))
    except UnexpectedTensorsError as error:
        raise ValueError(f"its tensors are not those of {_shown(header)}: {str(error.odd[:5])[:200]}") from error


def _shown(header: Header) -> str:
    decoder = ", and a decoder" if header.has_decoder else ""
    return f"{' -> '.join(map(str, header.architecture[:10]))} with {header.num_classes} classes{decoder}"


def _expected_tensors(header: Header) -> Expected:
    widths = header.architecture
    expected: Expected = {
        "tables.cdf": ("int32", (None,)),
        "tables.cdf_start": ("int32", (widths[-1] + 1,)),
        "tables.cdf_offset": ("int32", (widths[-1],)),
    }
    if header.format_version >= 2:
        expected["tables.bank_tilt"] = ("int8", (None, widths[-1]))
    for index, (size, width) in enumerate(itertools.pairwise(widths)):
        expected[f"hidden.{index}.kernel"] = ("float32", (size, width))
        expected[f"hidden.{index}.bias"] = ("float32", (width,))
    if header.num_classes is not None:
        shape = (widths[-1],) if header.diagonal_head else (widths[-1], header.num_classes)
        expected["head.kernel"] = ("float32", shape)
        expected["head.bias"] = ("float32", (header.num_classes,))
    if header.has_decoder:
        expected |= {f"decoder.{name}": tensor for name, tensor in expected_decoder(widths[-1], widths[0]).items()}
    return expected


def is_diagonal(kernel: np.ndarray) -> bool:
    """Return whether a matrix is square and 0 beside its diagonal, so that the diagonal is enough."""
    num_inputs, num_outputs = kernel.shape
    return num_inputs == num_outputs and bool(np.count_nonzero(kernel) == np.count_nonzero(kernel.diagonal()))


def expected_decoder(num_dims: int | None, input_size: int) -> Expected:
    """Return dtype and shape of the tensors of a decoder of the input."""
    return {
        "kernel": ("int8", (num_dims, input_size)),
        "scale": ("float32", (input_size,)),
        "bias": ("float32", (input_size,)),
    }
