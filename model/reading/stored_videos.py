"""The videos of a data set or of a single shard: in the order of an epoch, by id, and decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.listed_shards import open_shard
from vidpress.model.data_set.manifest import FileEntry, Manifest
from vidpress.model.features import DECODED
from vidpress.model.files import storage
from vidpress.model.files.file_names import join, shard_index
from vidpress.model.files.uris import normalized
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.reading.epoch_order import Deal, EpochOrder, LaneRows, Reader
from vidpress.model.reading.lookup import Lookup, Shards
from vidpress.model.reading.row_groups import OfProcess, RowGroups
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_rows import SCHEMA, as_float32, decode_codes, kept_fields
from vidpress.model.tables.range_coding_tables import RangeCodingTables

if TYPE_CHECKING:
    from vidpress.model.frozen.input_decoder import DecoderFile

_IDS_IN_MESSAGE = 10


class StoredRows(NamedTuple):
    """Rows as they are stored.

    Attributes:
      rows: A batch of `vidpress.model.shards.shard_rows.SCHEMA`, and kept columns.
      tables: The tables that decode it.
    """

    rows: pa.RecordBatch
    tables: RangeCodingTables


class StoredVideos:
    """The videos of a data set, or of a single shard. Which ones they are is fixed when they are opened.

    Args:
      path: The folder that `vidpress encode` wrote, or one of its shards; a local path or URI.
      generation: The newest generation to read; by default the newest one there is.
      features: "z_hat", or "input".
      columns: Names of kept columns that batches have; and tables, which have all columns if this is None.

    Attributes:
      path: The path or URI, in its normal form.
      generation: The newest generation that is read; None for a single shard.
      num_videos: The number of videos.
      num_dims: How many numbers a video's features have.
      model_id: The frozen model that encoded the videos.
      decoder: The decoder of the input, if input vectors are wanted.
      kept: The columns that the data set keeps of its input.
      columns: Names of those that batches have.
      in_tables: Names of those that tables have.

    Raises:
      FileNotFoundError: If there is no such file.
      ManifestError: If the folder is not a data set.
      ShardError: If the file is not a shard.
      DecoderError: If input vectors are wanted, and the data set has no decoder, or a damaged one.
      ValueError: If `features` is neither, if input vectors of a single shard are wanted, or if a column is not kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        generation: int | None,
        features: Literal["z_hat", "input"],
        columns: Sequence[str] | None = None,
    ):
        if features not in DECODED:
            raise ValueError(f"features={features!r} must be {' or '.join(map(repr, DECODED))}.")
        self.path = normalized(path)
        self.decoder: DecoderFile | None = None
        self._lookup: OfProcess[Lookup] = OfProcess()
        self._entries: dict[str, FileEntry] = {}
        if self.path.endswith(".parquet") and not storage.is_folder(self.path):
            if features == "input":
                raise ValueError(f"{self.path} is a shard: open its data set, which has the decoder of the input.")
            shard = Shard.open(self.path)
            self.generation = None
            self.model_id = shard.header.model_id
            self.kept = shard.header.columns
            self.num_dims = shard.header.tables.num_dims
            row_groups = {self.path: shard.row_group_sizes}
            self._generations = [Shards({0: self.path}, 1)]
        else:
            manifest = Manifest.load(self.path, generation)
            self.generation = manifest.generation
            self.model_id = manifest.model_id
            self.kept = manifest.columns
            self.num_dims = manifest.num_dims
            if features == "input":
                from vidpress.model.data_set.input_decoding import load_decoder  # which needs safetensors

                self.decoder = load_decoder(self.path, manifest)
                self.num_dims = self.decoder.decoder.input_size
            self._entries = {entry.name: entry for entry in manifest.shards}
            row_groups = {entry.name: list(entry.row_groups) for entry in manifest.shards}
            self._generations = [
                Shards({shard_index(entry.name): entry.name for entry in each.shards}, each.num_shards)
                for each in manifest.generations
                if each.shards
            ]
        self.in_tables = self._kept_names(columns)
        self.columns = () if columns is None else self.in_tables
        self._places = [(name, index) for name, sizes in row_groups.items() for index in range(len(sizes))]
        self._sizes = [size for sizes in row_groups.values() for size in sizes]
        self.num_videos = sum(self._sizes)

    @property
    def asked_for(self) -> tuple[KeptColumn, ...]:
        """The kept columns that batches have."""
        by_name = {column.name: column for column in self.kept}
        return tuple(by_name[name] for name in self.columns)

    def _kept_names(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        """Return the names of kept columns that are asked for; all, if none are.

        Raises:
          ValueError: If there is no such column.
        """
        names = [column.name for column in self.kept]
        if isinstance(columns, str):
            raise TypeError(f"columns={columns!r} must be a sequence of names: put it into a list.")
        unknown = [name for name in columns or () if name not in names]
        if unknown:
            raise ValueError(
                f"{self.path} keeps no column {', '.join(map(repr, unknown))}: its columns are "
                f"{', '.join(map(repr, names)) or 'none'}."
            )
        return tuple(names if columns is None else columns)

    def order(self, rng_key: tuple[int, ...] | None) -> EpochOrder:
        """Return the order of an epoch (`EpochOrder`)."""
        return EpochOrder(self._sizes, rng_key)

    def read(
        self, order: EpochOrder, deal: Deal, reader: Reader, num_read: int = 0, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[StoredRows, int]]:
        """Read the batches of a reader.

        Args:
          order: The epoch's order.
          deal: How it is dealt.
          reader: Whose batches.
          num_read: How many of them to leave out.
          columns: Names of kept columns to read; by default those of batches.

        Yields:
          The batches, and after how many rows of the epoch's order the next ones of all readers begin.

        Raises:
          FileNotFoundError: If a shard is missing.
          ShardError: If a shard is damaged, or does not belong to this data set.
        """
        row_groups = self.row_groups(columns)
        lanes = LaneRows(order, row_groups.read)
        for step in deal.steps(reader, num_read):
            rows = lanes.rows(*deal.batch(step, reader.rank))
            yield StoredRows(rows, row_groups.tables), deal.position(step + 1)

    def row_groups(self, columns: Sequence[str] | None = None) -> RowGroups:
        """Return the row groups of all shards, none of which is open yet.

        Args:
          columns: Names of kept columns to read; by default those of batches.
        """
        kept = self.columns if columns is None else columns
        return RowGroups(self._open_shard, self._places, (*SCHEMA.names, *kept))

    def _open_shard(self, name: str) -> Shard:
        if self.generation is None:
            return Shard.open(name)
        return open_shard(self.path, self._entries[name], self.model_id, self.kept)

    def find(self, ids: Iterable[bytes | str], missing: Literal["raise", "skip"]) -> StoredRows | None:
        """Find videos by their ids.

        Args:
          ids: The ids; text stands for its UTF-8.
          missing: Whether ids that are not in the data set are an error, or are left out.

        Returns:
          The rows in the order of the ids; None if there are none.

        Raises:
          KeyError: If there is no video of an id.
          FileNotFoundError: If a shard is missing.
          ShardError: If a shard is damaged, or does not belong to this data set.
        """
        if missing not in ("raise", "skip"):
            raise ValueError(f"missing={missing!r} must be 'raise' or 'skip'.")
        if isinstance(ids, bytes | str):
            raise TypeError(f"ids={ids!r} must be a sequence of ids: put it into a list.")
        keys = [_key(video_id) for video_id in ids]
        found = self._lookup.get(self._new_lookup).find(keys)
        absent = list(dict.fromkeys(key for key, place in zip(keys, found.places, strict=True) if place is None))
        if absent and missing == "raise":
            some = ", ".join(map(repr, absent[:_IDS_IN_MESSAGE]))
            more = f" and {len(absent) - _IDS_IN_MESSAGE:,} more" if len(absent) > _IDS_IN_MESSAGE else ""
            raise KeyError(f"{self.path} has no video {some}{more}.")
        if found.tables is None:
            return None
        places = [place for place in found.places if place is not None]
        return StoredRows(found.rows.take(pa.array(places, pa.int64())), found.tables)

    def _new_lookup(self) -> Lookup:
        return Lookup(self.row_groups(self.in_tables), self._generations, in_threads="://" in self.path)

    def features(self, stored: StoredRows) -> np.ndarray:
        """Decode rows.

        Returns:
          float32[num_videos, num_dims].

        Raises:
          vidpress.model.coding.range_coder.DamagedCodeError: If a code is seen to be damaged.
        """
        z_hat = decode_codes(stored.rows, stored.tables)
        return as_float32(z_hat) if self.decoder is None else self.decoder.decoder.restore(z_hat)

    @property
    def schema(self) -> pa.Schema:
        """Decoded rows: `id`, `labels`, `num_frames`, `features`, float32[num_dims], and the kept columns of tables."""
        features = pa.field("features", pa.list_(pa.float32(), self.num_dims), nullable=False)
        kept = [field for field in kept_fields(self.kept) if field.name in self.in_tables]
        return pa.schema([*(SCHEMA.field(name) for name in ("id", "labels", "num_frames")), features, *kept])

    def schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        """Return the schema of some columns of `schema`, or of all.

        Raises:
          KeyError: If there is no such column.
        """
        return self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])

    def kept_in(self, schema: pa.Schema) -> list[str]:
        """Return the names of kept columns that a schema has."""
        return [name for name in schema.names if name in self.in_tables]

    @property
    def shard_files(self) -> list[str]:
        """The absolute path or URI of each shard."""
        path = self.path if "://" in self.path else os.path.abspath(self.path)
        return [path] if self.generation is None else [join(path, name) for name in self._entries]

    def decode(self, stored: StoredRows | None, schema: pa.Schema) -> pa.RecordBatch:
        """Return decoded rows as Arrow, with the columns of `schema` that are named there; None stands for no rows."""
        if stored is None:
            return pa.RecordBatch.from_pylist([], schema=schema)

        def column(name: str) -> pa.Array:
            if name != "features":
                return stored.rows[name]
            return pa.FixedSizeListArray.from_arrays(pa.array(self.features(stored).reshape(-1)), self.num_dims)

        return pa.RecordBatch.from_arrays([column(name) for name in schema.names], schema=schema)


def _key(video_id: Any) -> bytes:
    """Return an id, or an Arrow scalar of one, as bytes."""
    value = video_id.as_py() if isinstance(video_id, pa.Scalar) else video_id
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"{video_id!r} is no id: ids are bytes or str.")
