"""Decode rows of shards that other engines have read: DuckDB, Polars, Spark, Hugging Face, or any other with Arrow."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from vidpress.model.reading.row_groups import OfProcess, RowGroups
from vidpress.model.reading.stored_videos import StoredRows, StoredVideos
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.tables.range_coding_tables import RangeCodingTables

if TYPE_CHECKING:
    import polars as pl

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table, dict[str, Any])

_STORED = ("code", "bank")
_DECODED = "features"


class CodeDecoder:
    """Decodes codes of a data set's shards. Threads can share it, and processes get their own.

    Args:
      videos: The data set whose shards the codes are from.
    """

    def __init__(self, videos: StoredVideos):
        self._videos = videos
        self._tables: OfProcess[_Tables] = OfProcess()

    @property
    def num_dims(self) -> int:
        """How many numbers a video's features have."""
        return self._videos.num_dims

    def __call__(self, code: pa.Array | pa.ChunkedArray, bank: pa.Array | pa.ChunkedArray) -> pa.FixedSizeListArray:
        """Decode codes.

        Args:
          code: The codes, of any of Arrow's types of binary values.
          bank: The bank of each, of any type of integers.

        Returns:
          The features, float32[num_dims] of each.

        Raises:
          ShardError: If a code or a bank is null, or if no shard has the tables of a bank.
          DamagedCodeError: If a code is seen to be damaged.
        """
        code, bank = (_array(column) for column in (code, bank))
        if code.null_count or bank.null_count:
            raise ShardError(f"{self._videos.path}: a code or a bank is NULL, which those of a shard never are.")
        rows = pa.RecordBatch.from_arrays([code.cast(pa.binary()), bank.cast(pa.uint8())], names=list(_STORED))
        features = np.empty(0, np.float32)
        if rows.num_rows:
            tables = self._tables.get(self._new_tables).of(np.unique(rows["bank"].to_numpy(zero_copy_only=False)))
            features = self._videos.features(StoredRows(rows, tables))
        return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), self.num_dims)

    def _new_tables(self) -> _Tables:
        return _Tables(self._videos.path, self._videos.row_groups())

    def rows(self, rows: Rows) -> Rows:
        """Return rows with `features` in the place of `code` and `bank`; see `VideoDataset.decode_rows`."""
        if isinstance(rows, Mapping):
            others = {name: column for name, column in rows.items() if name not in _STORED}
            decoded = self(pa.array(rows["code"], pa.binary()), pa.array(rows["bank"], pa.uint8()))
            return {**others, _DECODED: decoded.values.to_numpy().reshape(-1, self.num_dims)}
        decoded = self(rows["code"], rows["bank"])
        return rows.drop_columns(list(_STORED)).append_column(_DECODED, decoded)


class _Tables:
    """The tables of a data set's shards, which are opened one after the other. A shard has only those that it uses."""

    def __init__(self, path: str, row_groups: RowGroups):
        self._path = path
        self._row_groups = row_groups
        self._unopened = list(row_groups.numbers)[::-1]
        self._lock = threading.Lock()

    def of(self, banks: np.ndarray) -> RangeCodingTables:
        """Return tables that have these banks.

        Raises:
          ShardError: If no shard has them.
        """
        with self._lock:
            while self._row_groups.num_banks <= banks.max() or not self._row_groups.tables.has_bank[banks].all():
                if not self._unopened:
                    raise ShardError(f"{self._path} has no tables of one of the banks {banks.tolist()}.")
                self._row_groups.shard(self._unopened[-1])
                self._unopened.pop()  # only now: what cannot be opened for a while is tried again
            return self._row_groups.tables


def in_spark(decoder: CodeDecoder, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Decode batches of rows for Spark, which knows no lists of a fixed size."""
    for batch in batches:
        decoded = decoder.rows(batch)
        place = decoded.schema.get_field_index(_DECODED)
        yield decoded.set_column(place, _DECODED, decoded[_DECODED].cast(pa.list_(pa.float32())))


def register(connection: Any, decoder: CodeDecoder, name: str) -> None:
    """Add a scalar function of a code and its bank to a DuckDB connection: the features, FLOAT[num_dims]."""
    result = f"FLOAT[{decoder.num_dims}]"
    connection.create_function(
        name, decoder.__call__, ["BLOB", "UTINYINT"], result, type="arrow", null_handling="special"
    )


def expression(decoder: CodeDecoder) -> pl.Expr:
    """Return a Polars expression of the columns `code` and `bank`: the features, Array(Float32, num_dims)."""
    import polars as pl

    def decode(rows: pl.Series) -> pl.Series:
        return pl.Series(decoder(*(rows.struct.field(name).to_arrow() for name in _STORED)))

    dtype = pl.Array(pl.Float32, decoder.num_dims)
    return pl.struct(*_STORED).map_batches(decode, return_dtype=dtype, is_elementwise=True).alias(_DECODED)


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
