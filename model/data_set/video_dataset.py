"""Read a data set for training, without Beam and without TensorFlow."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.listed_shards import open_shard
from vidpress.model.data_set.manifest import FileEntry, Manifest
from vidpress.model.features import DECODED, FeatureSpec
from vidpress.model.files import storage
from vidpress.model.files.uris import normalized
from vidpress.model.metrics import multi_hot
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.shards.shard_rows import SCHEMA, decode_codes, labels_list

if TYPE_CHECKING:
    import tensorflow as tf

    from vidpress.model.frozen.input_decoder import DecoderFile

# Rows are shuffled as codes and decoded a batch at a time, so that mixing 65,536 videos takes some 10 MB.
SHUFFLE_ROW_GROUPS = 16


class VideoBatch(NamedTuple):
    """Some videos of a data set.

    Attributes:
      ids: The videos' ids.
      labels: int32[num_labels] of each video; or, where the number of classes was given, float32[num_videos,
        num_classes] with 1 where a video has the label.
      features: float32[num_videos, num_dims], `z_hat`; or the input vectors, as they are restored.
    """

    ids: list[bytes]
    labels: list[np.ndarray] | np.ndarray
    features: np.ndarray


class VideoDataset:
    """The videos of a data set, or of a single shard, in batches.

    Each iteration is one epoch of `VideoBatch`es. If epochs are shuffled, they differ from each other. With the same
    options, two data sets give the same batches in the same order.

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
    ):
        """Open a data set. Its rows are read when it is iterated.

        Args:
          path: The folder that `vidpress encode` wrote, or one of its shards; a local path or URI.
          batch_size: The number of videos in a batch. The last batch of an epoch may be smaller.
          shuffle: Whether to read the row groups in random order and mix the videos of 16 of them at a time.
          seed: The seed of the shuffling. Workers that share a data set need the same one.
          num_classes: If given, labels are a dense matrix.
          worker: The index of this worker, in [0, num_workers).
          num_workers: How many workers share the data set. Each row group goes to one of them.
          drop_remainder: Whether to leave out the last batch if it is smaller.
          generation: The newest generation to read; by default the newest one there is. Name it to get the same videos
            again after others were added. Workers that share a data set of several generations must all name the same
            one. Otherwise, if videos are added while the workers start, some workers would read them and others not.
          features: "z_hat", the integers that are stored; or "input", the input vectors, approximately: the means of
            the videos' frames, feature after feature as in `spec`.

        Raises:
          FileNotFoundError: If there is no such file.
          ManifestError: If the folder is not a data set.
          ShardError: If the file is not a shard.
          DecoderError: If input vectors are wanted, and the data set has no decoder, or a damaged one.
          ValueError: If an option is out of its range, or if several workers share several generations and name none.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if not 0 <= worker < num_workers:
            raise ValueError(f"worker={worker} must lie in [0, num_workers={num_workers}).")
        if features not in DECODED:
            raise ValueError(f"features={features!r} must be {' or '.join(map(repr, DECODED))}.")
        self.path = normalized(path)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_classes = num_classes
        self.worker = worker
        self.num_workers = num_workers
        self.drop_remainder = drop_remainder
        self._epoch = 0
        self._entries: dict[str, FileEntry] = {}
        self._decoder: DecoderFile | None = None
        if self.path.endswith(".parquet") and not storage.is_folder(self.path):
            if features == "input":
                raise ValueError(f"{self.path} is a shard: open its data set, which has the decoder of the input.")
            shard = Shard.open(self.path)
            self.generation = None
            self.model_id = shard.header.model_id
            self.num_dims = shard.header.tables.num_dims
            row_groups = {self.path: shard.row_group_sizes}
        else:
            manifest = Manifest.load(self.path, generation)
            self.generation = manifest.generation
            if num_workers > 1 and generation is None and manifest.generation > 1:
                raise ValueError(
                    f"{self.path} has {manifest.generation} generations, and may get another one before all "
                    f"{num_workers} workers have opened it: give them all generation={manifest.generation}."
                )
            self.model_id = manifest.model_id
            self.num_dims = manifest.num_dims
            if features == "input":
                from vidpress.model.data_set.input_decoding import load_decoder  # which needs safetensors

                self._decoder = load_decoder(self.path, manifest)
                self.num_dims = self._decoder.decoder.input_size
            self._entries = {entry.name: entry for entry in manifest.shards}
            row_groups = {entry.name: list(entry.row_groups) for entry in manifest.shards}
        self._row_groups = [(name, index) for name, sizes in row_groups.items() for index in range(len(sizes))]
        self.num_videos = sum(sum(sizes) for sizes in row_groups.values())

    def __repr__(self) -> str:
        of = "" if self.generation is None else f", generation {self.generation}"
        videos = f"{self.num_videos:,} videos of {self.num_dims} numbers"
        return f"<VideoDataset {self.path}{of}: {videos}, model {self.model_id}>"

    @property
    def spec(self) -> FeatureSpec | None:
        """What an input vector is made of, if these are read."""
        return None if self._decoder is None else self._decoder.spec

    def _open_shard(self, name: str) -> Shard:
        if self.generation is None:
            return Shard.open(name)
        return open_shard(self.path, self._entries[name], self.model_id)

    def __iter__(self) -> Iterator[VideoBatch]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self.iterate(epoch, self.worker, self.num_workers)

    def iterate(self, epoch: int, worker: int, num_workers: int) -> Iterator[VideoBatch]:
        """Iterate over one epoch as one of several workers, instead of this data set's own epoch and worker.

        Raises:
          ShardError: If a shard is damaged, or does not belong to this data set.
        """
        rng = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        row_groups = self._row_groups
        if rng is not None:
            row_groups = [row_groups[index] for index in rng.permutation(len(row_groups))]
        row_groups = row_groups[worker::num_workers]
        step = SHUFFLE_ROW_GROUPS if self.shuffle else 1
        open_shard = functools.lru_cache(maxsize=SHUFFLE_ROW_GROUPS)(self._open_shard)
        tables = None
        pending = pa.Table.from_batches([], SCHEMA)
        for start in range(0, len(row_groups), step):
            batches = []
            for name, row_group in row_groups[start : start + step]:
                shard = open_shard(name)
                # A shard has only the banks of tables that its own rows use.
                try:
                    tables = shard.header.tables if tables is None else tables.union(shard.header.tables)
                except ValueError as error:
                    raise ShardError(f"{shard.name} has other tables than the shards before it: {error}") from error
                batches.append(shard.read(row_group).replace_schema_metadata())
            rows = pa.Table.from_batches(batches, SCHEMA)
            if rng is not None:
                rows = rows.take(rng.permutation(rows.num_rows))
            pending = pa.concat_tables([pending, rows]).combine_chunks()
            whole = pending.num_rows - pending.num_rows % self.batch_size
            for first in range(0, whole, self.batch_size):
                yield self._decode(pending.slice(first, self.batch_size), tables)
            pending = pending.slice(whole)
        if pending.num_rows and not self.drop_remainder:
            yield self._decode(pending, tables)

    def _decode(self, rows: pa.Table, tables: Any) -> VideoBatch:
        batch = rows.combine_chunks().to_batches()[0]
        labels = labels_list(batch["labels"])
        z_hat = decode_codes(batch, tables)
        return VideoBatch(
            ids=batch["id"].to_pylist(),
            labels=labels if self.num_classes is None else multi_hot(labels, self.num_classes).astype(np.float32),
            features=z_hat.astype(np.float32) if self._decoder is None else self._decoder.decoder.restore(z_hat),
        )

    def to_tf(self) -> tf.data.Dataset:
        """Return the batches as a `tf.data.Dataset` of `(ids, labels, features)`.

        Labels are a `tf.RaggedTensor`, or dense if `num_classes` was given.
        """
        import tensorflow as tf

        dense = self.num_classes is not None

        def generate() -> Iterator[tuple[Any, Any, Any]]:
            for ids, labels, features in self:
                if not dense:
                    labels = tf.RaggedTensor.from_row_lengths(
                        np.concatenate(labels), [len(values) for values in labels]
                    )
                yield ids, labels, features

        labels_spec = (
            tf.TensorSpec([None, self.num_classes], tf.float32)
            if dense
            else tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1)
        )
        features_spec = tf.TensorSpec([None, self.num_dims], tf.float32)
        return tf.data.Dataset.from_generator(
            generate, output_signature=(tf.TensorSpec([None], tf.string), labels_spec, features_spec)
        )

    def to_torch(self) -> Any:
        """Return a `torch.utils.data.IterableDataset` for a `DataLoader(..., batch_size=None)`.

        The workers of the loader divide this worker's row groups among themselves.
        """
        from vidpress.model.data_set.torch_dataset import TorchVideoDataset

        return TorchVideoDataset(self)
