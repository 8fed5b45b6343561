"""Rows on their way into shards: encode videos, choose their shards, sort them, and set duplicates aside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidpress.model.coding import range_coder
from vidpress.model.data_set.id_hash import shard_of
from vidpress.model.frozen.frozen_model import MAX_Z, FrozenModel, UncodableError
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.records.videos import PooledVideo
from vidpress.model.shards import shard, shard_rows

_SOURCE = [pa.field("file", pa.dictionary(pa.int32(), pa.string())), pa.field("offset", pa.int64())]
_LARGE_TYPES = {pa.binary(): pa.large_binary(), pa.string(): pa.large_string()}

# Limit for a dead letter's reason, which may quote a hostile record.
MAX_REASON_LENGTH = 1000


def schema_with(columns: Sequence[KeptColumn] = ()) -> pa.Schema:
    """Return the columns of rows on their way: those of a shard, and where a row comes from.

    So a dead letter can name both sources. A row without offset is in the data set already, in the shard `file`.
    """
    return pa.schema([*shard_rows.schema_with(columns), *_SOURCE])


@dataclasses.dataclass(frozen=True)
class DeadLetter:
    """A record that could not be encoded.

    Attributes:
      file: The file that it is in.
      offset: Byte offset of the record in that (uncompressed) file.
      reason: Why it could not be encoded, cut to `MAX_REASON_LENGTH` characters.
      id: The video's id, or None if it could not be read.
      lost_bytes: If nothing after the record could be read: how many bytes that was. They may have held more records.
    """

    file: str
    offset: int
    reason: str
    id: bytes | None = None
    lost_bytes: int = 0

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON_LENGTH:
            object.__setattr__(self, "reason", f"{self.reason[: MAX_REASON_LENGTH - 3]}...")

    def to_json(self) -> str:
        """Return the letter as one line of JSON; an id that is not UTF-8 is escaped with backslashes."""
        fields = dataclasses.asdict(self)
        fields["id"] = None if self.id is None else self.id.decode(errors="backslashreplace")
        if not self.lost_bytes:
            del fields["lost_bytes"]
        return json.dumps(fields, sort_keys=True)


class EncodedVideos(NamedTuple):
    """What `encode_videos` gives.

    Attributes:
      rows: A batch of `schema_with(columns)`, in the order of the videos.
      dead_letters: The videos that the model has no code for.
    """

    rows: pa.RecordBatch
    dead_letters: list[DeadLetter]


def encode_videos(
    model: FrozenModel, videos: Sequence[PooledVideo], columns: Sequence[KeptColumn] = ()
) -> EncodedVideos:
    """Encode videos. A video's code does not depend on the other videos.

    Args:
      model: The frozen model.
      videos: At least one video.
      columns: What `kept` of the videos is.

    Returns:
      The rows, and a dead letter for each video whose values are too large for the model.
    """
    letters = []
    try:
        z_hat = model.quantize(np.stack([video.x for video in videos]))
    except UncodableError as error:
        letters = [
            DeadLetter(video.file, video.offset, f"its bottleneck activations are NaN or beyond {MAX_Z}", video.id)
            for video, usable in zip(videos, error.usable, strict=True)
            if not usable
        ]
        videos = [video for video, usable in zip(videos, error.usable, strict=True) if usable]
        x = np.array([video.x for video in videos], np.float32).reshape(len(videos), model.spec.input_size)
        z_hat = model.quantize(x)
    encoded = range_coder.encode_cheapest(model.tables, z_hat)
    label_offsets = np.cumsum([0, *(len(video.labels) for video in videos)], dtype=np.int32)
    label_values = np.concatenate([np.empty(0, np.int32), *(video.labels for video in videos)])
    schema = schema_with(columns)
    labels_type = schema.field("labels").type
    arrays = [
        pa.array([video.id for video in videos], pa.binary()),
        pa.ListArray.from_arrays(pa.array(label_offsets), pa.array(label_values), labels_type),
        pa.array([video.num_frames for video in videos], pa.int32()),
        pa.array(encoded.bank),
        shard_rows.code_array(encoded.data, encoded.offsets),
        *(
            pa.array([video.kept[index] for video in videos], schema.field(column.name).type)
            for index, column in enumerate(columns)
        ),
        pa.array([video.file for video in videos], pa.string()).dictionary_encode(),
        pa.array([video.offset for video in videos], pa.int64()),
    ]
    return EncodedVideos(pa.RecordBatch.from_arrays(arrays, schema=schema), letters)


def split_by_shard(rows: pa.Table, num_shards: int) -> dict[int, pa.Table]:
    """Divide rows among their shards by their ids.

    Args:
      rows: A table of `schema_with`.
      num_shards: How many shards the data set has.

    Returns:
      The rows of each shard that gets any.
    """
    shards = np.array([shard_of(key, num_shards) for key in rows["id"].to_pylist()], np.int64)
    return {int(index): rows.take(np.flatnonzero(shards == index)) for index in np.unique(shards)}


def merge_rows(rows: pa.Table) -> tuple[pa.Table, int, list[DeadLetter]]:
    """Sort a shard's rows by id and keep one row for each id.

    If several rows have the same id, the one that is already in the data set is kept, or else the first by file and
    offset. A later row with the same content is a duplicate; one with other content is a dead letter.

    Args:
      rows: All rows of one shard, in any order, of `schema_with`.

    Returns:
      The rows to write, with the columns of `shard_rows.schema_with`, but in types without a limit of 2 GiB for each
      column; the number of duplicates; the dead letters.
    """
    rows = rows.cast(_without_limit(rows.schema))
    rows = rows.set_column(rows.schema.get_field_index("file"), "file", rows["file"].cast(pa.string()))
    rows = rows.append_column("is_new", pc.is_valid(rows["offset"]))
    order = [(name, "ascending") for name in ("id", "is_new", "file", "offset")]
    rows = rows.sort_by(order).combine_chunks()
    ids = rows["id"].combine_chunks()
    repeated = np.zeros(len(ids), bool)
    if len(ids) > 1:
        repeated[1:] = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    num_duplicates = 0
    letters = []
    kept = None
    content = [name for name in rows.schema.names if name not in ("file", "offset", "is_new")]
    for index in np.flatnonzero(repeated).tolist():
        if not repeated[index - 1]:
            kept = _values(rows, int(index) - 1)
        row = _values(rows, int(index))
        if kept is not None and all(row[name] == kept[name] for name in content):
            num_duplicates += 1
        elif kept is not None:
            place = f" at offset {kept['offset']}" if kept["is_new"] else ""
            reason = (
                f"id {row['id']!r} occurs twice with different content: here and in {kept['file']}{place}, which is "
                "kept"
            )
            letters.append(DeadLetter(row["file"], row["offset"], reason, row["id"]))
    written = pc.and_(pa.array(~repeated), rows["is_new"])
    return rows.filter(written).select(content), num_duplicates, letters


def _values(rows: pa.Table, index: int) -> dict[str, Any]:
    """Return a row by the names of its columns. Lists of floats are given as bytes: a NaN is not equal to itself."""
    values = {}
    for name, (value,) in zip(rows.schema.names, rows.slice(index, 1).columns, strict=True):
        is_floats = pa.types.is_large_list(value.type) and pa.types.is_floating(value.type.value_type)
        values[name] = value.values.to_numpy().tobytes() if is_floats and value.is_valid else value.as_py()
    return values


def _without_limit(schema: pa.Schema) -> pa.Schema:
    """Return the schema with offsets of 64 bits, for columns that hold more than 2 GiB in all."""
    return pa.schema([pa.field(field.name, _large(field.type)) for field in schema])


def _large(column: pa.DataType) -> pa.DataType:
    if pa.types.is_list(column):
        return pa.large_list(_large(column.value_type))
    return _LARGE_TYPES.get(column, column)


def find_known(opened: shard.Shard, ids: Iterable[pa.Array]) -> Iterator[pa.RecordBatch]:
    """Find the rows of a shard that have one of some ids.

    All ids of the shard are read. The other columns are read only in row groups that hold one of these ids.

    Args:
      opened: The shard.
      ids: The ids, in several arrays.

    Yields:
      The rows, of `schema_with(opened.header.columns)`, without offset.

    Raises:
      vidpress.model.shards.shard_header.ShardError: If the shard is damaged where it is read.
    """
    # Large, since the ids of a shard may have more than 2 GiB together.
    known = [opened.read_ids(each).cast(pa.large_binary()) for each in range(len(opened.row_group_sizes))]
    shard_ids = pa.concat_arrays(known)
    ids = (part.cast(pa.large_binary()) for part in ids)
    shared = pa.concat_arrays([part.filter(pc.is_in(part, value_set=shard_ids)) for part in ids])
    for row_group, row_group_ids in enumerate(known):
        wanted = pc.is_in(row_group_ids, value_set=shared)
        if wanted.true_count:
            rows = opened.read(row_group).filter(wanted)
            name = opened.name.rsplit("/", 1)[-1]  # a data set is the same wherever it lies
            file = pa.array([name] * rows.num_rows, pa.string()).dictionary_encode()
            yield pa.RecordBatch.from_arrays(
                [*rows.columns, file, pa.nulls(rows.num_rows, pa.int64())],
                schema=schema_with(opened.header.columns),
            )
