"""Writing a shard: equal rows give equal bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidpress.model.kept_columns import KeptColumn
from vidpress.model.shards import shard_layout, string_pages
from vidpress.model.shards.shard_header import CHECKSUMS_KEY, ShardHeader
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE, row_group_crc32, schema_with


def write_shard(file: BinaryIO, rows: pa.Table, header: ShardHeader) -> tuple[int, ...]:
    """Write rows as a shard; equal rows give equal bytes.

    Ids are front-coded and codes only length-coded: no dictionaries and no statistics on what is random, and
    no compression on what is compressed. Every page carries a checksum.

    Args:
      file: Where to.
      rows: A table with the columns of `schema_with(header.columns)`, at least one row, in the order to keep.
      header: What goes into the metadata, as far as the rows need it (`ShardHeader.for_rows`).

    Returns:
      How many rows each row group got.
    """
    if not rows.num_rows:
        raise ValueError("A shard without rows is not written.")
    schema = schema_with(header.columns)
    rows = rows.select(schema.names)
    bounds = list(itertools.pairwise(_row_group_bounds(rows, header.columns)))
    if len(bounds) > shard_layout.MAX_ROW_GROUPS:
        raise ValueError(
            f"A shard would have {len(bounds):,} row groups, more than the {shard_layout.MAX_ROW_GROUPS:,} that can be "
            "read: use more shards."
        )
    elements = {f"{column.name}.list.element": column.kind for column in header.columns}
    code_bytes = pc.sum(pc.binary_length(rows["code"])).as_py()
    metadata = header.for_rows(np.unique(rows["bank"]), code_bytes).metadata
    with pq.ParquetWriter(
        file,
        schema,
        version="2.6",
        use_dictionary=["bank"],
        compression={
            **dict.fromkeys(["labels.list.element", "num_frames", "bank", *elements], "zstd"),
            "id": "none",
            "code": "none",
        },
        column_encoding={
            "id": "DELTA_BYTE_ARRAY",
            "labels.list.element": "DELTA_BINARY_PACKED",
            "num_frames": "DELTA_BINARY_PACKED",
            "code": "DELTA_LENGTH_BYTE_ARRAY",
            **{path: "DELTA_BINARY_PACKED" if kind == "int64" else "PLAIN" for path, kind in elements.items()},
        },
        write_statistics=["id"],
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        sizes, checksums = [], []
        for start, end in bounds:
            # Taken, and not sliced: a slice's offsets count from the beginning of all rows.
            (row_group,) = rows.take(np.arange(start, end)).cast(schema).combine_chunks().to_batches()
            writer.write_batch(row_group, row_group_size=ROW_GROUP_SIZE)
            sizes.append(row_group.num_rows)
            checksums.append(f"{row_group_crc32(row_group, metadata):08x}")
        writer.add_key_value_metadata({**metadata, CHECKSUMS_KEY: ",".join(checksums)})
    return tuple(sizes)


def _row_group_bounds(rows: pa.Table, columns: Sequence[KeptColumn]) -> Iterator[int]:
    """Yield where row groups begin, and where the last one ends: they hold what can be read, and no more.

    Raises:
      ValueError: If a row alone is too large for a row group.
    """
    labels = pc.max_element_wise(pc.list_value_length(rows["labels"]), 1).to_numpy()
    id_bytes = pc.binary_length(rows["id"]).to_numpy()
    too_large = (labels > shard_layout.MAX_ROW_GROUP_LABELS) | (id_bytes > string_pages.MAX_ID_BYTES)
    if too_large.any():
        raise ValueError(f"Row {np.argmax(too_large)} has more labels, or a longer id, than a shard can hold.")
    values, num_bytes = _kept_sizes(rows, columns)
    if ((values > shard_layout.MAX_ROW_GROUP_KEPT_VALUES) | (num_bytes > shard_layout.MAX_ROW_GROUP_KEPT_BYTES)).any():
        raise ValueError("A row keeps more of the input than a shard can hold.")
    limits = (
        (shard_layout.MAX_ROW_GROUP_LABELS, labels),
        (shard_layout.MAX_ROW_GROUP_ID_BYTES, id_bytes),
        (shard_layout.MAX_ROW_GROUP_KEPT_VALUES, values),
        (shard_layout.MAX_ROW_GROUP_KEPT_BYTES, num_bytes),
    )
    ends = [(limit, np.append(0, np.cumsum(of_row, dtype=np.int64))) for limit, of_row in limits]
    yield (start := 0)
    while start < rows.num_rows:
        end = min(rows.num_rows, start + ROW_GROUP_SIZE)
        for limit, so_far in ends:
            end = min(end, int(np.searchsorted(so_far, so_far[start] + limit, side="right")) - 1)
        yield (start := end)


def _kept_sizes(rows: pa.Table, columns: Sequence[KeptColumn]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many kept values each row has, null and an empty list as one, and the bytes of its strings."""
    values = np.zeros(rows.num_rows, np.int64)
    num_bytes = np.zeros(rows.num_rows, np.int64)
    for column in columns:
        lists = rows[column.name].combine_chunks()
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
        values += np.maximum(lengths, 1)
        if column.kind in ("string", "bytes"):
            of_value = pc.binary_length(lists.flatten()).to_numpy()
            ends = np.append(0, np.cumsum(of_value, dtype=np.int64))[np.append(0, np.cumsum(lengths))]
            num_bytes += np.diff(ends)
    return values, num_bytes
