"""What reading a data set gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from vidpress.model.shards.shard_rows import labels_list


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

    @classmethod
    def of_column(cls, labels: pa.ListArray) -> RaggedLabels:
        """Return the rows of a labels column, without an array for each."""
        offsets = labels.offsets.to_numpy().astype(np.int64)
        values = labels.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        return cls(values[offsets[0] : offsets[-1]], offsets - offsets[0])


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


class VideoBatchWithColumns(NamedTuple):
    """Some videos of a data set, where kept columns were asked for.

    Attributes:
      ids: As in a `VideoBatch`.
      labels: As in a `VideoBatch`.
      features: As in a `VideoBatch`.
      columns: By the name of the column, for each video the list of its values (str, bytes, int or float), or None if
        its record did not have the key.
    """

    ids: list[bytes]
    labels: Any
    features: np.ndarray
    columns: dict[str, list[list[Any] | None]]


def batch_of(
    rows: pa.RecordBatch,
    features: np.ndarray,
    columns: Sequence[str],
    labels_of: Callable[[pa.ListArray], Any] = labels_list,
) -> VideoBatch:
    """Return the batch of some rows: a `VideoBatchWithColumns` if there are columns.

    Args:
      rows: `id`, `labels` and the columns of the videos.
      features: float32[num_videos, num_dims].
      columns: Names of kept columns.
      labels_of: Makes the batch's labels of the column.
    """
    batch = VideoBatch(rows["id"].to_pylist(), labels_of(rows["labels"]), features)
    if not columns:
        return batch
    return cast(VideoBatch, VideoBatchWithColumns(*batch, {name: rows[name].to_pylist() for name in columns}))
