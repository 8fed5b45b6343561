"""Copy the videos of all generations of a data set into the shards of a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from vidpress.model.data_set.compaction import compacted, is_compact, placed_rows
from vidpress.model.data_set.listed_shards import ListedShard, listed_tables, open_shard
from vidpress.model.data_set.manifest import Manifest, ManifestError
from vidpress.model.data_set.rows import DeadLetter
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shared_tables import TablesFile
from vidpress.transforms import metrics, progress
from vidpress.transforms.generations.generation_files import create_manifest
from vidpress.transforms.write_shards import SortIntoShards, WrittenShard


@dataclasses.dataclass
class CompactShards(beam.PTransform):
    """Write all videos of a data set as one generation. Takes a pipeline and gives the data set's new `Manifest`.

    Codes are copied as they are. The shards are those that one encode job over all input would have written. Nothing
    that is there changes. If another job writes the generation first, this one fails. If all shards belong to one
    generation already, nothing is written, and the manifest is the one that is there.

    Attributes:
      data_set: The data set's folder.
      previous: Its newest generation, which the new one follows.
      num_shards: Over how many shards the ids are divided.
    """

    data_set: str
    _: dataclasses.KW_ONLY
    previous: int
    num_shards: int

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_shards < 1:
            raise ValueError(f"num_shards={self.num_shards} must be at least 1.")

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[Manifest]:
        """Deal out the shards, read each, sort all rows into new shards, and write the manifest."""
        read = (
            pbegin
            | "Data set" >> beam.Create([self.data_set])
            | "List shards" >> beam.FlatMap(_list_shards, self.previous)
            | "Deal out shards" >> beam.Reshuffle()
            | "Read shards" >> beam.FlatMap(_read, self.data_set).with_outputs("headers", main="rows")
        )
        header = read.headers | "Unite headers" >> beam.CombineGlobally(_united)
        shards, repeated = read.rows | "Sort" >> SortIntoShards(
            self.data_set,
            header=beam.pvalue.AsSingleton(header),
            generation=self.previous + 1,
            num_shards=self.num_shards,
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "Write manifest"
            >> beam.Map(
                _write_manifest,
                shards=beam.pvalue.AsList(shards),
                repeated=beam.pvalue.AsList(repeated),
                data_set=self.data_set,
                previous=self.previous,
                num_shards=self.num_shards,
            )
        )


def _list_shards(data_set: str, generation: int) -> list[tuple[ListedShard, TablesFile | None]]:
    """Return the shards, each with the file of the data set's tables."""
    manifest = Manifest.load(data_set, generation)
    if is_compact(manifest):
        return []
    tables_file = listed_tables(manifest)
    return [(ListedShard(entry, manifest.model_id, manifest.columns), tables_file) for entry in manifest.shards]


def _read(element: tuple[ListedShard, TablesFile | None], data_set: str) -> Iterator[Any]:
    """Yield a shard's rows and, as another output, its header."""
    listed, tables_file = element
    opened = open_shard(data_set, *listed)
    yield beam.pvalue.TaggedOutput("headers", dataclasses.replace(opened.header, tables_file=tables_file))
    for rows in placed_rows(opened, listed.entry.name):
        metrics.VIDEOS_COPIED.inc(rows.num_rows)
        progress.advance(rows.num_rows)
        yield rows


def _united(headers: Iterable[ShardHeader | None]) -> ShardHeader | None:
    """Return the header of all shards, with the banks of tables that any of them has; None if there is none."""
    united = None
    for header in headers:
        if header is not None:
            united = header if united is None else united.united(header)
    return united


def _write_manifest(
    _: None,
    *,
    shards: Sequence[WrittenShard],
    repeated: Sequence[DeadLetter],
    data_set: str,
    previous: int,
    num_shards: int,
) -> Manifest:
    before = Manifest.load(data_set, previous)
    if is_compact(before):
        return before
    entries = [shard.entry for shard in shards if shard.entry is not None]
    found = {
        "videos": sum(entry.rows for entry in entries),
        "code_bytes": sum(shard.code_bytes for shard in shards),
    }
    counted = {name: getattr(before.counts, name) for name in found}
    wrong = [f"found {found[name]:,} {name}, not {counted[name]:,}" for name in found if found[name] != counted[name]]
    wrong += [f"{letter.file}: {letter.reason}" for letter in repeated[:1]]
    if wrong:
        raise ManifestError(
            f"{data_set} cannot be compacted, and was left as it is ({'; '.join(wrong)}): `vidpress verify` says what "
            "is damaged."
        )
    manifest = compacted(before, num_shards, entries)
    create_manifest(data_set, manifest)
    return manifest
