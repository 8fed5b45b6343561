"""Open the shards of a data set, and compare each with what the manifest says about it."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

from vidpress.model.data_set.manifest import FileEntry, Manifest
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.model.files.uris import PathError
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.shards.shared_tables import TablesFile


class ListedShard(NamedTuple):
    """A shard that a manifest lists, and what else of the manifest is needed to open it: see `open_shard`."""

    entry: FileEntry
    model_id: str
    columns: tuple[KeptColumn, ...]


def listed_tables(manifest: Manifest) -> TablesFile | None:
    """Return the file of tables that a data set has, if it has one."""
    return None if manifest.tables is None else TablesFile(manifest.tables.name, manifest.tables.sha256)


def open_shard(
    data_set: str | os.PathLike[str], entry: FileEntry, model_id: str, columns: Sequence[KeptColumn]
) -> Shard:
    """Open a shard that a manifest lists, and check that it is the right one.

    After a copy that went wrong, a file of that name may hold another shard. The footer lists the checksums of the row
    groups, and the manifest has the checksum of the footer. So what is read later is what was written. Manifests before
    version 3 have no checksum of the footer; then the SHA-256 of the whole file is compared, once in a process.

    Args:
      data_set: The data set's folder.
      entry: The shard's entry in the manifest.
      model_id: The model of the data set.
      columns: What the data set keeps of the input.

    Raises:
      FileNotFoundError: If it is missing, or the file of the tables that it shares; the message names it.
      ShardError: If it is not a shard, is damaged, or is not the one that is listed.
    """
    uri = join(data_set, entry.name)
    try:
        if entry.footer_crc32 is None and _sha256(uri, entry.bytes) != entry.sha256:
            raise _another(uri, "its SHA-256 differs")
        file = storage.open_input(uri, links=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri} is missing: fetch or encode it again.") from error
    except PathError as error:
        raise ShardError(str(error)) from error
    shard = Shard(file, uri, os.fspath(data_set), model_id)
    shard.check_columns(columns)
    if shard.num_bytes != entry.bytes:
        raise _another(uri, f"it has {shard.num_bytes:,} bytes, not {entry.bytes:,}")
    if entry.footer_crc32 not in (None, shard.footer_crc32):
        raise _another(uri, "its footer differs")
    if tuple(shard.row_group_sizes) != entry.row_groups:
        raise _another(uri, f"it has row groups of {shard.row_group_sizes}, not {list(entry.row_groups)}")
    return shard


def _another(uri: str, how: str) -> ShardError:
    return ShardError(f"{uri} is not the file that its manifest lists: {how}. Fetch or encode it again.")


@functools.lru_cache(maxsize=100_000)
def _sha256(uri: str, _num_bytes: int) -> str:
    return storage.sha256(uri, links=False)
