"""The batches of a data set as Grain, Hugging Face and TensorFlow take them."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vidpress.model.metrics import check_labels
from vidpress.model.reading.epoch_order import Deal, EpochOrder, LaneRows
from vidpress.model.reading.row_groups import RowGroups
from vidpress.model.reading.stored_videos import StoredRows, StoredVideos
from vidpress.model.reading.video_batch import RaggedLabels, VideoBatch

if TYPE_CHECKING:
    import datasets
    import tensorflow as tf


class BatchSource:
    """Batches by number: for `grain.MapDataset.source`, or as a map-style dataset of batches.

    Threads can share it, and processes get their own. Batches that are asked for in order, or in strides, are read with
    few reads; others need a read of a row group each.

    Args:
      videos: The data set.
      order: The epoch's order.
      deal: How it is dealt to workers.
      rank: Whose batches they are.
      decoded: Makes a batch of rows.
    """

    def __init__(
        self, videos: StoredVideos, order: EpochOrder, deal: Deal, rank: int, decoded: Callable[[StoredRows], Any]
    ):
        self._videos = videos
        self._order = order
        self._deal = deal
        self._rank = rank
        self._decoded = decoded
        self._lock = threading.Lock()
        self._reading: tuple[int, RowGroups, LaneRows] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"<BatchSource {self._videos.path}: {len(self):,} batches>"

    def __len__(self) -> int:
        return self._deal.num_steps

    def __getitem__(self, index: int) -> Any:
        """Return a batch.

        Raises:
          IndexError: If there is none of that number.
          ShardError: If a shard is damaged, or does not belong to this data set.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self):,} batches, none with the number {index}.")
        start, stop = self._deal.batch(int(index) % len(self), self._rank)
        with self._lock:
            if self._reading is None or self._reading[0] != os.getpid():  # open files of another process
                row_groups = self._videos.row_groups()
                self._reading = os.getpid(), row_groups, LaneRows(self._order, row_groups.read)
            _, row_groups, lanes = self._reading
            rows = lanes.rows(start, stop)
            tables = row_groups.tables
        return self._decoded(StoredRows(rows, tables))


def to_tf(
    begin: Callable[[], Iterator[VideoBatch]], num_dims: int, num_classes: int | None, with_ids: bool
) -> tf.data.Dataset:
    """Return the batches of an iteration as a `tf.data.Dataset`; see `VideoDataset.to_tf`.

    Args:
      begin: Begins an iteration, of batches whose labels are not dense.
      num_dims: How many numbers a video's features have.
      num_classes: How many classes dense labels have; None if they are not to be dense.
      with_ids: Whether the ids are given, too.
    """
    import tensorflow as tf

    # Python gives TensorFlow few numbers: to copy dense labels would take as long as to decode features.
    def generate() -> Iterator[tuple[Any, ...]]:
        for ids, labels, features in begin():
            values, offsets = RaggedLabels.of(labels)
            if num_classes is not None:
                check_labels(values, num_classes)
            yield (*([ids] if with_ids else []), features, values, offsets)

    def batch(*tensors: tf.Tensor) -> tuple[tf.Tensor | tf.RaggedTensor, ...]:
        *others, values, offsets = tensors
        labels = tf.RaggedTensor.from_row_splits(values, offsets, validate=False)
        if num_classes is not None:
            places = tf.stack([labels.value_rowids(), tf.cast(values, tf.int64)], axis=1)
            shape = tf.stack([labels.nrows(), num_classes])
            counts = tf.scatter_nd(places, tf.ones_like(values, tf.float32), shape)
            labels = tf.ensure_shape(tf.minimum(counts, 1), [None, num_classes])
        return (*others, labels)

    specs = (
        tf.TensorSpec([None, num_dims], tf.float32),
        *(tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.int64)),
    )
    specs = (tf.TensorSpec([None], tf.string), *specs) if with_ids else specs
    return tf.data.Dataset.from_generator(generate, output_signature=specs).map(batch)


def to_hf(source: BatchSource, schema: pa.Schema) -> datasets.IterableDataset:
    """Return Arrow batches by number as Hugging Face's `datasets.IterableDataset`; see `VideoDataset.to_hf`.

    What is iterated, dealt to workers, shuffled and counted by a state are the numbers: nothing is decoded in vain.
    """
    import datasets

    features = datasets.Features({"number": datasets.Value("int64")})
    numbers = datasets.IterableDataset.from_generator(
        _numbered, features, gen_kwargs={"numbers": list(range(len(source)))}
    )
    return (
        numbers.with_format("arrow")
        .map(
            functools.partial(_batch_of, source),
            batched=True,
            batch_size=1,
            features=datasets.Features.from_arrow_schema(schema),
        )
        .with_format(None)
    )


def _numbered(numbers: Iterable[int]) -> Iterator[dict[str, int]]:
    for number in numbers:
        yield {"number": number}


def _batch_of(source: BatchSource, row: pa.Table) -> pa.Table:
    (number,) = row["number"].to_pylist()
    return pa.Table.from_batches([source[number]])
