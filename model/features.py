"""Which input features a video has, what they are called in a record, and what their bytes mean."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import msgspec
import numpy as np

# Limits for a spec: one from a hostile file that exceeds them is refused before anything is allocated.
MAX_FEATURES = 256
MAX_INPUT_SIZE = 2**24
MAX_NAME_LENGTH = 256

# What decoded videos can be given as: the integers that are stored, or the features that were put in.
DECODED = ("z_hat", "input")

_FORM = "name:size; an example is 'rgb:1024,audio:128', or 'rgb:1024:float' (with a scale: 'rgb:1024:float:0.5')"


def check_name(what: str, name: str) -> None:
    """See that a name is one that a record's feature may have.

    Raises:
      ValueError: If not; `what` begins the message.
    """
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"{what} needs a name of 1 to {MAX_NAME_LENGTH} printable characters, such as 'rgb', not {name[:40]!a}."
        )


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input feature.

    Attributes:
      name: The frame-level name; `mean_<name>` is the video-level one, as in YouTube-8M.
      size: Numbers a frame.
      kind: How frames hold it: 'uint8' is one string of quantized bytes (`bytes_list`), 'float' a `float_list`, as
        MediaPipe writes them. Video-level means are a `float_list` either way.
      scale: What the numbers of float frames are multiplied by.
    """

    name: str
    size: int
    kind: Literal["uint8", "float"] = "uint8"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_name("A feature", self.name)
        if not 1 <= self.size <= MAX_INPUT_SIZE:
            raise ValueError(
                f"Feature {self.name!r} has size {str(self.size)[:20]}: it must be at least 1, and at most "
                f"{MAX_INPUT_SIZE}."
            )
        if self.kind not in ("uint8", "float"):
            raise ValueError(f"Feature {self.name!r} is of kind {self.kind!r}: it must be 'uint8' or 'float'.")
        if not (math.isfinite(self.scale) and self.scale):
            raise ValueError(f"Feature {self.name!r} has scale {self.scale}: it must be a number other than 0.")
        if self.kind == "uint8" and self.scale != 1:
            raise ValueError(f"Feature {self.name!r} of 8-bit frames has a scale, which only float frames can have.")

    @property
    def mean_name(self) -> str:
        """The video-level name of the feature."""
        return f"mean_{self.name}"

    @classmethod
    def parse(cls, text: str) -> Feature:
        """Read a feature from `name:size`, `name:size:float` or `name:size:float:scale`.

        Raises:
          ValueError: If it is anything else.
        """
        name, *rest = text.strip().split(":")
        if not name or not rest or not (rest[0].isascii() and rest[0].isdecimal()) or len(rest[0]) > 9 or len(rest) > 3:
            raise ValueError(f"{text!r} is not {_FORM}.")
        if len(rest) > 1 and rest[1] not in ("uint8", "float"):
            raise ValueError(f"{text!r} is of kind {rest[1]!r}, not uint8 or float.")
        try:
            scale = float(rest[2]) if len(rest) > 2 else 1.0
        except ValueError:
            raise ValueError(f"{text!r} has the scale {rest[2]!r}, which is not a number: write 0.5, say.") from None
        return cls(name, int(rest[0]), "float" if rest[1:2] == ["float"] else "uint8", scale)

    def __str__(self) -> str:
        kind = f":{self.kind}" if self.kind != "uint8" else ""
        return f"{self.name}:{self.size}{kind}{f':{self.scale!r}' if self.scale != 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """The feature as JSON values; what is as in YouTube-8M is left out."""
        fields: dict[str, Any] = {"name": self.name, "size": self.size}
        if self.kind != "uint8":
            fields["kind"] = self.kind
        if self.scale != 1:
            fields["scale"] = self.scale
        return fields


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The features of a data set, concatenated in this order to a video's input vector `x`.

    The defaults are YouTube-8M's (https://research.google.com/youtube8m/download.html).

    Attributes:
      features: The features, in order.
      id_keys: Names under which a record may hold the video's id; the first one that is present counts.
      labels_key: Name of the record's list of class indices; it may be absent.
      quantized_min: What an 8-bit 0 stands for, half a bin below its centre.
      quantized_max: What an 8-bit 255 stands for, half a bin below its centre.
    """

    features: tuple[Feature, ...] = (Feature("rgb", 1024), Feature("audio", 128))
    id_keys: tuple[str, ...] = ("id", "video_id")
    labels_key: str = "labels"
    quantized_min: float = -2.0
    quantized_max: float = 2.0

    def gives_same_input(self, other: FeatureSpec) -> bool:
        """Return whether both make the same `x` of a video; their records may have other keys of ids and labels."""
        return dataclasses.replace(self, id_keys=other.id_keys, labels_key=other.labels_key) == other

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names) or len(names) > MAX_FEATURES:
            raise ValueError(
                f"A feature spec needs at least one feature, at most {MAX_FEATURES}, each named once; got "
                f"{len(names)}: {names[:10]}."
            )
        if self.input_size > MAX_INPUT_SIZE:
            raise ValueError(f"The features have {self.input_size:,} numbers, more than {MAX_INPUT_SIZE:,}.")
        if not 1 <= len(self.id_keys) <= MAX_FEATURES:
            raise ValueError(f"A feature spec needs at least one key of ids, at most {MAX_FEATURES}.")
        for key in (*self.id_keys, self.labels_key):
            check_name("A key", key)
        if not -math.inf < self.quantized_min < self.quantized_max < math.inf:
            raise ValueError(f"quantized_min={self.quantized_min} must be below quantized_max={self.quantized_max}.")

    @property
    def input_size(self) -> int:
        """Numbers in a video's input vector `x`."""
        return sum(feature.size for feature in self.features)

    @property
    def dequantization(self) -> tuple[float, float]:
        """The scale and shift that turn 8-bit numbers into feature values.

        `q * 4/255 + (4/512 - 2)` for the default range: the formula of the dataset's own reader
        (`Dequantize` in youtube-8m/utils.py).
        """
        span = self.quantized_max - self.quantized_min
        return span / 255.0, span / 512.0 + self.quantized_min

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Turn 8-bit numbers, or means of them, into feature values, by `dequantization`.

        Args:
          q: float64[...], in [0, 255].

        Returns:
          float64[...].
        """
        scale, shift = self.dequantization
        return q * scale + shift

    @classmethod
    def parse(cls, text: str) -> FeatureSpec:
        """Read a spec from features as `Feature.parse` reads them, with commas between, as command lines give it.

        Raises:
          ValueError: If one of them is anything else.
        """
        return cls(features=tuple(map(Feature.parse, text.split(","))))

    def __str__(self) -> str:
        return ",".join(map(str, self.features))

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; `from_json` reads it back."""
        return {**dataclasses.asdict(self), "features": tuple(feature.to_json() for feature in self.features)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> FeatureSpec:
        """Read back what `to_json` gave.

        Raises:
          ValueError: If it is anything else; the message says what is wrong.
        """
        missing = {field.name for field in dataclasses.fields(cls)} - set(fields if isinstance(fields, dict) else ())
        if missing:
            raise ValueError(f"A feature spec has no {', '.join(sorted(missing))}.")
        try:
            spec = msgspec.convert(fields, cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"A feature spec is damaged: {error}") from error
        # A whole number stays one, so that `to_json` gives the same bytes again.
        return dataclasses.replace(spec, quantized_min=fields["quantized_min"], quantized_max=fields["quantized_max"])
