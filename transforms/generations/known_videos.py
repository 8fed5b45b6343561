"""What a data set already has: the files that were read, and the videos that have the ids of new ones."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from vidpress.model.data_set.input_lists import InputFile
from vidpress.model.data_set.listed_shards import ListedShard, open_shard
from vidpress.model.data_set.manifest import FileEntry, Manifest, ManifestError
from vidpress.model.data_set.rows import find_known, split_by_shard
from vidpress.model.files import storage
from vidpress.model.files.file_names import join, shard_index
from vidpress.model.files.uris import PathError
from vidpress.model.strict_json import JsonError

# A bundle's ids are sent on at the latest when there are this many.
_MAX_BUFFERED_IDS = 200_000


def read_input_files(data_set: str, entry: FileEntry) -> Iterator[InputFile]:
    """Read a generation's list of input files.

    Args:
      data_set: Its folder.
      entry: The list's entry in the manifest.

    Yields:
      The files. They are only valid if the end is reached.

    Raises:
      ManifestError: If the list is missing, damaged, or not the one that the manifest lists.
    """
    uri = join(data_set, entry.name)
    digest = hashlib.sha256()
    try:
        with storage.open_input(uri, links=False) as file:
            if file.seek(0, io.SEEK_END) != entry.bytes:
                raise _damaged_list(uri, f"it does not have {entry.bytes:,} bytes")
            file.seek(0)
            for line in io.BufferedReader(file):  # type: ignore[type-var]
                digest.update(line)
                yield InputFile.from_json(line)
    except (FileNotFoundError, PathError, JsonError) as error:
        raise _damaged_list(uri, str(error)) from error
    if digest.hexdigest() != entry.sha256:
        raise _damaged_list(uri, "its SHA-256 is not the one in the manifest")


def _damaged_list(uri: str, why: str) -> ManifestError:
    return ManifestError(
        f"{uri}, which lists files that were encoded, is damaged ({why}): fetch it again from a copy of the data set. "
        "Without it, new files cannot be told from old ones."
    )


def input_lists(manifest: Manifest) -> list[FileEntry]:
    """Return the files that list a data set's input files."""
    return [generation.inputs for generation in manifest.generations if generation.inputs is not None]


@dataclasses.dataclass
class ReadInputFiles(beam.PTransform):
    """Give the path of every file that a data set was encoded from, with its `bytes` and `damaged_crc32`.

    Attributes:
      data_set: Its folder.
      generation: The newest generation to read.
    """

    data_set: str
    _: dataclasses.KW_ONLY
    generation: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[tuple[str, tuple[int, int | None]]]:
        """List the generations' lists, deal them out and read each."""
        return (
            pbegin
            | "Data set" >> beam.Create([self.data_set])
            | "Find lists"
            >> beam.FlatMap(lambda data_set, number: input_lists(Manifest.load(data_set, number)), self.generation)
            | "Deal out lists" >> beam.Reshuffle()
            | "Read lists" >> beam.FlatMap(lambda entry, data_set: read_input_files(data_set, entry), self.data_set)
            | "Sizes" >> beam.Map(lambda file: (file.file, (file.bytes, file.damaged_crc32)))
        )


@dataclasses.dataclass
class FindKnownVideos(beam.PTransform):
    """Find the videos of a data set that have the ids of some rows. Gives Arrow batches of rows without offset.

    An id's shard follows from its hash, so the new ids are sent to where the shards are read, not the other way. Every
    shard that may have a new id is read on one worker: its ids, and the row groups that have a new id.

    Attributes:
      data_set: Its folder.
      generation: The newest generation to look in.
    """

    data_set: str
    _: dataclasses.KW_ONLY
    generation: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """Bring the ids and the shards of each place together, and look them up."""
        ids = rows | "Deal ids" >> beam.ParDo(_DealIdsFn(self.data_set, self.generation))
        shards = (
            rows.pipeline
            | "Data set" >> beam.Create([self.data_set])
            | "List shards" >> beam.FlatMap(_list_shards, self.generation)
        )
        return (
            {"ids": ids, "shards": shards}
            | "Gather ids" >> beam.CoGroupByKey()
            | "Look up" >> beam.FlatMap(_look_up, self.data_set)
        )


def _list_shards(data_set: str, number: int) -> Iterator[tuple[tuple[int, int], ListedShard]]:
    """Yield each shard by its place: over how many shards ids were dealt, and which one it is."""
    manifest = Manifest.load(data_set, number)
    for generation in manifest.generations:
        for entry in generation.shards:
            yield (
                (generation.num_shards, shard_index(entry.name)),
                ListedShard(entry, manifest.model_id, manifest.columns),
            )


class _DealIdsFn(beam.DoFn):
    """Gives the ids of a bundle by the places where a shard of the data set may hold them."""

    def __init__(self, data_set: str, generation: int):
        self._data_set = data_set
        self._generation = generation
        self._ids: list[pa.Array] = []

    def setup(self) -> None:
        generations = Manifest.load(self._data_set, self._generation).generations
        self._nums_shards = sorted({generation.num_shards for generation in generations if generation.shards})

    def start_bundle(self) -> None:
        self._ids = []

    def process(self, element: pa.RecordBatch) -> Iterable[tuple[tuple[int, int], list[bytes]]]:
        self._ids.append(element["id"])
        if sum(map(len, self._ids)) >= _MAX_BUFFERED_IDS:
            yield from self._flush()

    def finish_bundle(self) -> Iterable[Any]:
        for element in self._flush():
            yield beam.transforms.window.GlobalWindows.windowed_value(element)

    def _flush(self) -> Iterator[tuple[tuple[int, int], list[bytes]]]:
        if self._ids:
            ids = pa.table({"id": pa.chunked_array(self._ids)})
            for num_shards in self._nums_shards:
                for index, part in split_by_shard(ids, num_shards).items():
                    yield (num_shards, index), part["id"].to_pylist()
        self.start_bundle()


def _look_up(element: tuple[tuple[int, int], dict[str, Iterable[Any]]], data_set: str) -> Iterator[pa.RecordBatch]:
    _, groups = element
    ids = [pa.array(part, pa.binary()) for part in groups["ids"]]
    if not ids:
        return
    for listed in groups["shards"]:
        yield from find_known(open_shard(data_set, *listed), ids)
