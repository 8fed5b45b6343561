"""Write encoded videos as a data set: sorted shards, dead letters and, last, the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from vidpress.model.manifest import NAME as MANIFEST_NAME
from vidpress.model.manifest import Counts, FileEntry, Manifest, dead_letters_name, shard_name
from vidpress.model.rows import SCHEMA, DeadLetter, merge_rows, shard_of, split_by_shard
from vidpress.model.shard import ShardHeader, write_shard
from vidpress.transforms import metrics
from vidpress.transforms.read_videos import ReadCounts

# A bundle's rows are sent on at the latest when there are this many; one row takes some 200 bytes.
_MAX_BUFFERED_ROWS = 50_000


class TooManyDeadLettersError(RuntimeError):
    """More records were bad than the caller allows."""


@dataclasses.dataclass(frozen=True)
class _WrittenShard:
    entry: FileEntry
    duplicates: int
    code_bytes: int


@dataclasses.dataclass
class WriteShards(beam.PTransform):
    """Write Arrow batches of rows as a data set and give its `Manifest`.

    A GroupByKey brings a shard's rows together, because a shard is sorted and its ids are unique. Files appear under
    their names only when complete, and attempts that run twice write the same bytes.

    Attributes:
      output: The data set's folder.
      header: What every shard's metadata says.
      num_shards: Over how many shards the ids are dealt.
      dead_letters: Records that were set aside on the way here.
      counts: What was read.
      max_bad_fraction: The share of dead letters above which the job fails.
    """

    output: str
    _: dataclasses.KW_ONLY
    header: ShardHeader
    dead_letters: beam.PCollection[DeadLetter]
    counts: beam.PCollection[ReadCounts]
    num_shards: int = 1
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_shards < 1:
            raise ValueError(f"num_shards={self.num_shards} must be at least 1.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in [0, 1].")

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Manifest]:
        """Deal, sort and write the rows, then the dead letters, then the manifest."""
        shards = (
            rows
            | "Deal to shards" >> beam.ParDo(_DealFn(self.num_shards))
            | "Gather shards" >> beam.GroupByKey()
            | "Write shards"
            >> beam.ParDo(_WriteShardFn(self.output, self.header, self.num_shards)).with_outputs(
                "dead_letters", main="shards"
            )
        )
        letters = (
            (self.dead_letters, shards.dead_letters)
            | "All dead letters" >> beam.Flatten()
            | "Deal dead letters" >> beam.Map(_with_shard, self.num_shards)
            | "Gather dead letters" >> beam.GroupByKey()
            | "Write dead letters" >> beam.Map(_write_dead_letters, self.output, self.num_shards)
        )
        return (
            rows.pipeline
            | "Once" >> beam.Create([None])
            | "Write manifest"
            >> beam.Map(
                _write_manifest,
                shards=beam.pvalue.AsList(shards.shards),
                letters=beam.pvalue.AsList(letters),
                counts=beam.pvalue.AsIter(self.counts),
                output=self.output,
                header=self.header,
                num_shards=self.num_shards,
                max_bad_fraction=self.max_bad_fraction,
            )
        )


class _DealFn(beam.DoFn):
    """Groups a bundle's rows by shard before the shuffle: one element a shard, not one a row."""

    def __init__(self, num_shards: int):
        self._num_shards = num_shards
        self._batches: list[pa.RecordBatch] = []
        self._num_rows = 0

    def start_bundle(self) -> None:
        self._batches = []
        self._num_rows = 0

    def process(self, element: pa.RecordBatch) -> Iterable[tuple[int, bytes]]:
        self._batches.append(element)
        self._num_rows += element.num_rows
        if self._num_rows >= _MAX_BUFFERED_ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterable[Any]:
        for element in self._flush():
            yield beam.transforms.window.GlobalWindows.windowed_value(element)

    def _flush(self) -> Iterator[tuple[int, bytes]]:
        if self._batches:
            rows = pa.Table.from_batches(self._batches, SCHEMA).unify_dictionaries()
            for index, part in split_by_shard(rows, self._num_shards).items():
                yield index, _to_ipc(part)
        self.start_bundle()


class _WriteShardFn(beam.DoFn):
    def __init__(self, output: str, header: ShardHeader, num_shards: int):
        self._output = output
        self._header = header
        self._num_shards = num_shards

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[Any]:
        index, parts = element
        rows, duplicates, letters = merge_rows(pa.concat_tables([_from_ipc(part) for part in parts]))
        buffer = io.BytesIO()
        row_groups = write_shard(buffer, rows, self._header)
        data = buffer.getvalue()
        name = shard_name(index, self._num_shards)
        _write_file(self._output, name, data)
        metrics.SHARDS_WRITTEN.inc()
        metrics.DUPLICATES.inc(duplicates)
        metrics.DEAD_LETTERS.inc(len(letters))
        entry = FileEntry(name, rows.num_rows, len(data), hashlib.sha256(data).hexdigest(), row_groups)
        code_bytes = pa.compute.sum(pa.compute.binary_length(rows["code"])).as_py()
        yield _WrittenShard(entry, duplicates, code_bytes)
        for letter in letters:
            yield beam.pvalue.TaggedOutput("dead_letters", letter)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _from_ipc(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def _with_shard(letter: DeadLetter, num_shards: int) -> tuple[int, DeadLetter]:
    return shard_of(f"{letter.file}@{letter.offset}".encode(), num_shards), letter


def _write_dead_letters(element: tuple[int, Iterable[DeadLetter]], output: str, num_shards: int) -> FileEntry:
    index, letters = element
    lines = [letter.to_json() + "\n" for letter in sorted(letters, key=lambda letter: (letter.file, letter.offset))]
    data = "".join(lines).encode()
    name = dead_letters_name(index, num_shards)
    _write_file(output, name, data)
    return FileEntry(name, len(lines), len(data), hashlib.sha256(data).hexdigest())


def _write_manifest(
    _: None,
    *,
    shards: Sequence[_WrittenShard],
    letters: Sequence[FileEntry],
    counts: Iterable[ReadCounts],
    output: str,
    header: ShardHeader,
    num_shards: int,
    max_bad_fraction: float,
) -> Manifest:
    records, input_bytes = 0, 0
    for count in counts:
        records += count.records
        input_bytes += count.input_bytes
    totals = Counts(
        records=records,
        videos=sum(shard.entry.rows for shard in shards),
        duplicates=sum(shard.duplicates for shard in shards),
        dead_letters=sum(entry.rows for entry in letters),
        input_bytes=input_bytes,
        code_bytes=sum(shard.code_bytes for shard in shards),
    )
    if totals.unaccounted:
        raise RuntimeError(f"{totals.unaccounted} records are unaccounted for: {totals}. No manifest was written.")
    if totals.dead_letters > max_bad_fraction * totals.records:
        raise TooManyDeadLettersError(
            f"{totals.dead_letters} of {totals.records} records are bad, more than --max_bad_fraction="
            f"{max_bad_fraction:g} allows. No manifest was written. The reasons stand in "
            f"{FileSystems.join(output, 'dead-letters-*.jsonl')}"
        )
    manifest = Manifest(
        model_id=header.model_id,
        num_dims=header.tables.num_dims,
        num_shards=num_shards,
        shards=tuple(sorted(shard.entry for shard in shards)),
        dead_letters=tuple(sorted(letters)),
        counts=totals,
    )
    _write_file(output, MANIFEST_NAME, manifest.to_json().encode())
    return manifest


def _write_file(folder: str, name: str, data: bytes) -> None:
    """Write a file that appears under its name only when complete: Beam may run an attempt twice."""
    path = FileSystems.join(folder, name)
    temporary = FileSystems.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    with FileSystems.create(temporary, mime_type="application/octet-stream") as file:
        file.write(data)
    FileSystems.rename([temporary], [path])
