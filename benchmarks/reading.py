"""Read encoded videos for training on one core, against the usual ways to store the same activations.

The same ids, labels and activations are stored as a vidpress data set, as Parquet of float32 and of float16 with zstd,
and as TFRecords read by tf.data. Hugging Face's `datasets` reads the Parquet of float32, too, and Lance, where it is
installed, a copy in its own format. A VideoDataset is also read by PyTorch's DataLoader and through `to_tf()`, as
Keras does. Each gives batches of ids, labels and float32 features, in the order of the files; labels are dense where a
name says so. The times are CPU times, from page cache: of whole epochs, which some frameworks begin slowly, and
from an epoch's first batch on, as in long epochs.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import workload
from results import Report, parser

from vidpress.model.data_set.rows import encode_videos, merge_rows
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import write_tfrecords
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE, labels_list
from vidpress.model.shards.shard_writer import write_shard
from vidpress.pipeline.launching import machine

BATCH_SIZE = 256
TARGET = 1.0
FRAMEWORK_TARGET = 0.8

Batches = Iterator[tuple[Any, Any, Any]]


class Times(NamedTuple):
    """CPU seconds of an epoch.

    Attributes:
      whole: From its beginning to its end.
      after_first: From its first batch, for which files are opened and graphs are built, to its end.
    """

    whole: float
    after_first: float


def write_data_set(path: str, model: FrozenModel, videos: Sequence[workload.PooledVideo]) -> pa.Table:
    """Write a shard, and return its ids and labels in its order."""
    rows = pa.Table.from_batches([encode_videos(model, videos[i : i + 1024]).rows for i in range(0, len(videos), 1024)])
    merged, _, _ = merge_rows(rows.unify_dictionaries())
    with open(path, "wb") as file:
        write_shard(file, merged, ShardHeader(model.model_id, model.spec, model.tables))
    return merged.select(["id", "labels"])


def write_parquet(path: str, ids_and_labels: pa.Table, z_hat: np.ndarray, dtype: type) -> None:
    """Write activations as Parquet with zstd, in row groups as large as a shard's."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(z_hat.astype(dtype).reshape(-1)), z_hat.shape[1])
    pq.write_table(
        ids_and_labels.append_column("features", column), path, compression="zstd", row_group_size=ROW_GROUP_SIZE
    )


def read_parquet(path: str) -> Batches:
    """Read what `write_parquet` wrote."""
    for batch in pq.ParquetFile(path).iter_batches(BATCH_SIZE):
        features = batch["features"].flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        yield batch["id"].to_pylist(), labels_list(batch["labels"]), features.reshape(batch.num_rows, -1)


def write_examples(path: str, ids_and_labels: pa.Table, z_hat: np.ndarray) -> None:
    """Write activations as TFRecords of Examples."""
    payloads = (
        serialize_record({"id": video_id, "labels": labels, "features": row})
        for video_id, labels, row in zip(
            ids_and_labels["id"].to_pylist(),
            ids_and_labels["labels"].to_pylist(),
            z_hat.astype(np.float32),
            strict=True,
        )
    )
    with open(path, "wb") as file:
        write_tfrecords(file, payloads)


def read_examples(path: str, num_dims: int) -> Batches:
    """Read what `write_examples` wrote, with tf.data."""
    import tensorflow as tf

    features = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.RaggedFeature(tf.int64),
        "features": tf.io.FixedLenFeature([num_dims], tf.float32),
    }
    dataset = tf.data.TFRecordDataset(path).batch(BATCH_SIZE)
    for batch in dataset.map(lambda payloads: tf.io.parse_example(payloads, features)).prefetch(2):
        yield batch["id"], batch["labels"], batch["features"].numpy()


def read_with_datasets(path: str) -> Batches:
    """Read what `write_parquet` wrote, with Hugging Face's `datasets`."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=path, split="train", streaming=True).with_format("numpy")
    for batch in rows.iter(BATCH_SIZE):
        yield batch["id"], batch["labels"], batch["features"]


def read_lance(path: str) -> Batches:
    """Read what `lance.write_dataset` wrote."""
    import lance

    for batch in lance.dataset(path).to_batches(batch_size=BATCH_SIZE):
        features = batch["features"].flatten().to_numpy().reshape(batch.num_rows, -1)
        yield batch["id"].to_pylist(), labels_list(batch["labels"]), features


def in_tensorflow(dataset: VideoDataset) -> Callable[[], Batches]:
    """Return what reads a data set through `to_tf`."""
    batches = dataset.to_tf(with_ids=True)

    def read() -> Batches:
        for ids, features, labels in batches:
            yield ids, labels, features

    return read


def in_torch(dataset: VideoDataset) -> Callable[[], Batches]:
    """Return what reads a data set through a DataLoader."""
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset.to_torch(), batch_size=None)

    def read() -> Batches:
        for ids, labels, features in loader:
            yield ids, labels, features.numpy()

    return read


def bytes_of(path: pathlib.Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def seconds(read: Callable[[], Batches], expected: np.ndarray | None) -> Times:
    """Return the CPU time of one epoch, and compare its features with what they should be."""
    start = time.process_time()
    batches = read()
    first = next(batches)
    begun = time.process_time()
    rest = list(batches) if expected is not None else sum(1 for _ in batches)
    taken = time.process_time()
    if expected is not None:
        found = np.concatenate([np.asarray(features) for _, _, features in (first, *rest)])
        if not np.array_equal(found, expected):
            raise SystemExit("The features that were read are not those that were written.")
    return Times(taken - start, taken - begun)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the activations in all forms, and read them in turns."""
    command_line = parser(__doc__, repeats=7)
    command_line.add_argument("--num_videos", type=int, default=32768, help="(default: %(default)s)")
    workload.add_options(command_line)
    args = command_line.parse_args(argv)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(machine.describe(), flush=True)
    encoding = workload.encoding(args, args.num_videos)
    videos, model = encoding.videos, encoding.model
    report = Report("Reading for training, on one core")
    report.note(
        f"{len(videos):,} {encoding.source}, {model.num_dims} activations each, by "
        f"{encoding.model_name}; batches of {BATCH_SIZE}; {args.repeats} turns after one "
        "to warm up."
    )
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-") as folder:
        paths = {name: f"{folder}/{name}" for name in ("shard.parquet", "float32", "float16", "tfrecord", "lance")}
        ids_and_labels = write_data_set(paths["shard.parquet"], model, videos)
        row_of = {video.id: index for index, video in enumerate(videos)}
        z_hat = model.quantize(encoding.x)[[row_of[video_id] for video_id in ids_and_labels["id"].to_pylist()]]
        write_parquet(paths["float32"], ids_and_labels, z_hat, np.float32)
        write_parquet(paths["float16"], ids_and_labels, z_hat, np.float16)
        write_examples(paths["tfrecord"], ids_and_labels, z_hat)
        shard = paths["shard.parquet"]
        num_classes = 1 + max(pc.max(ids_and_labels["labels"].combine_chunks().flatten()).as_py(), 3861)
        dense = VideoDataset(shard, BATCH_SIZE, num_classes=num_classes)
        readers: dict[str, tuple[str, Callable[[], Batches]]] = {
            "VideoDataset": ("shard.parquet", lambda: iter(VideoDataset(shard, BATCH_SIZE))),
            "VideoDataset, shuffled": (
                "shard.parquet",
                lambda: iter(VideoDataset(shard, BATCH_SIZE, shuffle=True)),
            ),
            "VideoDataset, dense": ("shard.parquet", lambda: iter(dense)),
            "to_tf()": ("shard.parquet", in_tensorflow(VideoDataset(shard, BATCH_SIZE))),
            "to_tf(), dense": ("shard.parquet", in_tensorflow(dense)),
            "float32 Parquet, zstd": ("float32", lambda: read_parquet(paths["float32"])),
            "float16 Parquet, zstd": ("float16", lambda: read_parquet(paths["float16"])),
            "TFRecord, tf.data": ("tfrecord", lambda: read_examples(paths["tfrecord"], model.num_dims)),
        }
        alone = {"to_tf()": "VideoDataset", "to_tf(), dense": "VideoDataset, dense"}
        if importlib.util.find_spec("torch"):
            readers["DataLoader"] = ("shard.parquet", in_torch(VideoDataset(shard, BATCH_SIZE)))
            alone["DataLoader"] = "VideoDataset"
        if importlib.util.find_spec("datasets"):
            readers["float32 Parquet, datasets"] = ("float32", lambda: read_with_datasets(paths["float32"]))
        if importlib.util.find_spec("lance"):
            import lance

            lance.write_dataset(pq.read_table(paths["float32"]), paths["lance"])
            readers["float32, Lance"] = ("lance", lambda: read_lance(paths["lance"]))
        times: dict[str, list[Times]] = {name: [] for name in readers}
        for turn in range(args.repeats + 1):
            for name, (_, read) in readers.items():
                taken = seconds(read, None if turn or name.endswith("shuffled") else z_hat.astype(np.float32))
                if turn:
                    times[name].append(taken)
        report.row("videos/s", {name: [len(videos) / s.whole for s in taken] for name, taken in times.items()})
        after_first = len(videos) - BATCH_SIZE
        report.row(
            "videos/s after an epoch's first batch",
            {name: [after_first / s.after_first for s in taken] for name, taken in times.items()},
        )
        report.row(
            "bytes a video in the file",
            {name: bytes_of(pathlib.Path(paths[file])) / len(videos) for name, (file, _) in readers.items()},
        )
    medians = {
        name: Times(*(statistics.median(values) for values in zip(*taken, strict=True)))
        for name, taken in times.items()
    }
    report.target(
        "VideoDataset against zstd float32 Parquet",
        TARGET,
        medians["float32 Parquet, zstd"].whole / medians["VideoDataset"].whole,
    )
    for name, plain in alone.items():
        share, share_after_first = (
            by_itself / taken for taken, by_itself in zip(medians[name], medians[plain], strict=True)
        )
        report.target(f"{name}, as a share of {plain} by itself", FRAMEWORK_TARGET, share)
        report.target(f"{name}, likewise, after an epoch's first batch", FRAMEWORK_TARGET, share_after_first)
    report.finish(args)


if __name__ == "__main__":
    main()
