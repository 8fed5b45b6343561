"""Which input features a video has, what they are called in a record, and what their bytes mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input feature.

    Attributes:
      name: The frame-level name; `mean_<name>` is the video-level one, as in YouTube-8M.
      size: Numbers a frame.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("A feature needs a name, such as 'rgb'.")
        if self.size < 1:
            raise ValueError(f"Feature {self.name!r} has size {self.size}: it must be at least 1.")

    @property
    def mean_name(self) -> str:
        """The video-level name of the feature."""
        return f"mean_{self.name}"


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The features of a data set, concatenated in this order to a video's input vector `x`.

    The defaults are YouTube-8M's (https://research.google.com/youtube8m/download.html).

    Attributes:
      features: The features, in order.
      id_keys: Names under which a record may hold the video's id; the first one present counts.
      labels_key: Name of the record's list of class indices; it may be absent.
      quantized_min: What an 8-bit 0 stands for, half a bin below its centre.
      quantized_max: What an 8-bit 255 stands for, half a bin below its centre.
    """

    features: tuple[Feature, ...] = (Feature("rgb", 1024), Feature("audio", 128))
    id_keys: tuple[str, ...] = ("id", "video_id")
    labels_key: str = "labels"
    quantized_min: float = -2.0
    quantized_max: float = 2.0

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"A feature spec needs at least one feature, each named once; got {names}.")
        if not self.quantized_min < self.quantized_max:
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
        """Read a spec from `name:size,name:size`, as command lines give it.

        Raises:
          ValueError: If an entry is not `name:size`.
        """
        features = []
        for entry in text.split(","):
            name, _, size = entry.strip().partition(":")
            if not name or not size.isdecimal():
                raise ValueError(f"{entry!r} in {text!r} is not name:size; an example is 'rgb:1024,audio:128'.")
            features.append(Feature(name, int(size)))
        return cls(features=tuple(features))

    def __str__(self) -> str:
        return ",".join(f"{feature.name}:{feature.size}" for feature in self.features)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> FeatureSpec:
        """Read back what `to_json` gave."""
        return cls(
            features=tuple(Feature(**feature) for feature in fields["features"]),
            id_keys=tuple(fields["id_keys"]),
            labels_key=fields["labels_key"],
            quantized_min=fields["quantized_min"],
            quantized_max=fields["quantized_max"],
        )
