"""Read a data set for training, without Beam and without TensorFlow."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from vidpress.model.features import FeatureSpec
from vidpress.model.metrics import multi_hot
from vidpress.model.reading import frameworks, queries
from vidpress.model.reading.epoch_order import Deal, EpochOrder, Reader
from vidpress.model.reading.reading_state import Position, followed, position_of, to_state
from vidpress.model.reading.stored_videos import StoredRows, StoredVideos
from vidpress.model.reading.video_batch import RaggedLabels, VideoBatch, batch_of
from vidpress.model.shards.shard_rows import labels_list

if TYPE_CHECKING:
    import datasets
    import duckdb
    import pandas as pd
    import polars as pl
    import tensorflow as tf

    from vidpress.model.reading.torch_dataset import TorchVideoDataset

Made = TypeVar("Made")


class VideoDataset:
    """The videos of a data set, or of a single shard, in batches.

    Each iteration is one epoch of `VideoBatch`es. If epochs are shuffled, they differ from each other. With the same
    seed, two data sets of the same shards give the same videos in the same order, whatever the size of the batches is,
    and however many workers share the epoch: all workers' first batches are the first videos, and so on.

    Which videos are read is fixed when the data set is opened. Videos that are added later are not read.

    Attributes:
      generation: The newest generation that is read; None for a single shard.
      num_videos: The number of videos, for all workers together.
      num_dims: How many numbers a video's features have.
      model_id: The frozen model that encoded the videos.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch_size: int = 256,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_classes: int | None = None,
        worker: int = 0,
        num_workers: int = 1,
        drop_remainder: bool = False,
        generation: int | None = None,
        features: Literal["z_hat", "input"] = "z_hat",
        columns: Sequence[str] | None = None,
    ):
        """Open a data set. Its rows are read when it is iterated.

        Args:
          path: The folder that `vidpress encode` wrote, or one of its shards; a local path or URI.
          batch_size: The number of videos in a batch. The last batch of an epoch may be smaller; with several workers,
            it may also be larger by one.
          shuffle: Whether to read the row groups in random order and mix the videos of 96 of them at a time.
          seed: The seed of the shuffling. Workers that share a data set need the same one.
          num_classes: If given, labels are a dense matrix.
          worker: The index of this worker, in [0, num_workers).
          num_workers: How many workers, such as the ranks of a training, share the videos. All get as many batches.
          drop_remainder: Whether to leave out the videos that do not fill a batch of each worker.
          generation: The newest generation to read; by default the newest one there is. Name it to get the same videos
            again after others were added. Workers that share several generations must all name the same one, as
            videos may be added while they start.
          features: "z_hat", the integers that are stored; or "input", the input vectors, approximately: the means of
            the videos' frames, feature after feature as in `spec`.
          columns: Names of columns that the data set keeps of its input (`vidpress encode --keep`). Batches are then
            `VideoBatchWithColumns`. Tables have all of them unless some are named here.

        Raises:
          FileNotFoundError: If there is no such file.
          ManifestError: If the folder is not a data set.
          ShardError: If the file is not a shard.
          DecoderError: If input vectors are wanted, and the data set has no decoder, or a damaged one.
          ValueError: If an option is out of its range, if a column is not kept, if there are more workers than videos,
            or if several workers share several generations and name none.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed if shuffle else 0, 0)):
            if operator.index(value) < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        if not 0 <= worker < num_workers:
            raise ValueError(f"worker={worker} must lie in [0, num_workers={num_workers}).")
        self._videos = StoredVideos(path, generation, features, columns)
        self._codes = queries.CodeDecoder(self._videos)
        self.path = self._videos.path
        self.generation = self._videos.generation
        self.num_videos = self._videos.num_videos
        self.num_dims = self._videos.num_dims
        self.model_id = self._videos.model_id
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_classes = num_classes
        self.worker = worker
        self.num_workers = num_workers
        self.drop_remainder = drop_remainder
        self._position = self._next = Position()
        self._names_generation = generation is not None
        self.check_workers(num_workers)

    def __repr__(self) -> str:
        of = "" if self.generation is None else f", generation {self.generation}"
        videos = f"{self.num_videos:,} videos of {self.num_dims} numbers"
        return f"<VideoDataset {self.path}{of}: {videos}, model {self.model_id}>"

    @property
    def spec(self) -> FeatureSpec | None:
        """What an input vector is made of, if these are read."""
        return None if self._videos.decoder is None else self._videos.decoder.spec

    def check_workers(self, num_workers: int) -> None:
        """See that so many workers can share the data set.

        Raises:
          ValueError: If there are more workers than videos or batches, or if they might read different generations.
        """
        if num_workers > 1 and not self._names_generation and (self.generation or 1) > 1:
            raise ValueError(
                f"{self.path} has {self.generation} generations, and may get another one before all "
                f"{num_workers} workers have opened it: give them all generation={self.generation}."
            )
        self.deal(0, num_workers)

    def deal(self, start: int, num_workers: int) -> Deal:
        """Return how the rows of an epoch from `start` on are dealt to workers.

        Raises:
          ValueError: If there are more workers than videos or batches.
        """
        return Deal(self.num_videos, start, self.batch_size, num_workers, self.drop_remainder)

    def __len__(self) -> int:
        """Return how many batches the next iteration gives."""
        return self.deal(self._next.rows, self.num_workers).num_steps

    def __iter__(self) -> Iterator[VideoBatch]:
        return self._begin(self._decoded)

    def _begin(self, made: Callable[[StoredRows], Made], columns: Sequence[str] | None = None) -> Iterator[Made]:
        """Begin the next epoch: what is made of each batch of rows; by default they have the columns of batches."""
        self._position = position = self._next
        reader = Reader(self.worker, self.num_workers)
        batches = self._read(position.epoch, position.rows, reader, columns=columns)
        self._next = Position(position.epoch + 1)
        return followed(((made(stored), rows) for stored, rows in batches), position)

    def iterate(self, epoch: int, worker: int, num_workers: int) -> Iterator[VideoBatch]:
        """Iterate over one epoch as one of several workers, instead of this data set's own epoch and worker.

        Raises:
          FileNotFoundError: If a shard is missing.
          ShardError: If a shard is damaged, or does not belong to this data set.
          ValueError: If there are more workers than videos or batches.
        """
        return (self.densified(batch) for batch, _ in self.read_epoch(epoch, 0, Reader(worker, num_workers)))

    def read_epoch(self, epoch: int, start: int, reader: Reader, num_read: int = 0) -> Iterator[tuple[VideoBatch, int]]:
        """Iterate over an epoch, or over the rest of it.

        Args:
          epoch: The epoch's number.
          start: How many rows of the epoch's order all workers have read before.
          reader: Which worker's batches to read, and which of these.
          num_read: How many of them were read since `start`.

        Yields:
          The batches, whose labels are not dense yet, and after how many rows of the epoch's order the next ones of all
            workers begin.

        Raises:
          FileNotFoundError: If a shard is missing.
          ShardError: If a shard is damaged, or does not belong to this data set.
          ValueError: If there are fewer videos or batches than workers.
        """
        return ((self._batch(stored), rows) for stored, rows in self._read(epoch, start, reader, num_read))

    def _read(
        self, epoch: int, start: int, reader: Reader, num_read: int = 0, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[StoredRows, int]]:
        return self._videos.read(self._order(epoch), self.deal(start, reader.num_ranks), reader, num_read, columns)

    def _order(self, epoch: int) -> EpochOrder:
        return self._videos.order((self.seed, epoch) if self.shuffle else None)

    def _batch(self, stored: StoredRows, labels_of: Callable[[pa.ListArray], Any] = labels_list) -> VideoBatch:
        return batch_of(stored.rows, self._videos.features(stored), self._videos.columns, labels_of)

    def densified(self, batch: VideoBatch) -> VideoBatch:
        """Return a batch with dense labels, if the number of classes was given.

        Raises:
          ValueError: If a label is not a class.
        """
        if self.num_classes is None:
            return batch
        return batch._replace(labels=multi_hot(batch.labels, self.num_classes).astype(np.float32))

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration that began last is: what `load_state_dict` needs to go on after its last batch.

        It is some 200 bytes of JSON values, the same for all workers that have given as many batches.
        """
        return to_state(self._position, self.identity)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where another one was, in this or another process.

        The number of workers and the size of batches may differ from those of the other one. Nothing is read.

        Args:
          state: What `state_dict` returned.

        Raises:
          ValueError: If it is not the state of all readers of a data set with these videos in this order.
        """
        self._position = self._next = position_of(state, self.identity, self.drop_remainder)

    @property
    def identity(self) -> dict[str, Any]:
        """What the order of an epoch follows from."""
        names = ("model_id", "generation", "num_videos", "shuffle", "seed")
        return {name: getattr(self, name) for name in names}

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that epoch, from its beginning."""
        self._position = self._next = Position(epoch)

    @property
    def shard_files(self) -> list[str]:
        """The absolute paths or URIs of the shards, for other readers: those of this generation, and no others."""
        return self._videos.shard_files

    def get(self, ids: Iterable[bytes | str], *, missing: Literal["raise", "skip"] = "raise") -> VideoBatch:
        """Return videos by their ids; threads can share a data set.

        The first lookup in a shard reads its footer. Then one read gives a row group of 4096 videos. Those that were
        used last are kept, up to 256 MiB in memory, so ask for many ids at once or again: that takes a fraction.

        Args:
          ids: The ids; text stands for its UTF-8.
          missing: Whether ids that are not in the data set are an error, or are left out.

        Returns:
          The videos, in the order of the ids.

        Raises:
          KeyError: If there is no video of an id; the message names up to ten of these ids.
          FileNotFoundError: If a shard is missing.
          ShardError: If a shard is damaged, or does not belong to this data set.
        """
        found = self._videos.find(ids, missing)
        if found is not None:
            return self._decoded(found)
        none = np.empty((0, self.num_dims), np.float32)
        return self.densified(batch_of(self._videos.decode(None, self.schema), none, self._videos.columns))

    def get_arrow(self, ids: Iterable[bytes | str], *, missing: Literal["raise", "skip"] = "raise") -> pa.RecordBatch:
        """Return videos by their ids as an Arrow batch of `schema`; see `get`."""
        return self._videos.decode(self._videos.find(ids, missing), self.schema)

    @property
    def schema(self) -> pa.Schema:
        """The columns of `to_arrow`: `id`, `labels`, `num_frames`, `features`, float32[num_dims], and kept columns."""
        return self._videos.schema

    def to_arrow_batches(self, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """Return the videos as Arrow batches, decoded while they are read; Arrow's engines can query them.

        Like an iteration, this is the next epoch as this worker, in batches of `batch_size`, and the rest of it after
        `load_state_dict`.

        Args:
          columns: Which columns of `schema`; by default all. Without `features`, nothing is decoded.

        Raises:
          KeyError: If there is no such column.
        """
        schema = self._videos.schema_of(columns)
        decode = functools.partial(self._videos.decode, schema=schema)
        return pa.RecordBatchReader.from_batches(schema, self._begin(decode, self._videos.kept_in(schema)))

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all videos of this worker as an Arrow table, in the order of the next epoch, which does not begin."""
        schema = self._videos.schema_of(columns)
        reader = Reader(self.worker, self.num_workers)
        batches = self._read(self._next.epoch, 0, reader, columns=self._videos.kept_in(schema))
        return pa.Table.from_batches((self._videos.decode(stored, schema) for stored, _ in batches), schema)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return all videos as a pandas data frame, of the columns of `schema`."""
        return self.to_arrow(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return all videos as a Polars data frame, of the columns of `schema`."""
        import polars as pl

        return pl.DataFrame(self.to_arrow(columns))

    def register_in(self, connection: duckdb.DuckDBPyConnection, name: str = "vidpress_decode") -> None:
        """Add an SQL function to a DuckDB connection that decodes this data set's shards.

        `SELECT id, vidpress_decode(code, bank) FROM read_parquet($shards) WHERE list_contains(labels, 5)` decodes what
        the query selects, and nothing else, if the parameter `shards` is `shard_files`. The result is FLOAT[num_dims].
        """
        queries.register(connection, self._codes, name)

    def decode_expr(self) -> pl.Expr:
        """Return a Polars expression that decodes the rows of this data set's shards, where a query selects it.

        It takes the columns `code` and `bank`, and is called `features`: Array(Float32, num_dims).
        """
        return queries.expression(self._codes)

    def decode_rows(self, rows: queries.Rows) -> queries.Rows:
        """Decode rows of this data set's shards that something else has read.

        Args:
          rows: An Arrow table or batch, or a dictionary of columns, with `code`, `bank` and any other columns.

        Returns:
          The same without `code` and `bank`, and with `features`, float32[num_dims]; in a dictionary, these are an
          array, float32[num_videos, num_dims].

        Raises:
          ShardError: If a code or a bank is null, or if no shard has the tables of a bank.
          DamagedCodeError: If a code is seen to be damaged.
        """
        return self._codes.rows(rows)

    def decode_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Do what `decode_rows` does to batches, for Spark's `mapInArrow`; `features` are lists, and come last."""
        return queries.in_spark(self._codes, batches)

    def to_grain(self) -> frameworks.BatchSource:
        """Return the batches of the next epoch by their numbers, as a source for `grain.MapDataset.source`.

        If this data set is shuffled, their rows are mixed as in that epoch; `set_epoch` chooses another one. Grain can
        shuffle, repeat and divide the batches. They are this worker's, and always all of them.
        """
        return self._source(self._decoded)

    def _source(
        self, made: Callable[[StoredRows], Any], columns: Sequence[str] | None = None
    ) -> frameworks.BatchSource:
        deal = self.deal(0, self.num_workers)
        return frameworks.BatchSource(self._videos, self._order(self._next.epoch), deal, self.worker, made, columns)

    def to_hf(self) -> datasets.IterableDataset:
        """Return the videos of the next epoch as Hugging Face's `datasets.IterableDataset`: the columns of `schema`.

        They are those of `to_grain`, in the same order. Each batch is a shard of Hugging Face's, which its `shuffle`
        mixes, its loaders share, and its `state_dict` counts.
        """
        decode = functools.partial(self._videos.decode, schema=self.schema)
        return frameworks.to_hf(self._source(decode, self._videos.kept_in(self.schema)), self.schema)

    def _decoded(self, stored: StoredRows) -> VideoBatch:
        return self.densified(self._batch(stored))

    def to_tf(self, *, with_ids: bool = False) -> tf.data.Dataset:
        """Return the batches as a `tf.data.Dataset` of `(features, labels)`, as Keras' `fit` takes them.

        Labels are dense if `num_classes` was given, and else a `tf.RaggedTensor`. Each iteration is an epoch, in a new
        order if they are shuffled; `set_epoch` and `load_state_dict` apply to the next one.

        If columns were asked for, a dictionary of a `tf.RaggedTensor` for each comes last, in which null is an empty
        list. That is for loops other than `fit`.

        Args:
          with_ids: Give `(ids, features, labels)` instead.
        """
        begin = functools.partial(self._begin, functools.partial(self._batch, labels_of=RaggedLabels.of_column))
        return frameworks.to_tf(begin, self.num_dims, self.num_classes, self._videos.asked_for, with_ids=with_ids)

    def to_torch(self) -> TorchVideoDataset:
        """Return a `torch.utils.data.IterableDataset` for a `DataLoader(..., batch_size=None)`.

        The processes of the loader take this worker's batches in turn. In a distributed training (`torch.distributed`),
        its ranks are the workers that share the data set, unless `num_workers` was given. Labels are tensors of all
        values and of where each video's begin, or dense if `num_classes` was given.
        """
        from vidpress.model.reading.torch_dataset import TorchVideoDataset

        return TorchVideoDataset(self)
