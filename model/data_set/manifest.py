"""The manifest lists what a data set consists of. It is written last; a folder without one is not a data set."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Annotated

import msgspec

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.files import file_kinds, storage
from vidpress.model.files.file_names import MANIFEST, generation_of_manifest, join, manifest_name, parse_part_name
from vidpress.model.files.uris import PathError
from vidpress.model.kept_columns import KeptColumn, check_columns
from vidpress.model.strict_json import JsonError

# Version 2 has generations, and lists of input files; 3 the checksum of each shard's footer, and bytes that were lost;
# 4 the decoder of the input; 5 compactions, and the columns that are kept of the input; 6 the file of tables.
FORMAT_VERSION = 6
_READABLE_VERSIONS = (1, 2, 3, 4, 5, 6)

# A manifest of a billion videos in shards of 50,000 has some 10 MB.
MAX_BYTES = 2**26

# What a manifest may say. More would only ask for memory, or for numbers that no other place can hold.
MAX_SHARDS = 100_000
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

_log = logging.getLogger(__name__)


class ManifestError(VidpressError, ValueError):
    """A folder that does not hold a usable data set. The message names it and says what to do."""


@dataclasses.dataclass(frozen=True, order=True)
class FileEntry:
    """A file of a data set.

    Attributes:
      name: Its name in the data set's folder.
      rows: How many rows it holds.
      bytes: Its size.
      sha256: Its checksum, hexadecimal.
      row_groups: Rows of each of a shard's row groups.
      footer_crc32: The checksum of a shard's footer (`vidpress.model.shards.shard.footer_crc32`), by which a reader
        recognises the shard without reading all of it. None for other files, and in manifests before version 3.
    """

    name: str
    rows: _Number
    bytes: _Number
    sha256: _Sha256
    row_groups: tuple[_Positive, ...] = ()
    footer_crc32: _Number | None = None


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the records of some input.

    Attributes:
      records: Records read.
      videos: Videos written.
      duplicates: Records that were equal to one before them.
      dead_letters: Records set aside.
      input_bytes: Payload bytes of the records read.
      code_bytes: Bytes of the written videos' codes.
      lost_bytes: Bytes of the input files that could not be read, because what came before is damaged.
    """

    records: _Number
    videos: _Number
    duplicates: _Number
    dead_letters: _Number
    input_bytes: _Number
    code_bytes: _Number
    lost_bytes: _Number = 0

    @property
    def unaccounted(self) -> int:
        """Records that are neither videos nor duplicates nor dead letters. Anything but 0 is a bug in vidpress."""
        return self.records - self.videos - self.duplicates - self.dead_letters

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """Return the sums."""
        return cls(*map(sum, zip((0,) * 7, *map(dataclasses.astuple, counts), strict=True)))


@dataclasses.dataclass(frozen=True)
class Generation:
    """What one job added to a data set: an encode job its videos, or a compaction new shards for those of others.

    Attributes:
      num_shards: Over how many shards the ids were divided. A shard without videos has no file.
      shards: The shards, by name.
      dead_letters: The files of dead letters, by name.
      inputs: The file that lists the input files, one `InputFile` a line; None for a compaction, and before version 2.
      counts: What became of the input; a compaction had none.
      replaced_by: The later generation whose shards hold its videos now, if it was compacted. It has no shards then.
    """

    num_shards: Annotated[int, msgspec.Meta(ge=1, le=MAX_SHARDS)]
    shards: tuple[FileEntry, ...]
    dead_letters: tuple[FileEntry, ...]
    inputs: FileEntry | None
    counts: Counts
    replaced_by: _Positive | None = None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the generation."""
        return (*self.shards, *self.dead_letters, *([] if self.inputs is None else [self.inputs]))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a complete data set consists of. Adding a generation writes a new manifest and changes no earlier one.

    Attributes:
      model_id: The frozen model that encoded it.
      num_dims: Dimensions of a decoded video.
      generations: What each encode job added, the first one first.
      decoder: The file that restores the input from decoded videos, of the first generation; None if the model has no
        such decoder, and before version 4.
      columns: What the shards keep of the input's records; none before version 5.
      tables: The file of the tables that small shards share; None if each carries its own, as before version 6.
    """

    model_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    num_dims: _Positive
    generations: tuple[Generation, ...]
    decoder: FileEntry | None = None
    columns: tuple[KeptColumn, ...] = ()
    tables: FileEntry | None = None

    @property
    def generation(self) -> int:
        """The newest generation's number; the first one's is 1."""
        return len(self.generations)

    @property
    def shards(self) -> tuple[FileEntry, ...]:
        """The shards of all generations."""
        return tuple(entry for generation in self.generations for entry in generation.shards)

    @property
    def dead_letters(self) -> tuple[FileEntry, ...]:
        """The files of dead letters of all generations."""
        return tuple(entry for generation in self.generations for entry in generation.dead_letters)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the data set but its manifests."""
        files = [entry for generation in self.generations for entry in generation.files]
        return (*files, *(entry for entry in (self.decoder, self.tables) if entry is not None))

    @property
    def counts(self) -> Counts:
        """What became of all input."""
        return Counts.total(generation.counts for generation in self.generations)

    @property
    def held(self) -> tuple[Counts, ...]:
        """Of each generation: what became of the input whose videos are in its shards."""
        by_holder: dict[int, list[Counts]] = {}
        for number, generation in enumerate(self.generations, start=1):
            by_holder.setdefault(generation.replaced_by or number, []).append(generation.counts)
        return tuple(Counts.total(by_holder.get(number, ())) for number in range(1, self.generation + 1))

    @property
    def newest_compaction(self) -> int:
        """The newest generation that is a compaction; 0 if there is none."""
        return max((generation.replaced_by or 0 for generation in self.generations), default=0)

    def to_json(self) -> str:
        """Return the manifest's file; equal data sets give equal bytes."""
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = MANIFEST) -> Manifest:
        """Read back what `to_json` gave.

        Raises:
          ManifestError: If it is not a manifest, or has a format version that this vidpress cannot read.
        """
        try:
            version = strict_json.decode(text, _Version, max_bytes=MAX_BYTES).format_version
        except JsonError as error:
            start = text[: file_kinds.START_BYTES]
            kind = file_kinds.stand_in(start.encode() if isinstance(start, str) else start)
            why = f"it {kind}" if kind and kind != "is JSON" else error
            raise ManifestError(f"{name} is not a vidpress manifest: {why}.") from error
        if version not in _READABLE_VERSIONS:
            raise ManifestError(
                f"{name} has format version {version}; this vidpress reads "
                f"{', '.join(map(str, _READABLE_VERSIONS))}: install the version that wrote it, or a later one."
            )
        try:
            if version > 1:
                manifest = strict_json.decode(text, cls, max_bytes=MAX_BYTES)
            else:
                first = strict_json.decode(text, _Version1, max_bytes=MAX_BYTES)
                generation = Generation(first.num_shards, first.shards, first.dead_letters, None, first.counts)
                manifest = cls(first.model_id, first.num_dims, (generation,))
            # A key that is damaged would be taken for one that earlier versions do not have.
            if version == FORMAT_VERSION and strict_json.decode(text, dict, max_bytes=MAX_BYTES) != {
                "format_version": version,
                **msgspec.json.decode(msgspec.json.encode(manifest)),
            }:
                raise JsonError("it does not have the fields that vidpress writes")
        except JsonError as error:
            raise ManifestError(f"{name} is damaged: {error}.") from error
        for problem in _problems(manifest):
            raise ManifestError(f"{name} is damaged: {problem}.")
        return manifest

    @classmethod
    def load(cls, data_set: str | os.PathLike[str], generation: int | None = None) -> Manifest:
        """Load the manifest of a data set's folder.

        Args:
          data_set: The folder.
          generation: The generation whose manifest to load; by default the newest one.

        Raises:
          ManifestError: If there is none, because the job did not finish, or if it is unusable.
        """
        numbers = manifest_numbers(data_set)
        if not numbers:
            raise ManifestError(
                f"{os.fspath(data_set)} holds no {MANIFEST}: it is not a vidpress data set, or its job did not finish. "
                "Give the folder of a data set."
            )
        if generation is None:
            _warn_of_lost_generation(data_set, max(numbers))
        number = max(numbers) if generation is None else generation
        if number not in numbers:
            if number > max(numbers):
                fate = "never existed"
            elif number < oldest_kept(cls.load(data_set), numbers):
                fate = "was removed by `vidpress compact --expire`, or is lost"
            else:
                fate = "is lost"
            raise ManifestError(
                f"{os.fspath(data_set)} holds no {manifest_name(number)}, which {fate}. Its newest generation, "
                f"{max(numbers)}, holds all that is older."
            )
        uri = join(data_set, manifest_name(number))
        try:
            data = storage.read_bytes(uri, max_bytes=MAX_BYTES, links=False)
        except (FileNotFoundError, PathError) as error:
            raise ManifestError(f"{uri} cannot be read: {error}") from error
        manifest = cls.from_json(data, name=uri)
        if manifest.generation != number:
            raise ManifestError(
                f"{uri} lists {manifest.generation} generations, its name says {number}: it was renamed, so rename it "
                "back."
            )
        return manifest


class _Version(msgspec.Struct):
    format_version: int


class _Version1(msgspec.Struct):
    """The manifest before there were generations."""

    model_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    num_dims: _Positive
    num_shards: Annotated[int, msgspec.Meta(ge=1, le=MAX_SHARDS)]
    shards: tuple[FileEntry, ...]
    dead_letters: tuple[FileEntry, ...]
    counts: Counts


def _problems(manifest: Manifest) -> Iterator[str]:
    """Yield everything that contradicts itself, and that vidpress cannot have written."""
    for number, (generation, held) in enumerate(zip(manifest.generations, manifest.held, strict=True), start=1):
        yield from _problems_of(number, generation, held)
        holder = generation.replaced_by
        if holder is not None and not (
            number < holder <= manifest.generation and manifest.generations[holder - 1].replaced_by is None
        ):
            yield f"generation {number} is replaced by generation {holder}, which does not hold it"
    try:
        check_columns(manifest.columns)
    except ValueError as error:
        yield str(error).rstrip(".")
    for kind, what, entry in (("decoder", "decoder", manifest.decoder), ("tables", "file of tables", manifest.tables)):
        found = None if entry is None else parse_part_name(entry.name)
        if entry is not None and (found is None or found["kind"] != kind):
            yield f"{entry.name[:200]!r} is not the name of a {what}"


def _problems_of(number: int, generation: Generation, held: Counts) -> Iterator[str]:
    names = [entry.name for entry in generation.files]
    if len(set(names)) != len(names):
        yield f"generation {number} lists a file twice"
    kinds = (("shard", generation.shards), ("dead-letters", generation.dead_letters))
    for kind, entries in (*kinds, ("inputs", () if generation.inputs is None else (generation.inputs,))):
        for entry in entries:
            # Nothing but such a name is ever opened: none leads out of the folder.
            found = parse_part_name(entry.name)
            if found is None or found["kind"] != kind:
                yield f"{entry.name[:200]!r} is not the name of one of a data set's {kind} files"
            elif found["generation"] is not None and int(found["generation"]) != number:
                yield f"{entry.name} is listed as a file of generation {number}"
            elif kind != "inputs" and not int(found["part"]) < int(found["parts"]) == generation.num_shards:
                yield f"{entry.name} is listed as one of {generation.num_shards} parts"
    for entry in generation.shards:
        if sum(entry.row_groups) != entry.rows:
            yield f"{entry.name} has {entry.rows} rows in row groups of {list(entry.row_groups)[:20]}"
    for what, counted, entries in (
        ("videos", held.videos, generation.shards),
        ("dead letters", generation.counts.dead_letters, generation.dead_letters),
    ):
        rows = sum(entry.rows for entry in entries)
        if rows != counted:
            yield f"generation {number} counts {counted:,} {what}, its files have {rows:,} rows"


def oldest_kept(newest: Manifest, numbers: Collection[int]) -> int:
    """Return the oldest generation whose manifest should be there: those before it were removed after a compaction.

    They are removed from the oldest on. So one that is missing after another is lost.

    Args:
      newest: The newest manifest.
      numbers: The `manifest_numbers` of the data set.
    """
    return min(*numbers, max(newest.newest_compaction, 1))


def manifest_numbers(data_set: str | os.PathLike[str]) -> set[int]:
    """Return the numbers of the generations whose manifests are in a folder.

    The folder is listed, so that a manifest that is lost does not hide the ones after it.

    Raises:
      PermissionError: If the folder cannot be listed.
    """
    found = (generation_of_manifest(file.name) for file in storage.list_files(data_set, "manifest"))
    return {number for number in found if number is not None}


def _warn_of_lost_generation(data_set: str | os.PathLike[str], newest: int) -> None:
    """Log a warning if a manifest after the newest one seems to be lost.

    A run writes its list of input files when all its shards are there, and its manifest right after that. If there is a
    later list without a manifest, the run died in between or the manifest was lost. Readers do not see its videos.
    """
    lists = (parse_part_name(file.name) for file in storage.list_files(data_set, "inputs-"))
    found = {int(parts["generation"]) for parts in lists if parts is not None and parts["generation"] is not None}
    lost = max(found, default=0)
    if lost > newest and lost not in manifest_numbers(data_set):  # it may just have been written
        _log.warning(
            "%s holds the files of generation %d, but no %s: it is lost, or its run died right before writing it. Put "
            "it back, or run `vidpress encode --append` on the same input again.",
            os.fspath(data_set),
            lost,
            manifest_name(lost),
        )
