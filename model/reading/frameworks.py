"""The batches of a data set as Grain, Hugging Face and TensorFlow take them."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vidpress.model.kept_columns import KeptColumn
from vidpress.model.metrics import check_labels
from vidpress.model.reading.epoch_order import Deal, EpochOrder, LaneRows
from vidpress.model.reading.row_groups import OfProcess, RowGroups
from vidpress.model.reading.stored_videos import StoredRows, StoredVideos
from vidpress.model.reading.video_batch import VideoBatch, VideoBatchWithColumns

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
      columns: Names of kept columns that rows have; by default those of batches.
    """

    def __init__(
        self,
        videos: StoredVideos,
        order: EpochOrder,
        deal: Deal,
        rank: int,
        decoded: Callable[[StoredRows], Any],
        columns: Sequence[str] | None = None,
    ):
        self._videos = videos
        self._order = order
        self._deal = deal
        self._rank = rank
        self._decoded = decoded
        self._columns = columns
        self._reading: OfProcess[_Reading] = OfProcess()

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
        return self._decoded(self._reading.get(self._new_reading).rows(start, stop))

    def _new_reading(self) -> _Reading:
        return _Reading(self._order, self._videos.row_groups(self._columns))


class _Reading:
    """Reads rows of an epoch's order, for one thread after the other."""

    def __init__(self, order: EpochOrder, row_groups: RowGroups):
        self._row_groups = row_groups
        self._lanes = LaneRows(order, row_groups.read)
        self._lock = threading.Lock()

    def rows(self, start: int, stop: int) -> StoredRows:
        with self._lock:
            rows = self._lanes.rows(start, stop)
            return StoredRows(rows, self._row_groups.tables)


def _ragged(lists: Sequence[list[Any] | None], kind: str) -> tuple[Any, np.ndarray]:
    """Return the values of a column as TensorFlow takes them, and where each video's begin, int64[num_videos + 1]."""
    offsets = np.cumsum([0, *(len(values or ()) for values in lists)], dtype=np.int64)
    values = list(itertools.chain.from_iterable(values or () for values in lists))
    if kind == "string":
        return [value.encode() for value in values], offsets
    return values if kind == "bytes" else np.array(values, np.int64 if kind == "int64" else np.float32), offsets


def to_tf(
    begin: Callable[[], Iterator[VideoBatch | VideoBatchWithColumns]],
    num_dims: int,
    num_classes: int | None,
    columns: Sequence[KeptColumn],
    *,
    with_ids: bool,
) -> tf.data.Dataset:
    """Return the batches of an iteration as a `tf.data.Dataset`; see `VideoDataset.to_tf`.

    Args:
      begin: Begins an epoch, whose labels are `RaggedLabels`.
      num_dims: How many numbers a video's features have.
      num_classes: If given, labels become dense.
      columns: The kept columns that batches have.
      with_ids: Whether ids come first.
    """
    import tensorflow as tf

    # Python gives TensorFlow few numbers: to copy dense labels would take as long as to decode features.
    def generate() -> Iterator[tuple[Any, ...]]:
        for batch in begin():
            if num_classes is not None:
                check_labels(batch.labels.values, num_classes)
            lists = batch.columns if isinstance(batch, VideoBatchWithColumns) else {}
            kept = (_ragged(lists[column.name], column.kind) for column in columns)
            yield (
                *([batch.ids] if with_ids else []),
                batch.features,
                *batch.labels,
                *itertools.chain.from_iterable(kept),
            )

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
    dtypes_of_lists = [tf.int32, *(dtypes[column.kind] for column in columns)]
    specs = (
        *([tf.TensorSpec([None], tf.string)] if with_ids else []),
        tf.TensorSpec([None, num_dims], tf.float32),
        *(tf.TensorSpec([None], dtype) for of_values in dtypes_of_lists for dtype in (of_values, tf.int64)),
    )
    # TensorFlow would add a prefetch here. The generator, and so the state of the reading, would be a batch ahead.
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    options.experimental_optimization.map_parallelization = False
    return tf.data.Dataset.from_generator(generate, output_signature=specs).map(batch).with_options(options)


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
