"""The files of a generation on their way into a data set: each is complete or absent, and none replaces another."""

from __future__ import annotations

import hashlib
import logging
import uuid

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from vidpress.model import storage
from vidpress.model.manifest import FileEntry, Manifest, ManifestError, file_name, generation_of, manifest_name
from vidpress.transforms.read_shards import load_manifest

_log = logging.getLogger(__name__)


def write_part(
    output: str,
    kind: str,
    generation: int,
    part: tuple[int, int] | None,
    rows: int,
    data: bytes,
    row_groups: tuple[int, ...] = (),
) -> FileEntry:
    """Write a file of a generation and return its entry for the manifest.

    Args:
      output: The data set's folder.
      kind: 'shard', 'dead-letters' or 'inputs'.
      generation: The generation's number.
      part: Which of how many, if there can be several.
      rows: How many rows it holds.
      data: Its content.
      row_groups: Rows of each of a shard's row groups.

    Raises:
      ManifestError: If another run wrote the same generation.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    name = file_name(kind, generation, part, sha256)
    try:
        _write_file(output, name, data)
    except BeamIOError as error:
        # That run took what this one was writing for a leftover.
        manifest = FileSystems.join(output, manifest_name(generation))
        if FileSystems.exists(manifest):
            raise _outrun(manifest) from error
        raise
    return FileEntry(name, rows, len(data), sha256, row_groups)


def _write_file(folder: str, name: str, data: bytes) -> None:
    """Write a file that appears under its name only when complete, because Beam may run an attempt twice."""
    path = FileSystems.join(folder, name)
    temporary = FileSystems.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    with FileSystems.create(temporary, mime_type="application/octet-stream") as file:
        file.write(data)
    try:
        FileSystems.rename([temporary], [path])
    except BeamIOError:
        # Another run with the same input finished meanwhile and removed what it took for a leftover. A name goes with
        # one content, so whatever has it will do.
        if not FileSystems.exists(path):
            raise


def create_manifest(output: str, manifest: Manifest) -> None:
    """Write a manifest, never in another's place, and remove what unfinished runs left behind.

    Raises:
      ManifestError: If another run wrote the same generation.
    """
    name = manifest_name(manifest.generation)
    path = FileSystems.join(output, name)
    data = manifest.to_json().encode()
    try:
        if FileSystems.get_scheme(path) in (None, "gs"):
            storage.write_new(path, data)
        elif FileSystems.exists(path):  # there is no better way on the other file systems that Beam reaches
            raise FileExistsError(path)
        else:
            _write_file(output, name, data)
    except FileExistsError as error:
        there = load_manifest(output, manifest.generation)
        remove_leftovers(output, there)
        if there != manifest:  # else it is ours, by an attempt before this one
            raise _outrun(path) from error
        return
    remove_leftovers(output, manifest)


def _outrun(manifest: str) -> ManifestError:
    return ManifestError(
        f"Another run wrote {manifest} while this one was at work, which therefore added nothing: run it again."
    )


def remove_leftovers(output: str, manifest: Manifest) -> None:
    """Remove files of a manifest's generations that it does not list: nobody will ever need them.

    Later generations' files may be another run's at work. A name that an encode job does not give is never touched.
    """
    listed = {entry.name for generation in manifest.generations for entry in generation.files}
    patterns = [
        FileSystems.join(output, f"{dot}{kind}-*") for dot in ("", ".") for kind in ("shard", "dead-letters", "inputs")
    ]
    try:
        paths = [metadata.path for result in FileSystems.match(patterns) for metadata in result.metadata_list]
        names = {path: FileSystems.split(path)[1] for path in paths}
        leftovers = [
            path
            for path, name in names.items()
            if name not in listed and (generation_of(name) or manifest.generation + 1) <= manifest.generation
        ]
        if leftovers:
            _log.warning("Removing %d files that unfinished runs left in %s.", len(leftovers), output)
            FileSystems.delete(leftovers)
    except (BeamIOError, OSError) as error:
        _log.warning("What unfinished runs left in %s was not all removed: %s", output, error)
