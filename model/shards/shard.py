"""The shard: a Parquet file of codes that carries all it takes to decode them, or names the file it is in."""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model.files import file_kinds, storage
from vidpress.model.kept_columns import KeptColumn, listed
from vidpress.model.shards import shard_layout, shared_tables
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
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE, SCHEMA, row_group_crc32, schema_with

_SCHEMA_OF_VERSION_1 = SCHEMA.remove(SCHEMA.get_field_index("bank"))

# A shard's footer is mostly tables: in one read with the length at the file's end.
_TAIL_READ = 2**18


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

    def __init__(
        self, file: BinaryIO | pa.NativeFile, name: str, folder: str | None = None, model_id: str | None = None
    ):
        """Read a shard's metadata: with one read of the file, or two if they are large.

        Args:
          file: The shard, seekable.
          name: Its path or URI, for messages.
          folder: The folder of its data set, which has the tables that small shards share.
          model_id: The model of its data set, if that is known.

        Raises:
          FileNotFoundError: If the file of these tables is missing; the message names it.
          ShardError: If it is no shard, or damaged, or if another model encoded it.
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
        load_tables = None if folder is None else functools.partial(shared_tables.load_tables, folder)
        self.header = ShardHeader.from_metadata(
            parsed.metadata, name=name, load_tables=load_tables, wanted_model_id=model_id
        )
        metadata = text(parsed.metadata)
        self._checksums = metadata.pop(CHECKSUMS_KEY, "")
        # As it was written: `header.metadata` is what this version writes, and takes long to make of many banks.
        self._metadata = {key: value for key, value in metadata.items() if key.startswith(METADATA_PREFIX)}
        self._metadata_of_rows = self._metadata
        if load_tables is not None and self.header.tables_file is not None:
            self._metadata_of_rows = self.header.metadata_with(load_tables(self.header.tables_file).data)
        version = self._metadata[f"{METADATA_PREFIX}format_version"]
        schema = _SCHEMA_OF_VERSION_1 if version == "1" else schema_with(self.header.columns)
        self._kept_names = {column.name for column in self.header.columns}
        try:
            if ARROW_SCHEMA_KEY in metadata:
                raise LayoutError("it was written anew by another program")
            end = self.num_bytes - shard_layout.TAIL_SIZE - len(footer)
            shard_layout.check_footer(parsed, schema.names, end, ROW_GROUP_SIZE, self._kept_names)
            # Read ahead, Arrow's own threads hold on to Python's buffers, and abort a process that ends meanwhile.
            self._file = pq.ParquetFile(self._window, pre_buffer=False)
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
          FileNotFoundError: If there is none, or if the file of the tables that it shares is missing.
          ShardError: If it is no shard, or damaged.
        """
        name = os.fspath(uri)
        return cls(storage.open_input(uri), name, name.rpartition("/")[0] or ("/" if name.startswith("/") else "."))

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

    def check_columns(self, columns: Sequence[KeptColumn]) -> None:
        """See that the shard keeps what its data set does.

        Raises:
          ShardError: If it does not.
        """
        if self.header.columns != tuple(columns):
            raise ShardError(
                f"{self.name} keeps the columns {listed(self.header.columns)}, the data set {listed(columns)}: the "
                "shard does not belong to it."
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
        totals = dict.fromkeys(schema_with(self.header.columns).names, 0)
        for row_group in self._row_groups:
            for chunk in row_group.columns:
                totals[chunk.name] += chunk.size
        return totals

    def id_range(self, row_group: int) -> tuple[bytes, bytes]:
        """Return the least and the greatest id of a row group: from the footer, or else from the ids.

        Raises:
          ShardError: If they cannot be read.
        """
        (column,) = (chunk for chunk in self._row_groups[row_group].columns if chunk.name == "id")
        if column.least is not None and column.greatest is not None:
            return column.least, column.greatest
        ids = self.read_ids(row_group)
        return ids[0].as_py(), ids[-1].as_py()

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
          A batch of `schema_with(header.columns)` with the header in the schema's metadata, so that it can be decoded
          by itself.

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
        return batch.replace_schema_metadata(self._metadata_of_rows)

    def _read_columns(self, row_group: int, chunks: Sequence[Chunk]) -> pa.RecordBatch:
        """Read neighbouring columns of a row group, which are looked at before Arrow sees them."""
        start, end = chunks[0].start, chunks[-1].start + chunks[-1].size
        try:
            data = memoryview(self._window.fetch(start, end - start))
            for chunk in chunks:
                is_kept = chunk.name in self._kept_names
                shard_layout.check_pages(data[chunk.start - start :][: chunk.size], chunk, is_kept=is_kept)
            names = [chunk.name for chunk in chunks]
            table = self._file.read_row_group(row_group, columns=names, use_threads=False)
            (batch,) = table.combine_chunks().to_batches()
            for name in self._kept_names.intersection(names):
                batch[name].validate(full=True)  # Arrow takes any bytes for UTF-8
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
