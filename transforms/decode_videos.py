"""Decode rows to features."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa

from vidpress.model.shards.shard_rows import decode_rows
from vidpress.transforms import metrics, progress


@dataclasses.dataclass
class DecodeVideos(beam.PTransform):
    """Decode Arrow batches of rows from `ReadShards`. Gives batches with a column `z_hat`, float32[num_dims]."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """Decode each batch. The result has the schema `vidpress.model.shards.shard_rows.decoded_schema`."""
        return rows | "Decode" >> beam.Map(_decode)


def _decode(batch: pa.RecordBatch) -> pa.RecordBatch:
    decoded = decode_rows(batch)
    metrics.VIDEOS_DECODED.inc(decoded.num_rows)
    progress.advance(decoded.num_rows)
    return decoded
