"""The rows of a shard: their columns, their checksum, and how they are decoded."""

from __future__ import annotations

import functools
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidpress.model.coding import range_coder
from vidpress.model.coding.range_coder import DamagedCodeError
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Large enough that the footer's share of a row is a fraction of a byte, small enough that a shuffle by row groups
# mixes well and a reader holds little: decoded to 2000 float32 dimensions, one row group is 33 MB.
ROW_GROUP_SIZE = 4096

SCHEMA = pa.schema(
    [
        pa.field("id", pa.binary(), nullable=False),
        pa.field("labels", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("num_frames", pa.int32()),
        pa.field("bank", pa.uint8(), nullable=False),
        pa.field("code", pa.binary(), nullable=False),
    ]
)

# What a list of each kind of kept values holds.
_ELEMENTS = {"string": pa.string(), "bytes": pa.binary(), "int64": pa.int64(), "float": pa.float32()}

_DECODED_NAMES = ("id", "labels", "num_frames")

# Integers that are converted at once: so few that malloc keeps the memory in between, where more would be cleared anew.
_CONVERTED_AT_ONCE = 2**14


def kept_fields(columns: Sequence[KeptColumn]) -> list[pa.Field]:
    """Return the fields of kept columns: lists, which are null where a record does not have the key."""
    return [
        pa.field(column.name, pa.list_(pa.field("element", _ELEMENTS[column.kind], nullable=False)))
        for column in columns
    ]


def schema_with(columns: Sequence[KeptColumn]) -> pa.Schema:
    """Return the columns of a shard that keeps some of the input."""
    return pa.schema([*SCHEMA, *kept_fields(columns)])


def row_group_crc32(batch: pa.RecordBatch, metadata: Mapping[str, str]) -> int:
    """Return the checksum of a row group's values: the CRC-32 (as in zlib) of these, one after the other.

    The header's metadata as JSON with sorted keys; then of `id`, `labels` and `code` the int32 offsets, counted
    from zero, and the values; `num_frames` as int32, -1 for null; and since version 2 `bank`. Then of each kept column
    the int32 number of values of each row, -1 for null; for strings and bytes the int32 length of each value; and the
    values. All little endian.

    Args:
      batch: The row group's rows, of `schema_with` or the schema of version 1.
      metadata: The header in the shard's metadata.
    """
    crc = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in ("id", "labels", "code"):
        column = batch[name]
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        crc = zlib.crc32(np.subtract(offsets, offsets[0]), crc)
        if name == "labels":
            values = column.values.to_numpy()[offsets[0] : offsets[-1]]
        else:
            data = column.buffers()[2]
            values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.empty(0)
        crc = zlib.crc32(values, crc)
    crc = zlib.crc32(batch["num_frames"].fill_null(-1).to_numpy(), crc)
    if "bank" in batch.schema.names:
        crc = zlib.crc32(batch["bank"].to_numpy(), crc)
    for name in batch.schema.names[len(SCHEMA) :]:
        crc = _crc32_of_kept(batch[name], crc)
    return crc


def _crc32_of_kept(column: pa.ListArray, crc: int) -> int:
    crc = zlib.crc32(pc.list_value_length(column).fill_null(-1).to_numpy(), crc)
    values = column.flatten()
    if not pa.types.is_primitive(values.type):
        crc = zlib.crc32(pc.binary_length(values).to_numpy(), crc)
        offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
        data = values.buffers()[2]
        return zlib.crc32(data[int(offsets[0]) : int(offsets[-1])], crc) if data is not None and len(values) else crc
    return zlib.crc32(values.to_numpy(), crc)


def code_array(data: np.ndarray, offsets: np.ndarray) -> pa.BinaryArray:
    """Return range-coded strings as an Arrow array.

    Args:
      data: uint8[total], the strings one after the other.
      offsets: int64[num_videos + 1], where each begins.
    """
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def decode_codes(rows: pa.RecordBatch, tables: RangeCodingTables) -> np.ndarray:
    """Decode the codes of rows.

    Args:
      rows: A batch with the columns `bank` and `code` of `SCHEMA`.
      tables: The tables that the codes were made with.

    Returns:
      int32[num_videos, num_dims], `z_hat`.

    Raises:
      vidpress.model.coding.range_coder.DamagedCodeError: If a code is seen to be damaged or missing, or its bank is
        none of the tables'.
    """
    codes, banks = rows["code"], rows["bank"]
    bank = banks.fill_null(0).to_numpy(zero_copy_only=False)
    readable = (bank < tables.num_banks) & tables.has_bank[np.minimum(bank, tables.num_banks - 1)]
    for column in (codes, banks):
        if column.null_count:
            readable &= column.is_valid().to_numpy(zero_copy_only=False)
    if not readable.all():
        raise DamagedCodeError(np.flatnonzero(~readable).tolist(), len(codes))
    _, offsets_buffer, data_buffer = codes.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[codes.offset : codes.offset + len(codes) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    return range_coder.decode(tables, data, offsets.astype(np.int64), bank=bank)


def labels_list(labels: pa.ListArray) -> list[np.ndarray]:
    """Return the rows of a labels column as int32 arrays."""
    values = labels.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    offsets = labels.offsets.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(offsets)]


def decoded_schema(num_dims: int, columns: Sequence[KeptColumn] = ()) -> pa.Schema:
    """Return the schema of decoded rows: `z_hat`, float32[num_dims], instead of `bank` and `code`."""
    field = pa.field("z_hat", pa.list_(pa.float32(), num_dims), nullable=False)
    return pa.schema([*(SCHEMA.field(name) for name in _DECODED_NAMES), field, *kept_fields(columns)])


def decode_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Decode rows as `Shard.read` gives them.

    Args:
      batch: Rows of `schema_with` with a shard's header in the schema's metadata.

    Returns:
      The rows, of `decoded_schema`.

    Raises:
      ShardError: If the metadata or a code are seen to be damaged.
    """
    header = _header(tuple(sorted((batch.schema.metadata or {}).items())))
    tables = header.tables
    z_hat = as_float32(decode_codes(batch, tables))
    column = pa.FixedSizeListArray.from_arrays(pa.array(z_hat.reshape(-1)), tables.num_dims)
    kept = (batch[each.name] for each in header.columns)
    columns = [*(batch[name] for name in _DECODED_NAMES), column, *kept]
    return pa.RecordBatch.from_arrays(columns, schema=decoded_schema(tables.num_dims, header.columns))


def as_float32(z_hat: np.ndarray) -> np.ndarray:
    """Convert int32 to float32 in its own place: there may be 128 MB of it."""
    converted = z_hat.view(np.float32)
    num_rows = max(1, _CONVERTED_AT_ONCE // z_hat.shape[1])
    for start in range(0, len(z_hat), num_rows):
        converted[start : start + num_rows] = z_hat[start : start + num_rows].astype(np.float32)
    return converted


@functools.lru_cache(maxsize=16)
def _header(metadata: tuple[tuple[bytes, bytes], ...]) -> ShardHeader:
    return ShardHeader.from_metadata(dict(metadata), name="a batch of rows")
