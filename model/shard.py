"""The shard: a Parquet file of codes that carries all it takes to decode them."""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import os
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model import range_coder, storage
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.range_coding_tables import RangeCodingTables

# Version 2 has banks of tables, and the column `bank`.
FORMAT_VERSION = 2
_READABLE_VERSIONS = ("1", "2")

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

_METADATA_PREFIX = "vidpress."
_CHECKSUMS_KEY = f"{_METADATA_PREFIX}row_group_crc32"


class ShardError(VidpressError, ValueError):
    """A file that is not a usable vidpress shard: the message names it and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class ShardHeader:
    """What a shard's metadata says of all its rows.

    Attributes:
      model_id: The frozen model that encoded the videos.
      spec: The features that were encoded.
      tables: The range coding tables of the codes.
    """

    model_id: str
    spec: FeatureSpec
    tables: RangeCodingTables

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """The header as Parquet key-value metadata."""
        values = {
            "format_version": str(FORMAT_VERSION),
            "model_id": self.model_id,
            "feature_spec": json.dumps(self.spec.to_json(), sort_keys=True),
            "range_coding_tables": base64.b64encode(self.tables.to_bytes()).decode(),
        }
        return {_METADATA_PREFIX + key: value for key, value in values.items()}

    def with_banks(self, banks: np.ndarray) -> ShardHeader:
        """Return the header with some of the banks of tables, for a shard that uses no others."""
        return dataclasses.replace(self, tables=self.tables.with_banks(banks))

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, *, name: str) -> ShardHeader:
        """Read back what `metadata` gives.

        Raises:
          ShardError: If the metadata is not a shard's, is damaged, or is of another format version.
        """
        values = _text(metadata)
        version = values.get(f"{_METADATA_PREFIX}format_version")
        if version is None:
            raise ShardError(f"{name} is a Parquet file, but not one that `vidpress encode` wrote.")
        if version not in _READABLE_VERSIONS:
            raise ShardError(
                f"{name} has format version {version}; this vidpress reads {', '.join(_READABLE_VERSIONS)}: install "
                "the version that wrote it, or a later one."
            )
        try:
            return cls(
                model_id=values[f"{_METADATA_PREFIX}model_id"],
                spec=FeatureSpec.from_json(json.loads(values[f"{_METADATA_PREFIX}feature_spec"])),
                tables=RangeCodingTables.from_bytes(
                    base64.b64decode(values[f"{_METADATA_PREFIX}range_coding_tables"], validate=True)
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{name} has damaged metadata ({error}): fetch or encode it again.") from error


def _text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in (metadata or {}).items()}


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
        for start in range(0, rows.num_rows, ROW_GROUP_SIZE):
            # Taken, and not sliced: a slice's offsets count from the beginning of all rows.
            part = rows.take(np.arange(start, min(start + ROW_GROUP_SIZE, rows.num_rows)))
            (row_group,) = part.cast(SCHEMA).combine_chunks().to_batches()
            writer.write_batch(row_group, row_group_size=ROW_GROUP_SIZE)
            sizes.append(row_group.num_rows)
            checksums.append(f"{row_group_crc32(row_group, metadata):08x}")
        writer.add_key_value_metadata({**metadata, _CHECKSUMS_KEY: ",".join(checksums)})
    return tuple(sizes)


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


def footer_crc32(data: bytes) -> int:
    """Return the checksum of a whole shard's footer, what stands before its length and the last `PAR1`."""
    length = int.from_bytes(data[-8:-4], "little")
    return zlib.crc32(data[len(data) - 8 - length : -8])


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
      vidpress.model.range_coder.DamagedCodeError: If a code is seen to be damaged.
      ValueError: If a row's bank is none of the tables'.
    """
    codes = rows["code"]
    _, offsets_buffer, data_buffer = codes.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[codes.offset : codes.offset + len(codes) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    return range_coder.decode(tables, data, offsets.astype(np.int64), bank=rows["bank"].to_numpy())


def labels_list(labels: pa.ListArray) -> list[np.ndarray]:
    """Return the rows of a labels column as int32 arrays."""
    values = labels.values.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    offsets = labels.offsets.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(offsets)]


class Shard:
    """One shard, opened for reading; every row group is checked against its checksums."""

    def __init__(self, file: BinaryIO | pa.NativeFile, name: str):
        """Read a shard's metadata.

        Args:
          file: The shard, seekable.
          name: Its path or URI, for messages.

        Raises:
          ShardError: If it is no shard, or damaged.
        """
        self.name = name
        self.num_bytes = file.seek(0, 2)
        try:
            file.seek(max(self.num_bytes - 2**18, 0))
            self.footer_crc32 = footer_crc32(file.read(2**18))
            self._file = pq.ParquetFile(file, page_checksum_verification=True)
            columns = self._file.schema_arrow.remove_metadata()
            names = columns.names
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ShardError(
                f"{name} is not a Parquet file, or is damaged ({error}): fetch or encode it again."
            ) from error
        self.header = ShardHeader.from_metadata(self._file.metadata.metadata, name=name)
        metadata = _text(self._file.metadata.metadata)
        self._checksums = metadata.pop(_CHECKSUMS_KEY, "").split(",")
        # As it was written: `header.metadata` is what this version writes.
        self._metadata = {key: value for key, value in metadata.items() if key.startswith(_METADATA_PREFIX)}
        version = self._metadata[f"{_METADATA_PREFIX}format_version"]
        schema = _SCHEMA_OF_VERSION_1 if version == "1" else SCHEMA
        if not columns.equals(schema):
            raise ShardError(f"{name} has columns {names}, not {schema.names}: its schema is damaged.")

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Shard:
        """Open a shard by its local path or URI.

        Raises:
          FileNotFoundError: If there is none.
          ShardError: If it is no shard, or damaged.
        """
        return cls(storage.open_input(uri), os.fspath(uri))

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
        return self._file.metadata.num_rows

    @property
    def row_group_sizes(self) -> list[int]:
        """How many videos each row group holds."""
        metadata = self._file.metadata
        return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    @property
    def column_bytes(self) -> dict[str, int]:
        """Bytes of each column in the file, page headers included."""
        totals = dict.fromkeys(SCHEMA.names, 0)
        for group in range(self._file.metadata.num_row_groups):
            for index in range(self._file.metadata.num_columns):
                column = self._file.metadata.row_group(group).column(index)
                totals[column.path_in_schema.split(".")[0]] += column.total_compressed_size
        return totals

    def read_ids(self, row_group: int) -> pa.BinaryArray:
        """Read the ids of a row group and nothing else; only the pages' own checksums are checked.

        Raises:
          ShardError: If they cannot be read.
        """
        try:
            return self._file.read_row_group(row_group, columns=["id"])["id"].combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(row_group, str(error)) from error

    def read(self, row_group: int) -> pa.RecordBatch:
        """Read a row group and check it.

        Args:
          row_group: Its index.

        Returns:
          A batch of `SCHEMA` with the header in the schema's metadata, so that it can be decoded by itself.

        Raises:
          ShardError: If it cannot be read or a checksum does not fit.
        """
        try:
            batch = self._file.read_row_group(row_group).combine_chunks().to_batches()[0]
            found = f"{row_group_crc32(batch, self._metadata):08x}"
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            raise self._damaged(row_group, str(error)) from error
        if self._checksums[row_group : row_group + 1] != [found]:
            raise self._damaged(row_group, f"its values have the checksum {found}, which its metadata do not list")
        if "bank" not in batch.schema.names:
            index, field = SCHEMA.get_field_index("bank"), SCHEMA.field("bank")
            batch = batch.add_column(index, field, pa.array(np.zeros(batch.num_rows, np.uint8)))
        return batch.replace_schema_metadata(self.header.metadata)

    def _damaged(self, row_group: int, why: str) -> ShardError:
        return ShardError(f"{self.name}, row group {row_group}, is damaged ({why}): fetch or encode it again.")


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
    z_hat = decode_codes(batch, tables).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(z_hat.reshape(-1)), tables.num_dims)
    columns = [*(batch[name] for name in _DECODED_NAMES), column]
    return pa.RecordBatch.from_arrays(columns, schema=decoded_schema(tables.num_dims))


@functools.lru_cache(maxsize=16)
def _header(metadata: tuple[tuple[bytes, bytes], ...]) -> ShardHeader:
    return ShardHeader.from_metadata(dict(metadata), name="a batch of rows")
