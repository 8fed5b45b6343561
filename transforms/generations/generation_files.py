"""The files of a generation on their way into a data set: each is complete or absent, and none replaces another."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection

from vidpress.model.data_set.manifest import MAX_BYTES, FileEntry, Manifest, ManifestError, manifest_numbers
from vidpress.model.files import storage
from vidpress.model.files.file_names import (
    file_name,
    generation_of,
    is_part_name,
    is_temporary_name,
    join,
    manifest_name,
)

_log = logging.getLogger(__name__)

# Shards and lists that no manifest lists are of a run that died, or of one at work, or of a generation whose manifest
# is not seen. So they stay for a day.
LEFTOVER_SECONDS = 24 * 60 * 60


def write_part(
    output: str,
    kind: str,
    generation: int,
    part: tuple[int, int] | None,
    rows: int,
    data: bytes,
    row_groups: tuple[int, ...] = (),
    footer_crc32: int | None = None,
) -> FileEntry:
    """Write a file of a generation and return its entry for the manifest.

    Beam may run an attempt twice: a name goes with one content, so either may write it.

    Args:
      output: The data set's folder.
      kind: 'shard', 'dead-letters' or 'inputs'.
      generation: The generation's number.
      part: Which of how many, if there can be several.
      rows: How many rows it holds.
      data: Its content.
      row_groups: Rows of each of a shard's row groups.
      footer_crc32: Of a shard's footer.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    name = file_name(kind, generation, part, sha256)
    storage.write(join(output, name), data)
    return FileEntry(name, rows, len(data), sha256, row_groups, footer_crc32)


def create_manifest(output: str, manifest: Manifest) -> None:
    """Write a manifest, never in another's place, and remove what unfinished runs left behind.

    Raises:
      ManifestError: If another run wrote the same generation, or if the manifest is larger than what is read.
    """
    number = manifest.generation
    path = join(output, manifest_name(number))
    data = manifest.to_json().encode()
    if len(data) > MAX_BYTES:
        raise ManifestError(
            f"{path} would have {len(data):,} bytes, more than the {MAX_BYTES:,} that are read: nothing was added. "
            "Compact the data set first, or use fewer shards."
        )
    try:
        numbers = manifest_numbers(output)
        if number not in numbers and number < max(numbers, default=0):
            raise FileExistsError(f"{path} was there, before a compaction.")
        storage.write_new(path, data)
    except FileExistsError as error:
        there = Manifest.load(output, number if number in manifest_numbers(output) else None)
        remove_leftovers(output, there)
        if there != manifest:  # else it is ours, by an attempt before this one
            # Those of earlier generations stay: the other run may have compacted them, but they still have readers.
            added = {entry.name for entry in manifest.files if generation_of(entry.name) == number}
            storage.remove(join(output, name) for name in added - {entry.name for entry in there.files})
            raise ManifestError(
                f"Another run wrote {path} while this one was at work, which therefore added nothing: run it again."
            ) from error
        return
    remove_leftovers(output, manifest)


def remove_leftovers(output: str, newest: Manifest) -> None:
    """Remove what runs that died left in a data set's folder: what nobody will ever need.

    Temporary files go at once, for a run that still writes one writes it again. Shards and lists go when they are a day
    old and certainly in no manifest. Later generations' files may be another run's at work. A generation that has its
    list of input files was complete but for its manifest, which may have been lost: it stays. A name that an encode
    job does not give is never touched.
    """
    try:
        listed = {entry.name for entry in newest.files}
        found = [file for file in storage.list_files(output) if file.name not in listed]
        complete = {generation_of(file.name) for file in found if file.name.startswith("inputs-")}
        files = [file for file in found if _is_leftover(file, newest.generation, complete)]
        # The newest first: that before a compaction lists all shards that it replaced.
        for number in sorted(manifest_numbers(output), reverse=True):
            if any(is_part_name(file.name) for file in files):
                listed = {entry.name for entry in Manifest.load(output, number).files}
                files = [file for file in files if file.name not in listed]
        if files:
            _log.warning("Removing %d files that unfinished runs left in %s.", len(files), output)
            storage.remove(join(output, file.name) for file in files)
    except (OSError, ManifestError) as error:
        _log.warning("What unfinished runs left in %s was not all removed: %s", output, error)


def _is_leftover(unlisted: storage.StoredFile, newest: int, complete: Collection[int | None]) -> bool:
    generation = generation_of(unlisted.name)
    if (generation or 0) > newest:
        return False
    is_old = time.time() - unlisted.modified > LEFTOVER_SECONDS
    is_part = is_part_name(unlisted.name) and generation not in complete
    return is_temporary_name(unlisted.name) or (is_part and is_old)
