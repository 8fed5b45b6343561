"""What reading a data set gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class RaggedLabels(NamedTuple):
    """The labels of several videos.

    Attributes:
      values: int32[num_labels], those of all videos, one after the other.
      offsets: int64[num_videos + 1], where each video's begin.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[np.ndarray]) -> RaggedLabels:
        """Return the labels of each of several videos."""
        return cls(np.concatenate(labels), np.cumsum([0, *map(len, labels)], dtype=np.int64))


class VideoBatch(NamedTuple):
    """Some videos of a data set.

    Attributes:
      ids: The videos' ids.
      labels: int32[num_labels] of each video; or, where the number of classes was given, float32[num_videos,
        num_classes] with 1 where a video has the label. In PyTorch, where each array would travel in a file of its own,
        the labels of all videos are `RaggedLabels`.
      features: float32[num_videos, num_dims], `z_hat`; or the input vectors, as they are restored.
    """

    ids: list[bytes]
    labels: Any
    features: np.ndarray
