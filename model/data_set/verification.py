"""Check a data set against its manifest: every file, every row group, and a sample of the codes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidpress.model.coding import range_coder
from vidpress.model.cpus import num_cpus
from vidpress.model.data_set.compaction import is_continued
from vidpress.model.data_set.id_hash import hash_of
from vidpress.model.data_set.input_decoding import parse_decoder
from vidpress.model.data_set.input_lists import InputFile
from vidpress.model.data_set.listed_shards import listed_tables
from vidpress.model.data_set.manifest import (
    Counts,
    FileEntry,
    Generation,
    Manifest,
    ManifestError,
    manifest_numbers,
    oldest_kept,
)
from vidpress.model.errors import fix_of
from vidpress.model.files import storage
from vidpress.model.files.file_names import is_part_name, is_temporary_name, join, shard_index
from vidpress.model.files.uris import PathError
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.shards.shard_rows import decode_codes
from vidpress.model.shards.shared_tables import parse_tables
from vidpress.model.strict_json import JsonError, decode

_IDS_IN_MESSAGE = 3


@dataclasses.dataclass
class Report:
    """What a check found.

    Attributes:
      findings: Everything that is wrong, one line each; none if the data set is whole.
      manifest: The newest manifest, with which everything was compared.
      num_sampled: How many codes were decoded.
      unlisted: Names of files that an encode job wrote but no manifest lists: those of a run that died or still runs.
    """

    findings: list[str]
    manifest: Manifest
    num_sampled: int
    unlisted: list[str]


class _Letter(msgspec.Struct):
    """A line that `vidpress.model.data_set.rows.DeadLetter.to_json` returns."""

    file: str
    offset: int
    reason: str
    id: str | None


@dataclasses.dataclass
class _Checked:
    """What was found in a file, and what it holds; `hashes` is uint64[rows], of a shard's ids."""

    findings: list[str] = dataclasses.field(default_factory=list)
    hashes: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    code_bytes: int = 0
    records: int = 0
    record_bytes: int = 0
    lost_bytes: int = 0
    num_sampled: int = 0


def verify(data_set: str | os.PathLike[str], *, sample: int = 1024) -> Report:
    """Check a data set.

    Sizes, checksums and rows of all files must be those in the manifest, and the values of every row group must fit
    their checksum. Ids must be sorted, in the shard of their hash, and occur once in the data set. A sample of the
    codes is decoded and encoded again, which must give the same codes. Counts must add up. Earlier generations must be
    unchanged, but for shards that were compacted, which are still there as long as a manifest lists them.

    Args:
      data_set: Its folder, a local path or URI.
      sample: At least how many codes of each shard to decode, spread evenly.

    Raises:
      ManifestError: If there is no usable manifest to check against.
    """
    there = {file.name for file in storage.list_files(data_set)}
    manifest = Manifest.load(data_set)
    findings, listed = _check_history(data_set, manifest)
    for name in sorted(listed - there - {entry.name for entry in manifest.files}):
        findings.append(f"{join(data_set, name)} is missing, which earlier generations have: fetch it again.")
    num_sampled = 0
    hashes: dict[str, np.ndarray] = {}
    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        for number, (generation, held) in enumerate(zip(manifest.generations, manifest.held, strict=True), start=1):
            check = functools.partial(_check_file, data_set, manifest, number, sample)
            checked = list(pool.map(check, generation.files))
            found = [finding for result in checked for finding in result.findings]
            # If a file is damaged, there is a finding already, and sums would only repeat it.
            findings += found or [
                f"generation {number}: {finding}" for finding in _check_counts(generation, held, checked)
            ]
            num_sampled += sum(result.num_sampled for result in checked)
            uris = [join(data_set, entry.name) for entry in generation.files]
            hashes |= {uri: result.hashes for uri, result in zip(uris, checked, strict=True) if len(result.hashes)}
    for entry, parse in ((manifest.decoder, parse_decoder), (manifest.tables, _parse_tables)):
        findings += _check_common(data_set, entry, functools.partial(parse, manifest=manifest))
    findings += _repeated_ids(hashes)
    unlisted = [name for name in there - listed if is_part_name(name) or is_temporary_name(name)]
    return Report(findings, manifest, num_sampled, sorted(unlisted))


def _check_history(data_set: str | os.PathLike[str], newest: Manifest) -> tuple[list[str], set[str]]:
    """Return what is wrong with earlier manifests, and the names of all files that they and the newest one list."""
    findings = []
    names = {entry.name for entry in newest.files}
    for number in range(oldest_kept(newest, manifest_numbers(data_set)), newest.generation):
        try:
            earlier = Manifest.load(data_set, number)
        except ManifestError as error:
            findings.append(str(error))
            continue
        names |= {entry.name for entry in earlier.files}
        if not is_continued(earlier, newest):
            findings.append(
                f"generation {number} is not what it was when generation {newest.generation} was added to it."
            )
    return findings, names


def _check_counts(generation: Generation, held: Counts, files: Iterable[_Checked]) -> Iterator[str]:
    counts = generation.counts
    if counts.unaccounted:
        yield f"{counts.unaccounted} records are unaccounted for: {counts}."
    found = {
        "videos": (held.videos, sum(entry.rows for entry in generation.shards)),
        "dead_letters": (counts.dead_letters, sum(entry.rows for entry in generation.dead_letters)),
        "code_bytes": (held.code_bytes, sum(result.code_bytes for result in files)),
    }
    if generation.inputs is not None:
        found["records"] = counts.records, sum(result.records for result in files)
        found["input_bytes"] = counts.input_bytes, sum(result.record_bytes for result in files)
        found["lost_bytes"] = counts.lost_bytes, sum(result.lost_bytes for result in files)
    for name, (counted, number) in found.items():
        if number != counted:
            yield f"the manifest counts {counted:,} {name}, its files hold {number:,}."


def _check_file(
    data_set: str | os.PathLike[str], manifest: Manifest, number: int, sample: int, entry: FileEntry
) -> _Checked:
    generation = manifest.generations[number - 1]
    uri = join(data_set, entry.name)
    result = _Checked()
    data = _read_file(result, uri, entry)
    if data is None:
        return result
    if entry in generation.shards:
        _check_shard(result, data, data_set, manifest, generation, entry, sample)
    else:
        _check_lines(result, data, uri, generation, entry)
    return result


def _read_file(result: _Checked, uri: str, entry: FileEntry) -> bytes | None:
    """Return a file's content, and note if it is not what the manifest says; None if it cannot be read."""
    try:
        data = storage.read_bytes(uri, links=False)
    except FileNotFoundError:
        result.findings.append(f"{uri} is missing: fetch or encode it again.")
        return None
    except PathError as error:
        result.findings.append(f"{uri} cannot be read: {error}")
        return None
    except OSError as error:
        fix = fix_of(error)
        result.findings.append(f"{uri} cannot be read: {error if fix is None else f'{fix}.'}")
        return None
    if len(data) != entry.bytes:
        result.findings.append(f"{uri} has {len(data):,} bytes, its manifest says {entry.bytes:,}.")
    elif hashlib.sha256(data).hexdigest() != entry.sha256:
        result.findings.append(f"{uri} is not the file that its manifest lists: its SHA-256 differs.")
    return data


def _check_common(
    data_set: str | os.PathLike[str], entry: FileEntry | None, parse: Callable[[bytes, str], object]
) -> list[str]:
    """Check a file that all generations have in common: against its entry, then by parsing its content."""
    if entry is None:
        return []
    uri = join(data_set, entry.name)
    result = _Checked()
    data = _read_file(result, uri, entry)
    if data is not None and not result.findings:
        try:
            parse(data, uri)
        except ValueError as error:
            result.findings.append(str(error))
    return result.findings


def _parse_tables(data: bytes, uri: str, manifest: Manifest) -> None:
    num_dims = parse_tables(data, uri).num_dims
    if num_dims != manifest.num_dims:
        raise ValueError(f"{uri} has {num_dims} dimensions, its manifest says {manifest.num_dims}.")


def _check_lines(result: _Checked, data: bytes, uri: str, generation: Generation, entry: FileEntry) -> None:
    lines = data.splitlines()
    if len(lines) != entry.rows:
        result.findings.append(f"{uri} has {len(lines):,} lines, its manifest says {entry.rows:,}.")
    for number, line in enumerate(lines, start=1):
        try:
            if entry == generation.inputs:
                file = InputFile.from_json(line)
                result.records += file.records
                result.record_bytes += file.record_bytes
                result.lost_bytes += file.lost_bytes
            else:
                decode(line, _Letter)
        except JsonError as error:
            result.findings.append(f"{uri}, line {number}, is damaged: {error}.")


def _check_shard(
    result: _Checked,
    data: bytes,
    data_set: str | os.PathLike[str],
    manifest: Manifest,
    generation: Generation,
    entry: FileEntry,
    sample: int,
) -> None:
    uri = join(data_set, entry.name)
    try:
        shard = Shard(pa.BufferReader(data), uri, os.fspath(data_set), manifest.model_id)
        shard.check_columns(manifest.columns)
    except (FileNotFoundError, ShardError) as error:
        result.findings.append(str(error))
        return
    if shard.header.tables_file not in (None, listed_tables(manifest)):
        result.findings.append(f"{uri} shares the tables in {shard.header.tables_file.name}, which no manifest lists.")
    if entry.footer_crc32 not in (None, shard.footer_crc32):
        result.findings.append(f"{uri} is not the file that its manifest lists: its footer differs.")
    sizes = shard.row_group_sizes
    if tuple(sizes) != entry.row_groups or shard.num_rows != entry.rows:
        result.findings.append(
            f"{uri} has {shard.num_rows:,} rows in row groups of {sizes}, its manifest says {entry.rows:,} in "
            f"{list(entry.row_groups)}."
        )
    if shard.header.tables.num_dims != manifest.num_dims:
        result.findings.append(
            f"{uri} has {shard.header.tables.num_dims} dimensions, its manifest says {manifest.num_dims}."
        )
    hashes = []
    last_id = None
    for row_group, size in enumerate(sizes):
        try:
            rows = shard.read(row_group)
        except ShardError as error:
            result.findings.append(str(error))
            continue
        ids = rows["id"].to_pylist()
        if any(after <= before for before, after in itertools.pairwise(ids if last_id is None else [last_id, *ids])):
            result.findings.append(f"{uri}, row group {row_group}: its ids are not sorted, or one occurs twice.")
        last_id = ids[-1]
        hashes.append(np.array([hash_of(video_id) for video_id in ids], np.uint64))
        if (hashes[-1] % np.uint64(generation.num_shards) != shard_index(entry.name)).any():
            result.findings.append(f"{uri}, row group {row_group}: its ids belong to other shards.")
        result.code_bytes += pc.sum(pc.binary_length(rows["code"])).as_py()
        num_sampled = min(size, -(-sample // len(sizes)))
        result.num_sampled += num_sampled
        sampled = rows.take(np.linspace(0, size - 1, num_sampled).astype(int))
        try:
            z_hat = decode_codes(sampled, shard.header.tables)
            codes = range_coder.compress(shard.header.tables, z_hat, sampled["bank"].to_numpy())
            wrong = sum(code != again for code, again in zip(sampled["code"].to_pylist(), codes, strict=True))
        except ValueError as error:
            result.findings.append(f"{uri}, row group {row_group}: {error}")
            continue
        if wrong:
            result.findings.append(
                f"{uri}, row group {row_group}: {wrong} of {num_sampled} sampled codes do not encode to themselves."
            )
    result.hashes = np.concatenate([result.hashes, *hashes])


def _repeated_ids(shards: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield a finding for every two shards with an id in common."""
    if len(shards) < 2:
        return
    uris = list(shards)
    owner = np.repeat(np.arange(len(uris)), [len(hashes) for hashes in shards.values()])
    hashes = np.concatenate(list(shards.values()))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    pairs = {tuple(sorted(pair)) for pair in zip(owner[order][same], owner[order][same + 1], strict=True)}
    for first, second in sorted(pairs):
        # Two ids may have the same hash.
        shared = sorted(_ids(uris[first]) & _ids(uris[second]))
        if first != second and shared:
            shown = ", ".join(map(repr, shared[:_IDS_IN_MESSAGE]))
            yield f"{len(shared):,} ids are in {uris[first]} and in {uris[second]}: {shown} ..."


def _ids(uri: str) -> set[bytes]:
    """Return the ids of a shard, but for row groups that cannot be read: of these there is a finding already."""
    ids: set[bytes] = set()
    shard = Shard.open(uri)
    for row_group in range(len(shard.row_group_sizes)):
        with contextlib.suppress(ShardError):
            ids.update(shard.read_ids(row_group).to_pylist())
    return ids
