"""Describe a model, a shard or a data set."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vidpress.model.data_set.input_decoding import load_decoder
from vidpress.model.data_set.listed_shards import open_shard
from vidpress.model.data_set.manifest import Manifest
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.model.files.uris import PathError
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.kept_columns import listed
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError, ShardHeader
from vidpress.model.shards.shard_rows import decode_codes, labels_list
from vidpress.model.tables.bits import bits_by_dim
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.pipeline.launching.options import Parser, absolute
from vidpress.pipeline.launching.reporting import count, explained_errors, printable

# Bits by dimension are averaged over at most this many videos.
_SAMPLE = 4096

# At most this many characters of a value of a model's metadata are shown.
_MAX_VALUE = 200


def describe_model(uri: str) -> Iterator[str]:
    """Yield lines about a frozen model."""
    model = FrozenModel.load(uri)
    sizes = [model.spec.input_size, *(kernel.shape[1] for kernel, _ in model.hidden)]
    yield f"vidpress model {model.model_id}"
    yield f"  features         {model.spec}"
    yield f"  network          {' -> '.join(map(str, sizes))}"
    yield f"  task head        {'none' if model.head is None else f'{model.head[0].shape[1]} classes'}"
    yield f"  tables           {_describe_tables(model.tables, 'in the model')}"
    yield f"  input decoder    {'none' if model.decoder is None else f'{model.decoder.kernel.nbytes:,} bytes'}"
    for key, value in sorted(model.metadata.items()):
        yield f"  {key:<16} {_shortened(value if isinstance(value, str) else json.dumps(value))}"


def describe_shard(uri: str) -> Iterator[str]:
    """Yield lines about a shard, after reading and decoding all of it.

    Raises:
      ShardError: If it is damaged.
    """
    shard = Shard.open(uri)
    num_bytes = storage.size(uri)
    rows = max(shard.num_rows, 1)
    yield f"vidpress shard {uri}"
    yield f"  videos           {shard.num_rows:,} in row groups of {_shortened(str(shard.row_group_sizes))}"
    yield f"  file             {num_bytes:,} bytes, {num_bytes / rows:,.1f} a video"
    for name, column_bytes in shard.column_bytes.items():
        yield f"    {name:<14} {column_bytes:,} bytes, {column_bytes / rows:,.2f} a video"
    yield f"    {'metadata':<14} {num_bytes - sum(shard.column_bytes.values()):,} bytes"
    yield f"  model            {shard.header.model_id}"
    yield f"  features         {shard.header.spec}"
    yield f"  kept columns     {listed(shard.header.columns)}"
    yield f"  tables           {_describe_header(shard.header)}"
    yield from _describe_rows([shard], shard.header.tables.num_dims)
    yield "  health           every page and row group fits its checksum, every code decodes"


def describe_data_set(uri: str) -> Iterator[str]:
    """Yield lines about a data set, after reading and decoding all of it.

    Raises:
      ManifestError: If it is not a data set.
      ShardError: If a shard is missing or damaged, or does not fit the manifest.
    """
    manifest = Manifest.load(uri)
    counts = manifest.counts
    stored = sum(entry.bytes for entry in manifest.shards)
    videos = max(counts.videos, 1)
    yield f"vidpress data set {uri}"
    yield f"  videos           {counts.videos:,} in {count(len(manifest.shards), 'shard')}"
    yield f"  generations      {manifest.generation:,}"
    yield from _describe_generations(manifest)
    yield f"  records read     {counts.records:,}"
    yield f"  duplicates       {counts.duplicates:,}"
    yield f"  dead letters     {counts.dead_letters:,} in {count(len(manifest.dead_letters), 'file')}"
    yield f"  input            {counts.input_bytes:,} bytes, {counts.input_bytes / videos:,.1f} a video"
    yield f"  shards           {stored:,} bytes, {stored / videos:,.1f} a video"
    yield f"  codes            {counts.code_bytes:,} bytes, {counts.code_bytes / videos:,.1f} a video"
    yield f"  kept columns     {listed(manifest.columns)}"
    yield f"  model            {manifest.model_id}"
    if manifest.decoder is None:
        yield "  input decoder    none"
    else:
        yield f"  input decoder    {manifest.decoder.bytes:,} bytes, restores {load_decoder(uri, manifest).spec}"
    for entry in manifest.shards:
        open_shard(uri, entry, manifest.model_id, manifest.columns)  # which says what is missing, or another's
        path = join(uri, entry.name)
        if storage.sha256(path, links=False) != entry.sha256:
            raise ShardError(f"{path} is not the file that its manifest lists: fetch or encode it again.")

    def shards() -> Iterator[Shard]:  # one after the other: a data set may have more than files may be open
        for entry in manifest.shards:
            yield open_shard(uri, entry, manifest.model_id, manifest.columns)

    if first := next(shards(), None):
        yield f"  features         {first.header.spec}"
        yield f"  tables           {_describe_header(first.header)}"
    yield from _describe_rows(shards(), manifest.num_dims)
    yield "  health           every shard fits the manifest, every row group its checksum, every code decodes"


def _describe_generations(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each generation, or one for neighbours whose videos a compaction wrote to its shards."""
    numbered = zip(itertools.count(1), manifest.generations, manifest.held, strict=False)
    for holder, group in itertools.groupby(numbered, key=lambda each: each[1].replaced_by):
        neighbours = list(group)
        if holder is not None:
            numbers = " to ".join(sorted({f"{number}" for number, *_ in (neighbours[0], neighbours[-1])}, key=int))
            videos = count(sum(generation.counts.videos for _, generation, _ in neighbours), "video")
            yield f"    {numbers:<14} {videos} in the shards of generation {holder}"
            continue
        for number, generation, held in neighbours:
            videos = count(held.videos, "video")
            if compacted := held.videos - generation.counts.videos:
                videos += f", {compacted:,} of them of earlier generations,"
            shards = count(len(generation.shards), "shard")
            yield f"    {number:<14} {videos} in {shards} (of {generation.num_shards:,})"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}... ({len(text):,} characters)"


def _describe_header(header: ShardHeader) -> str:
    return _describe_tables(
        header.tables, "in the shard" if header.tables_file is None else f"in {header.tables_file.name}"
    )


def _describe_tables(tables: RangeCodingTables, where: str) -> str:
    return (
        f"{tables.num_dims} dimensions, {len(tables.cdf) - 2 * tables.num_dims} symbols besides the escapes, precision "
        f"{tables.precision}, {np.count_nonzero(tables.has_bank)} of {tables.num_banks} banks, "
        f"{len(tables.to_bytes()):,} bytes {where}"
    )


def _describe_rows(shards: Iterable[Shard], num_dims: int) -> Iterator[str]:
    """Decode every row; yield lines about labels, symbols and bits."""
    num_rows = num_labels = num_symbols = num_nonzero = num_sampled = 0
    bits = np.zeros(num_dims)
    for shard in shards:
        for row_group in range(len(shard.row_group_sizes)):
            batch = shard.read(row_group)
            z_hat = decode_codes(batch, shard.header.tables)
            num_rows += len(z_hat)
            num_labels += sum(map(len, labels_list(batch["labels"])))
            num_symbols += z_hat.size
            num_nonzero += int(np.count_nonzero(z_hat))
            if num_sampled < _SAMPLE:
                sampled = slice(_SAMPLE - num_sampled)
                bank = batch["bank"].to_numpy()[sampled]
                bits += bits_by_dim(shard.header.tables, z_hat[sampled], bank) * len(bank)
                num_sampled += len(bank)
    if not num_rows:
        return
    bits = np.sort(bits / num_sampled)[::-1]
    shares = np.cumsum(bits) / bits.sum()
    yield f"  labels           {num_labels / num_rows:.2f} a video"
    yield f"  z_hat            {num_nonzero / num_symbols:.2%} of the numbers are not 0"
    yield f"  bits a video     {bits.sum():,.1f} by the tables"
    yield (
        f"  bits by dim.     mean {bits.mean():.3f}, median {np.median(bits):.3f}, largest {bits[0]:.2f}; half of all "
        f"bits are in {np.searchsorted(shares, 0.5) + 1} dimensions, 99 % in {np.searchsorted(shares, 0.99) + 1}, "
        f"{np.count_nonzero(bits < 1e-3)} dimensions take less than 0.001"
    )


def describe(uri: str) -> Iterator[str]:
    """Yield lines about `uri`: a model, a shard or a data set.

    Raises:
      FileNotFoundError: If it does not exist.
      VidpressError: If it is none of these, or is damaged; the message says which.
    """
    # A data set's folder may have any name, even one that ends like a file's.
    if uri.endswith((".safetensors", ".parquet")) and not storage.is_folder(uri):
        return describe_model(uri) if uri.endswith(".safetensors") else describe_shard(uri)
    if os.path.isfile(uri):
        fix = "give its folder" if os.path.basename(uri).startswith("manifest") else "give one of these"
        what = "neither a model (.safetensors), nor a shard (.parquet), nor a data set's folder"
        raise PathError(f"{uri} is {what}: {fix}.")
    if not uri.startswith("gs://") and not os.path.exists(uri):
        raise FileNotFoundError(f"{uri} does not exist: check the path.")
    return describe_data_set(uri)


def main(argv: Sequence[str] | None = None) -> None:
    """Describe what is at a path."""
    parser = Parser(
        prog="vidpress inspect",
        description="Describe a model (.safetensors), a shard (.parquet) or a data set (its folder): counts, bytes a "
        "video, bits by dimension, model, health. Everything is read and checked; exits with 1 if it is damaged.",
        examples=["vidpress inspect compact", "vidpress inspect model.safetensors"],
    )
    parser.add_argument("path", type=absolute, help="a local path or gs:// URI")
    args = parser.parse_args(argv)
    with explained_errors("vidpress inspect"):
        for line in describe(args.path):
            print(printable(line))


if __name__ == "__main__":
    main()
