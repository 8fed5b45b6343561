"""How accurate the task is on videos' features, and how many bytes they take: unchanged, and read back from a shard."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vidpress.model import metrics
from vidpress.model.data_set import rows
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.videos import PooledVideo
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import SCHEMA, decode_codes, labels_list
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.tables.bits import bits_by_dim
from vidpress.pipeline.evaluation.points import by_rank

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

_CHUNK = 2048


def measure_shard(model: FrozenModel, videos: LabelledVideos) -> dict[str, Any]:
    """Encode videos to a shard in memory, decode it, and measure what was read.

    Args:
      model: With its task head.
      videos: Labelled videos that it was not trained on.

    Returns:
      validation: The task's metrics on the decoded features. bytes_per_video: the range coder's codes and the bits that
      name the bank. stored_bytes_per_video: the columns `code` and `bank` of the Parquet file. tables_bytes: the tables
      in the file's footer. bits_per_video: the information under the tables. bits_by_rank: pairs of a rank and the bits
      a video of the dimension that has it; the most expensive dimension has rank 1.
    """
    bits = np.zeros(model.num_dims)
    opened = _shard_of(model, videos)
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
        "bits_per_video": float(bits.sum() / num_videos),
        "bits_by_rank": by_rank(np.sort(bits / num_videos)[::-1]),
    }


def _shard_of(model: FrozenModel, videos: LabelledVideos) -> Shard:
    """Encode videos to a shard in memory, in their order."""
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
    file = io.BytesIO()
    header = ShardHeader(model.model_id, model.spec, model.tables)
    write_shard(file, pa.concat_tables(tables).select(SCHEMA.names), header)
    return Shard(file, "the shard in memory")


def stored_features(model: FrozenModel, videos: LabelledVideos) -> np.ndarray:
    """Encode videos to a shard in memory, and return what is read back: float32[num_videos, num_dims], `z_hat`."""
    opened = _shard_of(model, videos)
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
