"""Decode shards within DuckDB's SQL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from vidpress.model.reading.stored_videos import StoredRows, StoredVideos
from vidpress.model.shards.shard_header import ShardError


def register(connection: Any, videos: StoredVideos, name: str) -> None:
    """Add a scalar function of a code and its bank that returns the features, FLOAT[num_dims].

    Args:
      connection: A `duckdb.DuckDBPyConnection`.
      videos: The data set whose shards the codes are from.
      name: The function's name.
    """
    row_groups = videos.row_groups()
    shards = iter(list(row_groups.numbers))

    def decode(code: pa.ChunkedArray, bank: pa.ChunkedArray) -> pa.Array:
        code, bank = (_array(column) for column in (code, bank))
        if code.null_count or bank.null_count:
            raise ShardError(f"{name}: a code or a bank is NULL, which those of a shard never are.")
        # A shard has only the banks of tables that its own rows use.
        needed = np.unique(bank.to_numpy(zero_copy_only=False))
        while row_groups.num_banks <= needed.max(initial=0) or not row_groups.tables.has_bank[needed].all():
            shard = next(shards, None)
            if shard is None:
                raise ShardError(f"{name}: {videos.path} has no tables of one of the banks {needed.tolist()}.")
            row_groups.shard(shard)
        rows = pa.RecordBatch.from_arrays([code.cast(pa.binary()), bank.cast(pa.uint8())], names=["code", "bank"])
        features = videos.features(StoredRows(rows, row_groups.tables))
        return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), videos.num_dims)

    connection.create_function(
        name, decode, ["BLOB", "UTINYINT"], f"FLOAT[{videos.num_dims}]", type="arrow", null_handling="special"
    )


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
