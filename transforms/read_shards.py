"""Read the shards of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import apache_beam as beam
import pyarrow as pa

from vidpress.model.data_set.listed_shards import open_shard
from vidpress.model.data_set.manifest import FileEntry, Manifest
from vidpress.model.kept_columns import KeptColumn


def read_shard(
    data_set: str, entry: FileEntry, model_id: str, columns: Sequence[KeptColumn]
) -> Iterable[pa.RecordBatch]:
    """Read a shard that a manifest lists.

    Yields:
      The rows of each row group, after checking them. The schema's metadata have all that decoding needs.

    Raises:
      ShardError: If the shard is damaged, or is not the one that the manifest lists.
    """
    shard = open_shard(data_set, entry, model_id, columns)
    for row_group in range(len(entry.row_groups)):
        yield shard.read(row_group)


@dataclasses.dataclass
class ReadShards(beam.PTransform):
    """Read a data set. Takes a pipeline and gives Arrow batches of rows, one for each row group.

    Attributes:
      data_set: The folder that `vidpress encode` wrote.
      generation: The newest generation to read; by default the newest one of the data set.
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


def _list_shards(data_set: str, generation: int | None) -> list[tuple[str, FileEntry, str, tuple[KeptColumn, ...]]]:
    manifest = Manifest.load(data_set, generation)
    return [(data_set, entry, manifest.model_id, manifest.columns) for entry in manifest.shards]
