"""Write encoded videos as a data set: sorted shards, dead letters and, last, the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from vidpress.model.data_set.id_hash import shard_of
from vidpress.model.data_set.input_lists import InputFile
from vidpress.model.data_set.manifest import Counts, FileEntry, Generation, Manifest, ManifestError
from vidpress.model.data_set.rows import DeadLetter, merge_rows, split_by_shard
from vidpress.model.errors import VidpressError
from vidpress.model.files import storage
from vidpress.model.files.file_names import file_name, join
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.frozen.input_decoder import DecoderFile
from vidpress.model.kept_columns import listed
from vidpress.model.shards.shard import footer_crc32
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.shards.shared_tables import TablesFile
from vidpress.transforms import metrics
from vidpress.transforms.generations.generation_files import create_manifest, write_part
from vidpress.transforms.generations.known_videos import FindKnownVideos

# A bundle's rows are sent on at the latest when there are this many; one row takes some 200 bytes, and may keep more.
_MAX_BUFFERED_ROWS = 50_000
_MAX_BUFFERED_BYTES = 2**28


class TooManyDeadLettersError(VidpressError, RuntimeError):
    """More records were bad than the caller allows."""


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """What became of the rows of a shard.

    Attributes:
      entry: The shard's entry in the manifest; None if there were no rows to write.
      duplicates: Rows that were equal to one before them.
      code_bytes: Bytes of the written rows' codes.
    """

    entry: FileEntry | None
    duplicates: int
    code_bytes: int


@dataclasses.dataclass
class SortIntoShards(beam.PTransform):
    """Write Arrow batches of rows as the shards of a generation. Gives `WrittenShard`s and `DeadLetter`s.

    A GroupByKey brings the rows of a shard together, because a shard is sorted and its ids are unique.

    Attributes:
      output: The data set's folder.
      header: What every shard's metadata say: a `ShardHeader`, or a side input that is one.
      generation: The generation's number.
      num_shards: Over how many shards the ids are divided.
    """

    output: str
    _: dataclasses.KW_ONLY
    header: ShardHeader | beam.pvalue.AsSingleton
    generation: int
    num_shards: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, rows: beam.PCollection[pa.RecordBatch]
    ) -> tuple[beam.PCollection[WrittenShard], beam.PCollection[DeadLetter]]:
        """Divide the rows among the shards, and sort and write each."""
        write = beam.ParDo(_WriteShardFn(self.output, self.generation, self.num_shards), self.header)
        outputs = (
            rows
            | "Deal to shards" >> beam.ParDo(_DealFn(self.num_shards))
            | "Gather shards" >> beam.GroupByKey()
            | "Write shards" >> write.with_outputs("dead_letters", main="shards")
        )
        return outputs.shards, outputs.dead_letters


@dataclasses.dataclass
class WriteShards(beam.PTransform):
    """Write Arrow batches of rows as a generation of a data set. Gives the data set's `Manifest`, if there is one then.

    A generation is what one job adds. Files get their names only when they are complete, and work that is done twice
    writes the same bytes. Existing files are not changed. If two jobs write the same generation, the second one fails.
    If there is no input, nothing is added.

    Attributes:
      output: The data set's folder.
      header: What every shard's metadata say.
      num_shards: Over how many shards the ids are divided.
      dead_letters: Records that earlier steps set aside.
      inputs: The files that were read.
      model: Path or URI of the frozen model. Its decoder of the input goes into a new data set; without it, the data
        set cannot be decoded to what was encoded.
      tables: The header's tables as `RangeCodingTables.to_bytes`, which go into the file that `header.tables_file`
        names, for small shards to share; None if the header names none, or one that the data set has.
      previous: The newest generation of the data set, which the new one follows; 0 if there is none yet.
      max_bad_fraction: The job fails if a larger share of the records are dead letters, or if a larger share of the
        input's bytes could not be read.
      num_files: How many files there are to read, if that is known. The job fails if it read fewer.
    """

    output: str
    _: dataclasses.KW_ONLY
    header: ShardHeader
    dead_letters: beam.PCollection[DeadLetter]
    inputs: beam.PCollection[InputFile]
    model: str | None = None
    tables: bytes | None = None
    previous: int = 0
    num_shards: int = 1
    max_bad_fraction: float = 0.01
    num_files: int | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_shards < 1:
            raise ValueError(f"num_shards={self.num_shards} must be at least 1.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in [0, 1].")
        if self.tables is not None and TablesFile.of(self.tables) != self.header.tables_file:
            raise ValueError(f"These tables are not those that the header names: {self.header.tables_file}.")

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Manifest]:
        """Divide, sort and write the rows, then the dead letters, then the manifest."""
        generation = self.previous + 1
        if self.previous:
            known = rows | "Find known videos" >> FindKnownVideos(self.output, generation=self.previous)
            rows = (rows, known) | "New and known" >> beam.Flatten()
        shards, repeated = rows | "Sort" >> SortIntoShards(
            self.output, header=self.header, generation=generation, num_shards=self.num_shards
        )
        letters = (
            (self.dead_letters, repeated)
            | "All dead letters" >> beam.Flatten()
            | "Deal dead letters" >> beam.Map(_with_shard, self.num_shards)
            | "Gather dead letters" >> beam.GroupByKey()
            | "Write dead letters" >> beam.Map(_write_dead_letters, self.output, generation, self.num_shards)
        )
        return (
            rows.pipeline
            | "Once" >> beam.Create([None])
            | "Write manifest"
            >> beam.FlatMap(
                _write_manifest,
                shards=beam.pvalue.AsList(shards),
                letters=beam.pvalue.AsList(letters),
                inputs=beam.pvalue.AsIter(self.inputs),
                output=self.output,
                generation=generation,
                header=self.header,
                model=self.model,
                tables=self.tables,
                num_shards=self.num_shards,
                max_bad_fraction=self.max_bad_fraction,
                num_files=self.num_files,
            )
        )


class _DealFn(beam.DoFn):
    """Groups a bundle's rows by shard before the shuffle: one element a shard, not one a row."""

    def __init__(self, num_shards: int):
        self._num_shards = num_shards
        self.start_bundle()

    def start_bundle(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._num_rows = 0
        self._num_bytes = 0

    def process(self, element: pa.RecordBatch) -> Iterable[tuple[int, bytes]]:
        self._batches.append(element)
        self._num_rows += element.num_rows
        self._num_bytes += element.nbytes
        if self._num_rows >= _MAX_BUFFERED_ROWS or self._num_bytes >= _MAX_BUFFERED_BYTES:
            yield from self._flush()

    def finish_bundle(self) -> Iterable[Any]:
        for element in self._flush():
            yield beam.transforms.window.GlobalWindows.windowed_value(element)

    def _flush(self) -> Iterator[tuple[int, bytes]]:
        if self._batches:
            rows = pa.Table.from_batches(self._batches, self._batches[0].schema.remove_metadata()).unify_dictionaries()
            for index, part in split_by_shard(rows, self._num_shards).items():
                yield index, _to_ipc(part)
        self.start_bundle()


class _WriteShardFn(beam.DoFn):
    def __init__(self, output: str, generation: int, num_shards: int):
        self._output = output
        self._generation = generation
        self._num_shards = num_shards

    def process(self, element: tuple[int, Iterable[bytes]], header: ShardHeader) -> Iterable[Any]:
        index, parts = element
        rows, duplicates, letters = merge_rows(pa.concat_tables([_from_ipc(part) for part in parts]))
        entry = None
        if rows.num_rows:
            buffer = io.BytesIO()
            row_groups = write_shard(buffer, rows, header)
            data = buffer.getvalue()
            part = (index, self._num_shards)
            entry = write_part(
                self._output,
                "shard",
                self._generation,
                part,
                rows.num_rows,
                data,
                row_groups,
                footer_crc32(data),
            )
            metrics.SHARDS_WRITTEN.inc()
        metrics.DUPLICATES.inc(duplicates)
        metrics.DEAD_LETTERS.inc(len(letters))
        code_bytes = pa.compute.sum(pa.compute.binary_length(rows["code"])).as_py() or 0
        yield WrittenShard(entry, duplicates, code_bytes)
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


def _write_dead_letters(
    element: tuple[int, Iterable[DeadLetter]], output: str, generation: int, num_shards: int
) -> FileEntry:
    index, letters = element
    lines = [letter.to_json() + "\n" for letter in sorted(letters, key=lambda letter: (letter.file, letter.offset))]
    data = "".join(lines).encode()
    return write_part(output, "dead-letters", generation, (index, num_shards), len(lines), data)


def _write_manifest(
    _: None,
    *,
    shards: Sequence[WrittenShard],
    letters: Sequence[FileEntry],
    inputs: Iterable[InputFile],
    output: str,
    generation: int,
    header: ShardHeader,
    model: str | None,
    tables: bytes | None,
    num_shards: int,
    max_bad_fraction: float,
    num_files: int | None,
) -> list[Manifest]:
    before = Manifest.load(output, generation - 1) if generation > 1 else None
    if before is not None and before.model_id != header.model_id:
        raise ManifestError(f"{output} was encoded by model {before.model_id}: {header.model_id} cannot add to it.")
    if before is not None and before.columns != header.columns:
        raise ManifestError(
            f"{output} keeps the columns {listed(before.columns)}: rows with {listed(header.columns)} cannot be added."
        )
    files = sorted(inputs)
    if num_files is not None and len(files) < num_files:
        raise ManifestError(
            f"Only {len(files)} of the {num_files} input files were read: either some are gone since the job began, or "
            "its runner lost them. Nothing was added: run it again, with a runner that vidpress is tested on."
        )
    if not (files or letters or any(shard.entry for shard in shards)):
        return [] if before is None else [before]
    totals = Counts(
        records=sum(file.records for file in files),
        videos=sum(shard.entry.rows for shard in shards if shard.entry is not None),
        duplicates=sum(shard.duplicates for shard in shards),
        dead_letters=sum(entry.rows for entry in letters),
        input_bytes=sum(file.record_bytes for file in files),
        code_bytes=sum(shard.code_bytes for shard in shards),
        lost_bytes=sum(file.lost_bytes for file in files),
    )
    if totals.unaccounted:
        raise RuntimeError(f"{totals.unaccounted} records are unaccounted for: {totals}. No manifest was written.")
    _check_bad_fraction(totals, sum(file.bytes for file in files), max_bad_fraction, output, generation)
    lines = "".join(file.to_json() + "\n" for file in files).encode()
    added = Generation(
        num_shards=num_shards,
        shards=tuple(sorted(shard.entry for shard in shards if shard.entry is not None)),
        dead_letters=tuple(sorted(letters)),
        inputs=write_part(output, "inputs", generation, None, len(files), lines),
        counts=totals,
    )
    tables_entry = None if before is None else before.tables
    if tables_entry is None and tables is not None:
        tables_entry = _write_common(output, "tables", tables)
    manifest = Manifest(
        model_id=header.model_id,
        num_dims=header.tables.num_dims,
        generations=(*(before.generations if before is not None else ()), added),
        decoder=_write_decoder(output, header, model) if before is None else before.decoder,
        columns=header.columns,
        tables=tables_entry,
    )
    create_manifest(output, manifest)
    return [manifest]


def _write_decoder(output: str, header: ShardHeader, model: str | None) -> FileEntry | None:
    decoder = None if model is None else FrozenModel.load(model, model_id=header.model_id).decoder
    if decoder is None:
        return None
    return _write_common(output, "decoder", DecoderFile(header.model_id, header.spec, decoder).to_bytes())


def _write_common(output: str, kind: str, data: bytes) -> FileEntry:
    """Write a file that all generations have in common."""
    sha256 = hashlib.sha256(data).hexdigest()
    name = file_name(kind, 1, None, sha256)
    with contextlib.suppress(FileExistsError):  # another run's, which may be in a manifest already: the same content
        storage.write_new(join(output, name), data)
    return FileEntry(name, 0, len(data), sha256)


def _check_bad_fraction(totals: Counts, file_bytes: int, max_bad_fraction: float, output: str, generation: int) -> None:
    """See that not too much was lost: of records, and of bytes, for nobody knows how many records stood in these."""
    bad = [
        f"{count} of {total} {what}"
        for count, total, what in (
            (totals.dead_letters, totals.records, "records are bad"),
            (totals.lost_bytes, file_bytes, "bytes of the input stand behind damage and could not be read"),
        )
        if count > max_bad_fraction * total
    ]
    if bad:
        raise TooManyDeadLettersError(
            f"{' and '.join(bad)}, more than --max_bad_fraction={max_bad_fraction:g} allows. No manifest was written. "
            f"The reasons are in {join(output, f'dead-letters-{generation:05d}-*.jsonl')}"
        )
