"""How accurate the task is on videos' features, and how many bytes they take: unchanged, and read back from a shard."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model import metrics
from vidpress.model.data_set import rows
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.videos import PooledVideo
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import SCHEMA, decode_codes, labels_list
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.shards.shared_tables import TablesFile
from vidpress.model.tables.bits import bits_by_dim
from vidpress.pipeline.evaluation.points import by_rank

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

_CHUNK = 2048

# A day's videos of a small warehouse, what `vidpress encode` makes of frame-level input, and a compacted shard.
SHARD_SIZES = (5_000, 50_000, 500_000)


def measure_shard(model: FrozenModel, videos: LabelledVideos) -> dict[str, Any]:
    """Encode videos to a shard in memory, decode it, and measure what was read.

    Args:
      model: With its task head.
      videos: Labelled videos that it was not trained on.

    Returns:
      validation: The task's metrics on the decoded features. bytes_per_video: the range coder's codes and the bits that
      name the bank. stored_bytes_per_video: the columns `code` and `bank` of the Parquet file. tables_bytes: the packed
      tables. all_in_bytes_per_video: `all_in_bytes`, by the videos in a shard. bits_per_video: the information
      under the tables. bits_by_rank: pairs of a rank and the bits a video of the dimension that has it; the most
      expensive dimension has rank 1.
    """
    bits = np.zeros(model.num_dims)
    encoded = _encoded(model, videos)
    opened = _shard_of(model, encoded)
    num_classes = model.logits(np.zeros((1, model.num_dims))).shape[1]
    accumulator = metrics.MetricsAccumulator(num_classes)
    code_bytes = 0
    for group in range(len(opened.row_group_sizes)):
        batch = opened.read(group)
        z_hat = decode_codes(batch, opened.header.tables)
        bits += bits_by_dim(opened.header.tables, z_hat, batch["bank"].to_numpy()) * len(z_hat)
        code_bytes += sum(map(len, batch["code"].to_pylist()))
        for part in chunks(len(z_hat)):
            labels = metrics.multi_hot(labels_list(batch["labels"].take(part)), num_classes)
            accumulator.update(model.logits(z_hat[part]), labels)
    num_videos = len(videos)
    stored = opened.column_bytes
    return {
        "validation": rounded(dataclasses.asdict(accumulator.result())),
        "bytes_per_video": code_bytes / num_videos + np.log2(model.tables.num_banks) / 8,
        "stored_bytes_per_video": (stored["code"] + stored["bank"]) / num_videos,
        "tables_bytes": len(opened.header.tables.to_bytes()),
        "all_in_bytes_per_video": {str(size): all_in_bytes(model, encoded, size) for size in SHARD_SIZES},
        "bits_per_video": float(bits.sum() / num_videos),
        "bits_by_rank": by_rank(np.sort(bits / num_videos)[::-1]),
    }


def all_in_bytes(model: FrozenModel, rows: pa.Table, num_videos: int) -> float:
    """Write a shard as `vidpress encode` does, and return its bytes a video less those of ids and labels.

    Codes, banks, lengths, checksums, the footer, and the tables if the shard carries them: all is counted. Where it
    shares a file of tables instead, that file is counted once in a data set, and not here.

    Args:
      model: Encoded the rows.
      rows: Encoded videos, of `SCHEMA`. They are repeated until there are enough: bytes a video do not depend on which.
      num_videos: How many the shard has.
    """
    repeated = rows.take(np.arange(num_videos) % rows.num_rows)
    ids = pa.array([b"%011d" % number for number in range(num_videos)], pa.binary())
    repeated = repeated.set_column(repeated.schema.get_field_index("id"), SCHEMA.field("id"), ids)
    file = io.BytesIO()
    tables_file = TablesFile.of(model.tables.to_bytes())
    write_shard(file, repeated, ShardHeader(model.model_id, model.spec, model.tables, tables_file=tables_file))
    beside = sum(
        chunk.total_compressed_size
        for group in _row_groups(file)
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.partition(".")[0] in ("id", "labels")
    )
    return (len(file.getbuffer()) - beside) / num_videos


def _row_groups(file: io.BytesIO) -> Iterator[pq.RowGroupMetaData]:
    metadata = pq.read_metadata(file)
    return map(metadata.row_group, range(metadata.num_row_groups))


def _encoded(model: FrozenModel, videos: LabelledVideos) -> pa.Table:
    """Encode videos, in their order."""
    tables = []
    for start in range(0, len(videos), _CHUNK):
        x = videos.x[start : start + _CHUNK]
        pooled = [
            PooledVideo(str(start + i).encode(), _labels(videos, start + i), values) for i, values in enumerate(x)
        ]
        encoded = rows.encode_videos(model, pooled)
        if encoded.dead_letters:
            raise ValueError(f"Video {start}: {encoded.dead_letters[0].reason}.")
        tables.append(pa.Table.from_batches([encoded.rows]))
    return pa.concat_tables(tables).select(SCHEMA.names)


def _shard_of(model: FrozenModel, encoded: pa.Table) -> Shard:
    """Write encoded videos to a shard in memory."""
    file = io.BytesIO()
    write_shard(file, encoded, ShardHeader(model.model_id, model.spec, model.tables))
    return Shard(file, "the shard in memory")


def stored_features(model: FrozenModel, videos: LabelledVideos) -> np.ndarray:
    """Encode videos to a shard in memory, and return what is read back: float32[num_videos, num_dims], `z_hat`."""
    opened = _shard_of(model, _encoded(model, videos))
    batches = (opened.read(group) for group in range(len(opened.row_group_sizes)))
    return np.concatenate([decode_codes(batch, opened.header.tables).astype(np.float32) for batch in batches])


def task_metrics(logits: Callable[[np.ndarray], np.ndarray], videos: LabelledVideos) -> dict[str, float]:
    """Return the task's metrics of `logits` of the videos' `x`: gap, hit_at_1, perr, mean_ap and num_videos."""
    accumulator = None
    for chunk in chunks(len(videos)):
        scores = logits(np.asarray(videos.x[chunk]))
        accumulator = accumulator or metrics.MetricsAccumulator(scores.shape[1])
        accumulator.update(scores, videos.multi_hot(chunk, scores.shape[1]))
    if accumulator is None:
        raise ValueError("Metrics need at least one video with labels; there was none.")
    return rounded(dataclasses.asdict(accumulator.result()))


def _labels(videos: LabelledVideos, row: int) -> np.ndarray:
    return videos.labels[videos.label_start[row] : videos.label_start[row + 1]]


def chunks(num_rows: int) -> Iterator[np.ndarray]:
    """Yield the numbers of the rows in chunks, each of which goes through a network at once."""
    for start in range(0, num_rows, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, num_rows))


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, those that are floats with six decimals."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
