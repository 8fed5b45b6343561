"""Data sets for tests, written without a pipeline."""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from test_shard import header_of, make_rows, shard_bytes

from vidpress.model.data_set.id_hash import shard_of
from vidpress.model.data_set.manifest import Counts, FileEntry, Generation, Manifest
from vidpress.model.files.file_names import file_name
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.shards.shard import Shard, footer_crc32
from vidpress.model.shards.shard_rows import schema_with

__all__ = ["KEPT", "header_of", "make_rows", "write_data_set"]

# A column of each kind.
KEPT = tuple(map(KeptColumn.parse, ("title:string", "thumb:bytes", "starts:int64", "scores:float")))


def write_data_set(
    folder: pathlib.Path,
    model: FrozenModel,
    num_videos: int,
    num_shards: int = 3,
    generations: int = 1,
    columns: Sequence[KeptColumn] = (),
) -> tuple[pa.Table, np.ndarray]:
    """Write a data set; return its rows, sorted by id, and their z_hat."""
    rows, z_hat = make_rows(model, num_videos)
    for column in columns:
        field = schema_with(columns).field(column.name)
        values = [_kept_values(column.kind, index) for index in range(num_videos)]
        rows = rows.append_column(field, pa.array(values, field.type))
    written = []
    for number in range(generations):
        entries = []
        of_generation = rows.take(np.arange(number, num_videos, generations))
        shards = np.array([shard_of(key, num_shards) for key in of_generation["id"].to_pylist()], int)
        for index in np.unique(shards).tolist():
            entries.append(
                _write(
                    folder,
                    shard_bytes(model, of_generation.filter(pa.array(shards == index)), columns),
                    number + 1,
                    (index, num_shards),
                )
            )
        videos = of_generation.num_rows
        code_bytes = pc.sum(pc.binary_length(of_generation["code"])).as_py() or 0
        written.append(Generation(num_shards, tuple(entries), (), None, Counts(videos, videos, 0, 0, 0, code_bytes)))
        manifest = Manifest(model.model_id, model.num_dims, tuple(written), columns=tuple(columns))
        name = "manifest.json" if number == 0 else f"manifest-{number + 1:05d}.json"
        (folder / name).write_text(manifest.to_json())
    return rows, z_hat


def _kept_values(kind: str, index: int) -> list | None:
    """What a video keeps: nothing, an empty list, or a value or two."""
    values = {
        "string": f"Titel {index} ä",
        "bytes": index.to_bytes(2, "big"),
        "int64": index - 2**40,
        "float": index / 8,
    }
    return None if index % 5 == 1 else [values[kind]] * (index % 3)


def _write(folder: pathlib.Path, data: bytes, generation: int, part: Sequence[int]) -> FileEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    name = file_name("shard", generation, tuple(part), sha256)
    (folder / name).write_bytes(data)
    sizes = tuple(Shard.open(folder / name).row_group_sizes)
    return FileEntry(name, sum(sizes), len(data), sha256, sizes, footer_crc32(data))
