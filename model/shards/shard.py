"""The shard: a Parquet file of codes that carries all it takes to decode them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidpress.model.coding import range_coder
from vidpress.model.coding.range_coder import DamagedCodeError
from vidpress.model.files import file_kinds, storage
from vidpress.model.shards import shard_layout
from vidpress.model.shards.file_window import FileWindow
from vidpress.model.shards.shard_header import (
    ARROW_SCHEMA_KEY,
    CHECKSUMS_KEY,
    METADATA_PREFIX,
    ShardError,
    ShardHeader,
    one_line,
    text,
)
from vidpress.model.shards.shard_layout import Chunk, LayoutError
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

_DECODED_NAMES = ("id", "labels", "num_frames")
_SCHEMA_OF_VERSION_1 = SCHEMA.remove(SCHEMA.get_field_index("bank"))

# A shard's footer is mostly tables: in one read with the length at the file's end.
_TAIL_READ = 2**18
_FLOAT32_ROWS = 64


def write_shard(file: BinaryIO, rows: pa.Table, header: ShardHeader) -> tuple[int, ...]:
    """Write rows as a shard; equal rows give equal bytes.

    Ids are front-coded and codes only length-coded: no dictionaries and no statistics on what is random, and
    no compression on what is compressed. Every page carries a checksum.

    Args:
      file: Where to.
      rows: A table with the columns of `SCHEMA`, at least one row, in the order to keep.
      header: What goes into the metadata; of the banks of tables only those that the rows use.

    Returns:
      How many rows each row group got.
    """
    if not rows.num_rows:
        raise ValueError("A shard without rows is not written.")
    rows = rows.select(SCHEMA.names)
    metadata = header.with_banks(np.unique(rows["bank"])).metadata
    with pq.ParquetWriter(
        file,
        SCHEMA,
        version="2.6",
        use_dictionary=["bank"],
        compression={
            **dict.fromkeys(["labels.list.element", "num_frames", "bank"], "zstd"),
            "id": "none",
            "code": "none",
        },
        column_encoding={
            "id": "DELTA_BYTE_ARRAY",
            "labels.list.element": "DELTA_BINARY_PACKED",
            "num_frames": "DELTA_BINARY_PACKED",
            "code": "DELTA_LENGTH_BYTE_ARRAY",
        },
        write_statistics=["id"],
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        sizes, checksums = [], []
        for start, end in itertools.pairwise(_row_group_bounds(rows)):
            # Taken, and not sliced: a slice's offsets count from the beginning of all rows.
            (row_group,) = rows.take(np.arange(start, end)).cast(SCHEMA).combine_chunks().to_batches()
            writer.write_batch(row_group, row_group_size=ROW_GROUP_SIZE)
            sizes.append(row_group.num_rows)
            checksums.append(f"{row_group_crc32(row_group, metadata):08x}")
        writer.add_key_value_metadata({**metadata, CHECKSUMS_KEY: ",".join(checksums)})
    return tuple(sizes)


def _row_group_bounds(rows: pa.Table) -> Iterator[int]:
    """Yield where row groups begin, and where the last one ends: they hold what can be read, and no more.

    Raises:
      ValueError: If a row alone is too large for a row group.
    """
    labels = pc.max_element_wise(pc.list_value_length(rows["labels"]), 1).to_numpy()
    id_bytes = pc.binary_length(rows["id"]).to_numpy()
    too_large = (labels > shard_layout.MAX_ROW_GROUP_LABELS) | (id_bytes > shard_layout.MAX_ID_BYTES)
    if too_large.any():
        raise ValueError(f"Row {np.argmax(too_large)} has more labels, or a longer id, than a shard can hold.")
    limits = {shard_layout.MAX_ROW_GROUP_LABELS: labels, shard_layout.MAX_ROW_GROUP_ID_BYTES: id_bytes}
    ends = {limit: np.append(0, np.cumsum(of_row, dtype=np.int64)) for limit, of_row in limits.items()}
    yield (start := 0)
    while start < rows.num_rows:
        end = min(rows.num_rows, start + ROW_GROUP_SIZE)
        for limit, so_far in ends.items():
            end = min(end, int(np.searchsorted(so_far, so_far[start] + limit, side="right")) - 1)
        yield (start := end)


def footer_crc32(data: bytes | memoryview) -> int:
    """Return the CRC-32 (as in zlib) of a shard's footer, as `Shard.footer_crc32` does.

    Args:
      data: The whole shard.

    Raises:
      ShardError: If it does not end with a footer.
    """
    try:
        size = shard_layout.footer_size(data, len(data))
    except LayoutError as error:
        raise ShardError(f"These {len(data):,} bytes are no shard: {error}.") from error
    end = len(data) - shard_layout.TAIL_SIZE
    return zlib.crc32(data[end - size : end])


def row_group_crc32(batch: pa.RecordBatch, metadata: Mapping[str, str]) -> int:
    """Return the checksum of a row group's values: the CRC-32 (as in zlib) of these, one after the other.

    The header's metadata as JSON with sorted keys; then of `id`, `labels` and `code` the int32 offsets, counted
    from zero, and the values; `num_frames` as int32, -1 for null; and since version 2 `bank`. All little endian.

    Args:
      batch: The row group's rows, of `SCHEMA` or that of version 1.
      metadata: The header in the shard's metadata.
    """
    crc = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in ("id", "labels", "code"):
        column = batch[name]
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        crc = zlib.crc32(np.subtract(offsets, offsets[0]).tobytes(), crc)
        if name == "labels":
            values = column.values.to_numpy()[offsets[0] : offsets[-1]]
        else:
            data = column.buffers()[2]
            values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.empty(0)
        crc = zlib.crc32(values.tobytes(), crc)
    crc = zlib.crc32(batch["num_frames"].fill_null(-1).to_numpy().tobytes(), crc)
    return zlib.crc32(batch["bank"].to_numpy().tobytes(), crc) if "bank" in batch.schema.names else crc


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


class Shard:
    """One shard, opened for reading; every row group is checked against its checksums.

    Whoever made the file, reading it takes no more memory than some of its row groups' bytes and what the limits of
    `shard_layout` and `range_coding_tables` allow.

    Attributes:
      name: Its path or URI, for messages.
      header: What its metadata says of all rows.
      num_bytes: The size of the file.
      footer_crc32: The CRC-32 (as in zlib) of Parquet's footer, without its length: a data set's manifest has it.
    """

    def __init__(self, file: BinaryIO | pa.NativeFile, name: str):
        """Read a shard's metadata: with one read of the file, or two if they are large.

        Args:
          file: The shard, seekable.
          name: Its path or URI, for messages.

        Raises:
          ShardError: If it is no shard, or damaged.
        """
        self.name = name
        file.seek(0, os.SEEK_END)
        self.num_bytes = file.tell()
        self._window = FileWindow(file, self.num_bytes)
        footer = self._read_footer()
        try:
            parsed = shard_layout.parse_footer(footer)
        except LayoutError as error:
            raise self._no_shard(error) from error
        self.footer_crc32 = zlib.crc32(footer)
        self.header = ShardHeader.from_metadata(parsed.metadata, name=name)
        metadata = text(parsed.metadata)
        self._checksums = metadata.pop(CHECKSUMS_KEY, "")
        # As it was written: `header.metadata` is what this version writes, and takes long to make of many banks.
        self._metadata = {key: value for key, value in metadata.items() if key.startswith(METADATA_PREFIX)}
        version = self._metadata[f"{METADATA_PREFIX}format_version"]
        schema = _SCHEMA_OF_VERSION_1 if version == "1" else SCHEMA
        try:
            if ARROW_SCHEMA_KEY in metadata:
                raise LayoutError("it was written anew by another program")
            end = self.num_bytes - shard_layout.TAIL_SIZE - len(footer)
            shard_layout.check_footer(parsed, schema.names, end, ROW_GROUP_SIZE)
            self._file = pq.ParquetFile(self._window, page_checksum_verification=True)
            columns = self._file.schema_arrow.remove_metadata()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._no_shard(error) from error
        if not columns.equals(schema):
            raise ShardError(f"{name} has columns {columns.names}, not {schema.names}: its schema is damaged.")
        self._row_groups = parsed.row_groups

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Shard:
        """Open a shard by its local path or URI.

        Raises:
          FileNotFoundError: If there is none.
          ShardError: If it is no shard, or damaged.
        """
        return cls(storage.open_input(uri), os.fspath(uri))

    def _read_footer(self) -> bytes:
        size = min(self.num_bytes, _TAIL_READ)
        try:
            tail = self._window.fetch(self.num_bytes - size, size)
            footer_size = shard_layout.footer_size(tail, self.num_bytes)
            if footer_size + shard_layout.TAIL_SIZE > size:
                size = footer_size + shard_layout.TAIL_SIZE
                tail = self._window.fetch(self.num_bytes - size, size)
        except (OSError, LayoutError) as error:
            raise self._no_shard(error) from error
        return tail[len(tail) - shard_layout.TAIL_SIZE - footer_size : -shard_layout.TAIL_SIZE]

    def check_model(self, model_id: str) -> None:
        """See that the shard belongs to a data set of a given model.

        Raises:
          ShardError: If another model encoded it.
        """
        if self.header.model_id != model_id:
            raise ShardError(
                f"{self.name} was encoded by model {self.header.model_id}, the data set by {model_id}: the shard does "
                "not belong to it."
            )

    @property
    def num_rows(self) -> int:
        """How many videos the shard holds."""
        return sum(self.row_group_sizes)

    @property
    def row_group_sizes(self) -> list[int]:
        """How many videos each row group holds."""
        return [row_group.num_rows for row_group in self._row_groups]

    @property
    def column_bytes(self) -> dict[str, int]:
        """Bytes of each column in the file, page headers included."""
        totals = dict.fromkeys(SCHEMA.names, 0)
        for row_group in self._row_groups:
            for chunk in row_group.columns:
                totals[chunk.name] += chunk.size
        return totals

    def read_ids(self, row_group: int) -> pa.BinaryArray:
        """Read the ids of a row group and nothing else; only the pages' own checksums are checked.

        Raises:
          ShardError: If they cannot be read.
        """
        ids = [chunk for chunk in self._row_groups[row_group].columns if chunk.name == "id"]
        return self._read_columns(row_group, ids)["id"]

    def read(self, row_group: int) -> pa.RecordBatch:
        """Read a row group and check it.

        Args:
          row_group: Its index.

        Returns:
          A batch of `SCHEMA` with the header in the schema's metadata, so that it can be decoded by itself.

        Raises:
          ShardError: If it cannot be read or a checksum does not fit.
        """
        batch = self._read_columns(row_group, self._row_groups[row_group].columns)
        found = f"{row_group_crc32(batch, self._metadata):08x}"
        if self._checksums.split(",", row_group + 1)[row_group : row_group + 1] != [found]:
            raise self._damaged(row_group, f"its values have the checksum {found}, which its metadata do not list")
        if "bank" not in batch.schema.names:
            index, field = SCHEMA.get_field_index("bank"), SCHEMA.field("bank")
            batch = batch.add_column(index, field, pa.array(np.zeros(batch.num_rows, np.uint8)))
            return batch.replace_schema_metadata(self.header.metadata)
        return batch.replace_schema_metadata(self._metadata)

    def _read_columns(self, row_group: int, chunks: Sequence[Chunk]) -> pa.RecordBatch:
        """Read neighbouring columns of a row group, which are looked at before Arrow sees them."""
        start, end = chunks[0].start, chunks[-1].start + chunks[-1].size
        try:
            data = self._window.fetch(start, end - start)
            for chunk in chunks:
                shard_layout.check_pages(data[chunk.start - start :][: chunk.size], chunk)
            names = [chunk.name for chunk in chunks]
            table = self._file.read_row_group(row_group, columns=names, use_threads=False)
            (batch,) = table.combine_chunks().to_batches()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(row_group, error) from error
        if batch.num_rows != self._row_groups[row_group].num_rows:
            raise self._damaged(row_group, f"it has {batch.num_rows:,} rows, which its footer does not say")
        return batch

    def _no_shard(self, error: Exception) -> ShardError:
        with contextlib.suppress(OSError):
            start = self._window.fetch(0, min(self.num_bytes, file_kinds.START_BYTES))
            if not start.startswith(shard_layout.MAGIC) and (kind := file_kinds.stand_in(start)):
                return ShardError(f"{self.name} is not a Parquet file: it {kind}.")
        return ShardError(
            f"{self.name} is not a Parquet file, or is damaged ({one_line(error)}): fetch or encode it again."
        )

    def _damaged(self, row_group: int, why: object) -> ShardError:
        return ShardError(
            f"{self.name}, row group {row_group}, is damaged ({one_line(why)}): fetch or encode it again."
        )


def decoded_schema(num_dims: int) -> pa.Schema:
    """Return the schema of decoded rows: `z_hat`, float32[num_dims], instead of `bank` and `code`."""
    field = pa.field("z_hat", pa.list_(pa.float32(), num_dims), nullable=False)
    return pa.schema([SCHEMA.field(name) for name in _DECODED_NAMES] + [field])


def decode_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Decode rows as `Shard.read` gives them.

    Args:
      batch: Rows of `SCHEMA` with a shard's header in the schema's metadata.

    Returns:
      The rows, of `decoded_schema`.

    Raises:
      ShardError: If the metadata or a code are seen to be damaged.
    """
    tables = _header(tuple(sorted((batch.schema.metadata or {}).items()))).tables
    z_hat = _as_float32(decode_codes(batch, tables))
    column = pa.FixedSizeListArray.from_arrays(pa.array(z_hat.reshape(-1)), tables.num_dims)
    columns = [*(batch[name] for name in _DECODED_NAMES), column]
    return pa.RecordBatch.from_arrays(columns, schema=decoded_schema(tables.num_dims))


def _as_float32(z_hat: np.ndarray) -> np.ndarray:
    """Convert int32 to float32 in its own place: there may be 128 MB of it."""
    converted = z_hat.view(np.float32)
    for start in range(0, len(z_hat), _FLOAT32_ROWS):
        converted[start : start + _FLOAT32_ROWS] = z_hat[start : start + _FLOAT32_ROWS].astype(np.float32)
    return converted


@functools.lru_cache(maxsize=16)
def _header(metadata: tuple[tuple[bytes, bytes], ...]) -> ShardHeader:
    return ShardHeader.from_metadata(dict(metadata), name="a batch of rows")
