"""The manifest: what a data set consists of. It is written last; without one there is no data set."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from vidpress.model import storage

FORMAT_VERSION = 1
NAME = "manifest.json"
SHARD_PATTERN = "shard-*-of-*.parquet"
DEAD_LETTERS_PATTERN = "dead-letters-*-of-*.jsonl"


class ManifestError(ValueError):
    """A place that holds no usable data set: the message names it and what to do."""


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
    """What became of the records of a data set's input.

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


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A complete data set.

    Attributes:
      model_id: The frozen model that encoded it.
      num_dims: Dimensions of a decoded video.
      num_shards: Over how many shards the ids were dealt; one that got none has no file.
      shards: The shards, by name.
      dead_letters: The files of dead letters, by name.
      counts: What became of the input.
    """

    model_id: str
    num_dims: int
    num_shards: int
    shards: tuple[FileEntry, ...]
    dead_letters: tuple[FileEntry, ...]
    counts: Counts

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
        if version != FORMAT_VERSION:
            raise ManifestError(f"{name} has format version {version}; this vidpress reads {FORMAT_VERSION}.")
        try:
            return cls(
                model_id=fields["model_id"],
                num_dims=fields["num_dims"],
                num_shards=fields["num_shards"],
                shards=tuple(map(_file_entry, fields["shards"])),
                dead_letters=tuple(map(_file_entry, fields["dead_letters"])),
                counts=Counts(**fields["counts"]),
            )
        except (KeyError, TypeError) as error:
            raise ManifestError(f"{name} is damaged: {error!r}") from error

    @classmethod
    def load(cls, data_set: str | os.PathLike[str]) -> Manifest:
        """Load the manifest of a data set's folder.

        Raises:
          ManifestError: If there is none, which means that the data set was not finished, or it is unusable.
        """
        uri = join(data_set, NAME)
        try:
            data = storage.read_bytes(uri)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise missing_manifest(data_set) from error
        return cls.from_json(data, name=uri)


def _file_entry(fields: dict[str, Any]) -> FileEntry:
    return FileEntry(**{**fields, "row_groups": tuple(fields["row_groups"])})


def missing_manifest(data_set: str | os.PathLike[str]) -> ManifestError:
    """Return the error for a folder without a manifest."""
    return ManifestError(
        f"{os.fspath(data_set)} holds no {NAME}: it is no vidpress data set, or its job did not finish."
    )


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URI of a file in a folder."""
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def shard_name(index: int, num_shards: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}-of-{num_shards:05d}.parquet"


def dead_letters_name(index: int, num_shards: int) -> str:
    """Return the file name of a part of the dead letters."""
    return f"dead-letters-{index:05d}-of-{num_shards:05d}.jsonl"
