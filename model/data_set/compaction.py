"""Compaction: one generation of full shards takes the place of many small ones, which can be removed later."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.manifest import Counts, FileEntry, Generation, Manifest, manifest_numbers
from vidpress.model.data_set.rows import schema_with
from vidpress.model.files import storage
from vidpress.model.files.file_names import generation_of, is_part_name, join, manifest_name
from vidpress.model.shards.shard import Shard

_SECONDS_A_DAY = 24 * 60 * 60


def is_compact(manifest: Manifest) -> bool:
    """Return whether all shards belong to one generation already."""
    return sum(bool(generation.shards) for generation in manifest.generations) <= 1


def compacted(manifest: Manifest, num_shards: int, shards: Iterable[FileEntry]) -> Manifest:
    """Return the manifest that follows one when its videos have been written to new shards.

    All generations keep their counts, dead letters and lists of input files. Their shards are left out.

    Args:
      manifest: The newest manifest.
      num_shards: Over how many shards the ids are divided now.
      shards: The shards, which hold all videos.
    """
    number = manifest.generation + 1
    replaced = [dataclasses.replace(each, shards=(), replaced_by=number) for each in manifest.generations]
    added = Generation(num_shards, tuple(sorted(shards)), (), None, Counts.total(()))
    return dataclasses.replace(manifest, generations=(*replaced, added))


def is_continued(earlier: Manifest, later: Manifest) -> bool:
    """Return whether a manifest says of each earlier generation what it said then, or that it was compacted since."""
    generations = []
    for before, now in zip(earlier.generations, later.generations, strict=False):
        was_replaced = now.replaced_by is not None and now.replaced_by > earlier.generation
        without_shards = dataclasses.replace(before, shards=(), replaced_by=now.replaced_by)
        generations.append(before if was_replaced and without_shards == now else now)
    # A data set whose shards all carried their tables gets a file of them when it is added to.
    tables = later.tables if earlier.tables is not None else None
    return earlier == dataclasses.replace(later, generations=tuple(generations), tables=tables)


def placed_rows(shard: Shard, name: str) -> Iterator[pa.RecordBatch]:
    """Read the rows of a shard as rows that have yet to be written.

    Args:
      shard: The shard.
      name: Its name in the data set.

    Yields:
      The rows of each row group, of `schema_with` its columns: their file is the shard, and their offset is their
        number in it.

    Raises:
      vidpress.model.shards.shard_header.ShardError: If the shard is damaged.
    """
    schema = schema_with(shard.header.columns)
    start = 0
    for row_group, size in enumerate(shard.row_group_sizes):
        file = pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int32)), pa.array([name]))
        offset = pa.array(np.arange(start, start + size))
        yield pa.RecordBatch.from_arrays([*shard.read(row_group).columns, file, offset], schema=schema)
        start += size


@dataclasses.dataclass(frozen=True)
class Expiry:
    """What can be removed of a data set after a compaction, or was removed.

    Attributes:
      compaction: The generation that holds all videos of those before it; 0 if no compaction is old enough.
      manifests: The generations whose manifests go, the oldest first.
      shards: The shards that no other manifest lists.
    """

    compaction: int
    manifests: tuple[int, ...] = ()
    shards: tuple[storage.StoredFile, ...] = ()


def find_expired(data_set: str | os.PathLike[str], min_days: float) -> Expiry:
    """Find what nobody needs any more who reads the newest generation, or one since a compaction.

    Args:
      data_set: Its folder.
      min_days: How many days ago the compaction must have been, by the time of its manifest's file.

    Raises:
      vidpress.model.data_set.manifest.ManifestError: If there is no data set, or a manifest is damaged.
    """
    compaction = _newest_compaction(data_set, time.time() - _SECONDS_A_DAY * min_days)
    if not compaction:
        return Expiry(0)
    numbers = sorted(manifest_numbers(data_set))
    expired = [number for number in numbers if number < compaction]
    # Names of version 1 do not say that they are of a data set.
    named = {entry.name for entry in Manifest.load(data_set, expired[0]).shards} if expired else set()
    shards = [file for file in storage.list_files(data_set, "shard-") if file.name in named or is_part_name(file.name)]
    shards = [file for file in shards if (generation_of(file.name) or 1) < compaction]
    for number in numbers[len(expired) :]:
        listed = {entry.name for entry in Manifest.load(data_set, number).shards}
        shards = [file for file in shards if file.name not in listed]
    return Expiry(compaction, tuple(expired), tuple(shards))


def _newest_compaction(data_set: str | os.PathLike[str], latest: float) -> int:
    """Return the newest compaction that is no later than a time, in seconds since 1970; 0 if there is none."""
    written = {file.name: file.modified for file in storage.list_files(data_set, "manifest")}
    numbers = manifest_numbers(data_set)
    manifest = Manifest.load(data_set)
    while compaction := manifest.newest_compaction:
        # If its own manifest is lost, the next one, which is later, says when it was there.
        if written[manifest_name(min(number for number in numbers if number >= compaction))] <= latest:
            return compaction
        earlier = [number for number in numbers if number < compaction]
        if not earlier:
            break
        manifest = Manifest.load(data_set, max(earlier))
    return 0


def remove_expired(data_set: str | os.PathLike[str], expired: Expiry) -> None:
    """Remove what `find_expired` found: first the manifests, from the oldest on, so that none names a missing shard.

    If it is killed, the next one finds what is left.
    """
    storage.remove(join(data_set, manifest_name(number)) for number in expired.manifests)
    storage.remove(join(data_set, file.name) for file in expired.shards)
