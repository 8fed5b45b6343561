"""How the files of a data set are named: by what they are, their generation, and their content."""

from __future__ import annotations

import os
import re

from vidpress.model.files.storage import PROBE

MANIFEST = "manifest.json"

# `shard-00001-00000-of-00004-0f3a....parquet`; version 1 had neither the generation nor the checksum.
_PART_NAME = re.compile(
    r"(?P<kind>shard|dead-letters|inputs|decoder|tables)(?:-(?P<generation>[0-9]{5,9}))?"
    r"(?:-(?P<part>[0-9]{5,9})-of-(?P<parts>[0-9]{5,9}))?(?:-(?P<sha256>[0-9a-f]{12}))?\.(?P<suffix>parquet|jsonl|safetensors|bin)"
)
_SUFFIXES = {
    "shard": "parquet",
    "dead-letters": "jsonl",
    "inputs": "jsonl",
    "decoder": "safetensors",
    "tables": "bin",
}
_ONE_IN_A_GENERATION = ("inputs", "decoder", "tables")
_MANIFEST_NAME = re.compile(r"manifest-([0-9]{5,9})\.json")
_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URI of a file in a folder."""
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def manifest_name(generation: int) -> str:
    """Return the file name of a generation's manifest."""
    return MANIFEST if generation == 1 else f"manifest-{generation:05d}.json"


def file_name(kind: str, generation: int, part: tuple[int, int] | None, sha256: str) -> str:
    """Return the file name of a part of a generation.

    A name goes with one content only. So runs that write at once never harm each other's files, and one that is run
    again finds its own.

    Args:
      kind: 'shard', 'dead-letters', 'inputs', 'decoder' or 'tables'.
      generation: Its number.
      part: Which of how many, if there can be several.
      sha256: The content's checksum, hexadecimal.
    """
    of = "" if part is None else f"-{part[0]:05d}-of-{part[1]:05d}"
    return f"{kind}-{generation:05d}{of}-{sha256[:12]}.{_SUFFIXES[kind]}"


def generation_of_manifest(name: str) -> int | None:
    """Return the generation whose manifest has a name, or None if it is not a manifest's."""
    found = _MANIFEST_NAME.fullmatch(name)
    number = 1 if found is None else int(found[1])
    return number if name == manifest_name(number) else None


def parse_part_name(name: str) -> re.Match[str] | None:
    """Return the parts of the name of a file that belongs to a generation; None if it is none."""
    found = _PART_NAME.fullmatch(name)
    if (
        found is None
        or found["suffix"] != _SUFFIXES[found["kind"]]
        or (found["part"] is None) != (found["kind"] in _ONE_IN_A_GENERATION)
    ):
        return None
    return found


def is_part_name(name: str) -> bool:
    """Return whether an encode job of version 2 or later gives such names: to shards, lists, decoders and tables."""
    found = parse_part_name(name)
    return found is not None and found["generation"] is not None and found["sha256"] is not None


def is_temporary_name(name: str) -> bool:
    """Return whether a file of that name can only be one that an encode job began to write, or tried writing with."""
    found = _TEMPORARY_NAME.fullmatch(name)
    written = name if found is None else found[1]
    if written.startswith(PROBE):
        return re.fullmatch(re.escape(PROBE) + "[0-9a-f]{32}", written) is not None
    return found is not None and (is_part_name(written) or generation_of_manifest(written) is not None)


def generation_of(name: str) -> int | None:
    """Return the generation that a file's name says, temporary or not, or None if it says none."""
    found = _TEMPORARY_NAME.fullmatch(name)
    written = name if found is None else found[1]
    if (manifest := generation_of_manifest(written)) is not None:
        return manifest
    part = parse_part_name(written)
    return None if part is None or part["generation"] is None else int(part["generation"])


def shard_index(name: str) -> int:
    """Return which of its generation's shards a file is."""
    found = parse_part_name(name)
    if found is None or found["part"] is None:
        raise ValueError(f"{name} is not the name of a shard.")
    return int(found["part"])
