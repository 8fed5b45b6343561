"""The manifest: what a data set consists of. Each generation's is written last; without one there is no data set."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from vidpress.model import storage
from vidpress.model.errors import VidpressError

# Version 2 has generations, and lists of input files.
FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)
NAME = "manifest.json"


class ManifestError(VidpressError, ValueError):
    """A place that holds no usable data set: the message names it and what to do."""


class InputChangedError(VidpressError, ValueError):
    """An input file that is not what it was when it was encoded."""


class InputFile(NamedTuple):
    """A file that was read.

    Attributes:
      file: Its path or URI.
      bytes: Its size.
      records: Records in it, damaged ones included.
      record_bytes: Bytes of their payloads.
    """

    file: str
    bytes: int
    records: int
    record_bytes: int

    def to_json(self) -> str:
        """Return the file as one line of JSON."""
        return json.dumps(self._asdict(), sort_keys=True)


@dataclasses.dataclass(frozen=True, order=True)
class FileEntry:
    """A file of a data set.

    Attributes:
      name: Its name in the data set's folder.
      rows: How many rows it holds.
      bytes: Its size.
      sha256: Its checksum, hexadecimal.
      row_groups: Rows of each of a shard's row groups.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the records of some input.

    Attributes:
      records: Records read.
      videos: Videos written.
      duplicates: Records that said the same as one before them.
      dead_letters: Records set aside.
      input_bytes: Payload bytes of the records read.
      code_bytes: Bytes of the written videos' codes.
    """

    records: int
    videos: int
    duplicates: int
    dead_letters: int
    input_bytes: int
    code_bytes: int

    @property
    def unaccounted(self) -> int:
        """Records that are neither written nor duplicates nor dead letters; anything but 0 is an error of ours."""
        return self.records - self.videos - self.duplicates - self.dead_letters

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """Return the sums."""
        return cls(*map(sum, zip((0,) * 6, *map(dataclasses.astuple, counts), strict=True)))


@dataclasses.dataclass(frozen=True)
class Generation:
    """What one encode job added to a data set.

    Attributes:
      num_shards: Over how many shards the ids were dealt; one that got none has no file.
      shards: The shards, by name.
      dead_letters: The files of dead letters, by name.
      inputs: The file that lists the input files, one `InputFile` a line; None before version 2.
      counts: What became of the input.
    """

    num_shards: int
    shards: tuple[FileEntry, ...]
    dead_letters: tuple[FileEntry, ...]
    inputs: FileEntry | None
    counts: Counts

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the generation."""
        return (*self.shards, *self.dead_letters, *([] if self.inputs is None else [self.inputs]))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A complete data set. A generation that is added gives a new manifest, and changes nothing of the ones before.

    Attributes:
      model_id: The frozen model that encoded it.
      num_dims: Dimensions of a decoded video.
      generations: What each encode job added, the first one first.
    """

    model_id: str
    num_dims: int
    generations: tuple[Generation, ...]

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
    def counts(self) -> Counts:
        """What became of all input."""
        return Counts.total(generation.counts for generation in self.generations)

    def to_json(self) -> str:
        """Return the manifest's file; equal data sets give equal bytes."""
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = NAME) -> Manifest:
        """Read back what `to_json` gave.

        Raises:
          ManifestError: If it is no manifest, or of another format version.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            version = fields.pop("format_version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ManifestError(f"{name} is not a vidpress manifest: {error!r}") from error
        if version not in _READABLE_VERSIONS:
            raise ManifestError(
                f"{name} has format version {version}; this vidpress reads "
                f"{', '.join(map(str, _READABLE_VERSIONS))}: install the version that wrote it, or a later one."
            )
        try:
            return cls(
                model_id=fields["model_id"],
                num_dims=fields["num_dims"],
                generations=tuple(map(_generation, [fields] if version == 1 else fields["generations"])),
            )
        except (KeyError, TypeError) as error:
            raise ManifestError(f"{name} is damaged: {error!r}") from error

    @classmethod
    def load(cls, data_set: str | os.PathLike[str], generation: int | None = None) -> Manifest:
        """Load the manifest of a data set's folder.

        Args:
          data_set: The folder.
          generation: Which; the newest unless it is given.

        Raises:
          ManifestError: If there is none, which means that the job did not finish, or it is unusable.
        """
        if generation is None:
            generation = newest_generation(data_set, lambda name: storage.exists(join(data_set, name)))
        uri = join(data_set, manifest_name(generation))
        try:
            data = storage.read_bytes(uri)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise missing_manifest(data_set, generation) from error
        return cls.from_json(data, name=uri).checked(generation, uri)

    def checked(self, generation: int, name: str) -> Manifest:
        """Return the manifest if it is the one of a generation.

        Raises:
          ManifestError: If not.
        """
        if self.generation != generation:
            raise ManifestError(
                f"{name} lists {self.generation} generations, its name says {generation}: it was renamed; give it its "
                "name back."
            )
        return self


def newest_generation(data_set: str | os.PathLike[str], exists: Callable[[str], bool]) -> int:
    """Return the number of the newest generation of a data set.

    There is a manifest for each generation from the first to the newest, so it takes few looks and no listing.

    Args:
      data_set: The folder, for the message.
      exists: Tells of a name whether the folder holds that file.

    Raises:
      ManifestError: If there is none.
    """
    newest, absent = 0, 1
    while exists(manifest_name(absent)):
        newest, absent = absent, 2 * absent
    while absent - newest > 1:
        middle = (newest + absent) // 2
        newest, absent = (middle, absent) if exists(manifest_name(middle)) else (newest, middle)
    if not newest:
        raise missing_manifest(data_set)
    return newest


def is_new(file: str, num_bytes: int, recorded_bytes: Iterable[int]) -> bool:
    """Return whether an input file is still to be encoded.

    Args:
      file: Its path.
      num_bytes: Its size.
      recorded_bytes: The size that the data set's manifest gives it, if it lists it.

    Raises:
      InputChangedError: If it is listed with another size.
    """
    sizes = set(recorded_bytes)
    if sizes - {num_bytes}:
        raise InputChangedError(
            f"{file} has {num_bytes} bytes, but had {', '.join(map(str, sizes - {num_bytes}))} when it was encoded: "
            "give the changed file a name of its own (videos that the data set holds are not added twice), or encode "
            "everything to another folder."
        )
    return not sizes


def _generation(fields: dict[str, Any]) -> Generation:
    inputs = fields.get("inputs")
    return Generation(
        num_shards=fields["num_shards"],
        shards=tuple(map(_file_entry, fields["shards"])),
        dead_letters=tuple(map(_file_entry, fields["dead_letters"])),
        inputs=None if inputs is None else _file_entry(inputs),
        counts=Counts(**fields["counts"]),
    )


def _file_entry(fields: dict[str, Any]) -> FileEntry:
    return FileEntry(**{**fields, "row_groups": tuple(fields["row_groups"])})


def missing_manifest(data_set: str | os.PathLike[str], generation: int = 1) -> ManifestError:
    """Return the error for a folder without a manifest."""
    meaning = (
        "it is no vidpress data set, or its job did not finish" if generation == 1 else "it has no such generation"
    )
    return ManifestError(f"{os.fspath(data_set)} holds no {manifest_name(generation)}: {meaning}.")


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URI of a file in a folder."""
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def manifest_name(generation: int) -> str:
    """Return the file name of a generation's manifest."""
    return NAME if generation == 1 else f"manifest-{generation:05d}.json"


def file_name(kind: str, generation: int, part: tuple[int, int] | None, sha256: str) -> str:
    """Return the file name of a part of a generation.

    A name goes with one content only. So runs that write at once never harm each other's files, and one that is run
    again finds its own.

    Args:
      kind: 'shard', 'dead-letters' or 'inputs'.
      generation: Its number.
      part: Which of how many, if there can be several.
      sha256: The content's checksum, hexadecimal.
    """
    of = "" if part is None else f"-{part[0]:05d}-of-{part[1]:05d}"
    suffix = "parquet" if kind == "shard" else "jsonl"
    return f"{kind}-{generation:05d}{of}-{sha256[:12]}.{suffix}"


def generation_of(name: str) -> int | None:
    """Return the generation that a file's name says, or None if it is no file of a generation."""
    found = re.fullmatch(
        r"\.?(?:shard|dead-letters|inputs)-(\d{5,})(?:-\d{5,}-of-\d{5,})?-[0-9a-f]{12}\.\w+(\..+)?", name
    )
    return int(found.group(1)) if found else None


def shard_index(name: str) -> int:
    """Return which of its generation's shards a file is."""
    found = re.search(r"(\d+)-of-\d+", name)
    if found is None:
        raise ManifestError(f"{name} is not the name of a shard.")
    return int(found.group(1))
