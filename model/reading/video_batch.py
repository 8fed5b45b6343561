"""What reading a data set gives, and what TensorFlow makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from vidpress.model.kept_columns import KeptColumn
from vidpress.model.metrics import check_labels

if TYPE_CHECKING:
    import tensorflow as tf


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


def _ragged(lists: Sequence[list[Any] | None], kind: str) -> tuple[Any, np.ndarray]:
    """Return the values of a column as TensorFlow takes them, and where each video's begin, int64[num_videos + 1]."""
    offsets = np.cumsum([0, *(len(values or ()) for values in lists)], dtype=np.int64)
    values = list(itertools.chain.from_iterable(values or () for values in lists))
    if kind == "string":
        return [value.encode() for value in values], offsets
    return values if kind == "bytes" else np.array(values, np.int64 if kind == "int64" else np.float32), offsets


def to_tensors(
    begin: Callable[[], Iterator[VideoBatch]],
    num_dims: int,
    num_classes: int | None,
    columns: Sequence[KeptColumn],
    *,
    with_ids: bool,
) -> tf.data.Dataset:
    """Return the batches of an epoch as TensorFlow's; see `VideoDataset.to_tf`.

    Args:
      begin: Begins an epoch, whose labels are not dense.
      num_dims: How many numbers a video's features have.
      num_classes: If given, labels become dense.
      columns: The kept columns that batches have.
      with_ids: Whether ids come first.
    """
    import tensorflow as tf

    # Python gives TensorFlow few numbers: to copy dense labels would take as long as to decode features.
    def generate() -> Iterator[tuple[Any, ...]]:
        for batch in begin():
            labels = RaggedLabels.of(batch.labels)
            if num_classes is not None:
                check_labels(labels.values, num_classes)
            lists = cast(VideoBatchWithColumns, batch).columns if columns else {}
            kept = (_ragged(lists[column.name], column.kind) for column in columns)
            yield (*([batch.ids] if with_ids else []), batch.features, *labels, *itertools.chain.from_iterable(kept))

    def batch(*tensors: tf.Tensor) -> tuple[Any, ...]:
        first = 2 if with_ids else 1
        labels, *kept = (
            tf.RaggedTensor.from_row_splits(tensors[place], tensors[place + 1], validate=False)
            for place in range(first, len(tensors), 2)
        )
        if num_classes is not None:
            places = tf.stack([labels.value_rowids(), tf.cast(labels.values, tf.int64)], axis=1)
            shape = tf.stack([labels.nrows(), num_classes])
            counts = tf.scatter_nd(places, tf.ones_like(labels.values, tf.float32), shape)
            labels = tf.ensure_shape(tf.minimum(counts, 1), [None, num_classes])
        by_name = {column.name: values for column, values in zip(columns, kept, strict=True)}
        return (*tensors[:first], labels, *([by_name] if columns else []))

    dtypes = {"string": tf.string, "bytes": tf.string, "int64": tf.int64, "float": tf.float32}
    lists = [tf.int32, *(dtypes[column.kind] for column in columns)]
    specs = (
        *([tf.TensorSpec([None], tf.string)] if with_ids else []),
        tf.TensorSpec([None, num_dims], tf.float32),
        *(tf.TensorSpec([None], dtype) for of_values in lists for dtype in (of_values, tf.int64)),
    )
    return tf.data.Dataset.from_generator(generate, output_signature=specs).map(batch)
