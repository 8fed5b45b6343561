"""Read the shards of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from vidpress.model.manifest import FileEntry, Manifest, manifest_name, missing_manifest, newest_generation
from vidpress.model.shard import Shard, ShardError


def load_manifest(data_set: str, generation: int | None = None) -> Manifest:
    """Load a data set's manifest through Beam's file systems.

    Args:
      data_set: The folder.
      generation: Which; the newest unless it is given.

    Raises:
      ManifestError: If there is none, or it is unusable.
    """
    if generation is None:
        generation = newest_generation(data_set, lambda name: FileSystems.exists(FileSystems.join(data_set, name)))
    path = FileSystems.join(data_set, manifest_name(generation))
    if not FileSystems.exists(path):
        raise missing_manifest(data_set, generation)
    with FileSystems.open(path) as file:
        return Manifest.from_json(file.read(), name=path).checked(generation, path)


def read_shard(data_set: str, entry: FileEntry, model_id: str) -> Iterable[pa.RecordBatch]:
    """Read a shard that a manifest lists.

    Yields:
      The rows of each row group, checked; the schema's metadata hold what decoding needs.

    Raises:
      ShardError: If the shard is damaged, or is not the one that the manifest lists.
    """
    path = FileSystems.join(data_set, entry.name)
    with FileSystems.open(path, mime_type="application/octet-stream") as file:
        shard = Shard(file, path)
        shard.check_model(model_id)
        if tuple(shard.row_group_sizes) != entry.row_groups:
            raise ShardError(
                f"{path} has row groups of {shard.row_group_sizes} rows, its manifest says {list(entry.row_groups)}: "
                "fetch or encode it again."
            )
        for row_group in range(len(entry.row_groups)):
            yield shard.read(row_group)


@dataclasses.dataclass
class ReadShards(beam.PTransform):
    """Read a data set, from a pipeline's beginning to Arrow batches of rows, one a row group.

    Attributes:
      data_set: The folder that `vidpress encode` wrote.
      generation: The newest generation to read; the data set's newest one unless it is given.
    """

    data_set: str
    _: dataclasses.KW_ONLY
    generation: int | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        """List the shards of the manifest, deal them out and read each on one worker."""
        return (
            pbegin
            | "Data set" >> beam.Create([self.data_set])
            | "List shards" >> beam.FlatMap(_list_shards, self.generation)
            | "Deal out shards" >> beam.Reshuffle()
            | "Read row groups" >> beam.FlatMap(lambda shard: read_shard(*shard))
        )


def _list_shards(data_set: str, generation: int | None) -> list[tuple[str, FileEntry, str]]:
    manifest = load_manifest(data_set, generation)
    return [(data_set, entry, manifest.model_id) for entry in manifest.shards]
