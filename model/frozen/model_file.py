"""The file of a frozen model: tensors in safetensors' format, and a JSON header in its metadata."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

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


class NoModelError(ValueError):
    """Bytes that are not the file of a model."""


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


def header_text(data: bytes) -> str:
    """Return the JSON of a model's header, and read nothing else.

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


def parse(data: bytes, text: str) -> tuple[Header, dict[str, np.ndarray]]:
    """Return the header and the tensors, after checking that they fit each other.

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
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"its tensors cannot be read: {error!r}") from error
    expected = _expected_tensors(header)
    if set(tensors) != set(expected):
        odd = sorted(set(tensors) ^ set(expected))
        raise ValueError(f"its tensors are not those of {_shown(header)}: {str(odd[:5])[:200]}")
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        fits = found.ndim == len(shape) and all(
            size in (None, own) for size, own in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise ValueError(f"{name} is {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}")
    return header, tensors


def _shown(header: Header) -> str:
    return f"{' -> '.join(map(str, header.architecture[:10]))} with {header.num_classes} classes"


def _expected_tensors(header: Header) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Return dtype and shape of each tensor; None stands for a size that the header does not say."""
    widths = header.architecture
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
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
        expected["head.kernel"] = ("float32", (widths[-1], header.num_classes))
        expected["head.bias"] = ("float32", (header.num_classes,))
    return expected
