"""Write decoded videos, as stored integers or as their input: a file for each shard, and a marker at the end."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model.data_set.input_decoding import load_decoder, restored_rows, restored_schema
from vidpress.model.data_set.manifest import FileEntry, Manifest
from vidpress.model.features import DECODED, FeatureSpec
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.model.frozen.input_decoder import DecoderFile
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.records import examples
from vidpress.model.records.tfrecord import read_tfrecords, write_tfrecords
from vidpress.model.shards.shard_rows import decode_rows, decoded_schema
from vidpress.transforms import metrics, progress
from vidpress.transforms.read_shards import read_shard

_log = logging.getLogger(__name__)

FORMATS = ("tfrecord", "parquet")

# What Hadoop and Spark call it: schedulers wait for it, and readers of a folder pass over names that begin like this.
MARKER = "_SUCCESS"
_MARKER_VERSION = 2  # which says what the features are

# How the files are called, by what they hold.
PREFIXES = {"z_hat": "features", "input": "videos"}

_FILE_NAME = re.compile(r"(?:features|videos)-[-0-9a-f]+(?:of-[-0-9a-f]+)?\.(?:tfrecord|parquet)")
_TEMPORARY_NAME = re.compile(rf"\.(?:{_FILE_NAME.pattern}|{MARKER})\.[0-9a-f]{{32}}\.tmp")


@dataclasses.dataclass(frozen=True, order=True)
class FeatureFile:
    """A file of decoded features.

    Attributes:
      name: Its name in the folder.
      rows: How many videos it holds.
      bytes: Its size.
    """

    name: str
    rows: int
    bytes: int


def feature_file_name(shard: FileEntry, output_format: str, features: str) -> str:
    """Return the name of the file with a shard's features. Like the shard's name, it belongs to one content."""
    name = shard.name.removeprefix("shard").removesuffix(".parquet")
    checksum = f"-{shard.sha256[:12]}"  # version 1 left it out
    return f"{PREFIXES[features]}{name.removesuffix(checksum)}{checksum}.{output_format}"


def is_feature_file_name(name: str) -> bool:
    """Return whether a file of that name holds decoded features."""
    return _FILE_NAME.fullmatch(name) is not None


@dataclasses.dataclass
class WriteFeatures(beam.PTransform):
    """Decode a data set to files of features in a folder. Takes a pipeline and gives the list of `FeatureFile`s.

    Each shard becomes one file, which gets its name when it is complete. Files that are there already and complete are
    not written again, so a job that died is completed by the same job. The marker `_SUCCESS`, which lists the files, is
    written last. A folder without it does not have all features.

    Attributes:
      data_set: The data set's folder.
      manifest: The manifest of the data set, which says what to decode.
      output: The folder for the features.
      output_format: 'tfrecord' or 'parquet'.
      features: 'z_hat', the integers that are stored; or 'input', the features that were put in, approximately, as
        video-level records have them.
      spec: For 'input': the keys of the id and the labels; by default those that the model was trained with.
    """

    data_set: str
    _: dataclasses.KW_ONLY
    manifest: Manifest
    output: str
    output_format: str
    features: str = "z_hat"
    spec: FeatureSpec | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if self.output_format not in FORMATS:
            raise ValueError(f"output_format={self.output_format!r} must be one of {FORMATS}.")
        if self.features not in DECODED:
            raise ValueError(f"features={self.features!r} must be one of {DECODED}.")

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[Sequence[FeatureFile]]:
        """Deal out the shards, decode each on one worker, and write the marker."""
        files = (
            pbegin
            | "Data set" >> beam.Create([self.manifest.generation])
            | "List shards" >> beam.FlatMap(_list_shards, self.data_set)
            | "Deal out shards" >> beam.Reshuffle()
            | "Decode shards"
            >> beam.Map(_write_shard, self.data_set, self.output, self.output_format, self.features, self.spec)
        )
        return (
            pbegin
            | "Once" >> beam.Create([None])
            | "Write marker"
            >> beam.Map(
                _write_marker,
                files=beam.pvalue.AsList(files),
                output=self.output,
                output_format=self.output_format,
                features=self.features,
                model_id=self.manifest.model_id,
                generation=self.manifest.generation,
                num_videos=self.manifest.counts.videos,
            )
        )


class _Shard(NamedTuple):
    """A shard, and what of the manifest is needed to decode it."""

    entry: FileEntry
    model_id: str
    generation: int
    decoder: FileEntry | None
    columns: tuple[KeptColumn, ...]


def _list_shards(generation: int, data_set: str) -> Iterator[_Shard]:
    manifest = Manifest.load(data_set, generation)
    for entry in manifest.shards:
        yield _Shard(entry, manifest.model_id, generation, manifest.decoder, manifest.columns)


def _write_shard(
    shard: _Shard,
    data_set: str,
    output: str,
    output_format: str,
    features: str,
    spec: FeatureSpec | None,
) -> FeatureFile:
    entry = shard.entry
    name = feature_file_name(entry, output_format, features)
    uri = join(output, name)
    decoder = _load_decoder(data_set, shard.generation, shard.decoder) if features == "input" else None
    if decoder is None:
        schema = decoded_schema(0, shard.columns)
    else:
        schema = restored_schema(spec or decoder.spec, shard.columns)
    if storage.exists(uri) and _is_whole(uri, entry.rows, output_format, schema):
        progress.advance(entry.rows)
    else:
        write = write_parquet if output_format == "parquet" else write_examples
        with storage.open_output(uri) as file:
            write(file, _decoded(data_set, shard, decoder, spec))
    return FeatureFile(name, entry.rows, storage.size(uri))


@functools.lru_cache(maxsize=2)
def _load_decoder(data_set: str, generation: int, _entry: FileEntry | None) -> DecoderFile:
    """Load a data set's decoder, once in a process for each content: another data set may have come to that folder."""
    return load_decoder(data_set, Manifest.load(data_set, generation))


def _is_whole(uri: str, rows: int, output_format: str, schema: pa.Schema) -> bool:
    """Return whether a file is what is to be written: every checksum fits, and it has so many videos and these columns.

    Another job that died may have written it with other keys.
    """
    try:
        with storage.open_input(uri) as file:
            if output_format == "parquet":
                parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
                is_whole = rows == sum(batch.num_rows for batch in parquet.iter_batches())
                is_whole &= parquet.schema_arrow.names == schema.names
            else:
                num_bytes = file.seek(0, io.SEEK_END)
                file.seek(0)
                records = read_tfrecords(io.BufferedReader(file), num_bytes)  # type: ignore[type-var]
                payloads = (payload for _, payload in records)
                first = list(itertools.islice(payloads, 1))
                kinds = collections.Counter(type(payload) for payload in itertools.chain(first, payloads))
                keys = [_keys(payload) for payload in first if isinstance(payload, bytes)]
                fields = _in_examples(schema)
                needed = {field.name for field in fields if not field.nullable}
                is_whole = kinds == {bytes: rows}
                is_whole &= all(needed <= each <= {field.name for field in fields} for each in keys)
    except (pa.ArrowException, examples.RecordError, OSError) as error:
        _log.warning("%s cannot be read: %s", uri, error)
        is_whole = False
    if not is_whole:
        _log.warning("%s is not what was written: it is written again.", uri)
    return is_whole


def _keys(payload: bytes) -> set[str]:
    context, _ = examples.parse_record(payload)
    return set(context)


def _decoded(
    data_set: str, shard: _Shard, decoder: DecoderFile | None, spec: FeatureSpec | None
) -> Iterator[pa.RecordBatch]:
    for batch in read_shard(data_set, shard.entry, shard.model_id, shard.columns):
        decoded = decode_rows(batch)
        if decoder is not None:
            decoded = restored_rows(decoded, decoder.decoder, spec or decoder.spec, shard.columns)
        metrics.VIDEOS_DECODED.inc(decoded.num_rows)
        progress.advance(decoded.num_rows)
        yield decoded


def write_parquet(file: BinaryIO, batches: Iterator[pa.RecordBatch]) -> None:
    """Write decoded batches, at least one, as Parquet, a row group each."""
    first = next(batches)
    with pq.ParquetWriter(file, first.schema, write_page_checksum=True) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)


def write_examples(file: BinaryIO, batches: Iterator[pa.RecordBatch]) -> None:
    """Write decoded batches as TFRecords of `tf.train.Example`s (`to_examples`)."""
    write_tfrecords(file, (payload for batch in batches for payload in to_examples(batch)))


def to_examples(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Turn decoded rows into serialized `tf.train.Example`s with all their columns but the counted `num_frames`.

    A list that is null is left out.
    """
    columns = {field.name: _values(batch[field.name]) for field in _in_examples(batch.schema)}
    for index in range(batch.num_rows):
        features = {name: values[index] for name, values in columns.items() if values[index] is not None}
        yield examples.serialize_record(features)


def _in_examples(schema: pa.Schema) -> list[pa.Field]:
    return [field for field in schema if not pa.types.is_integer(field.type)]


def _values(column: pa.Array) -> Any:
    """Return what an Example holds of each row: bytes, an array of floats, or integers."""
    if pa.types.is_binary(column.type):
        return column.to_pylist()
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), -1)
    return [None if values is None else _of_list(values, column.type.value_type) for values in column.to_pylist()]


def _of_list(values: list[Any], kind: pa.DataType) -> tuple[bytes, ...] | list[int] | np.ndarray:
    if pa.types.is_floating(kind):
        return np.array(values, np.float32)
    if pa.types.is_string(kind):
        return tuple(value.encode() for value in values)
    return tuple(values) if pa.types.is_binary(kind) else values


def _write_marker(
    _: None,
    *,
    files: Sequence[FeatureFile],
    output: str,
    output_format: str,
    features: str,
    model_id: str,
    generation: int,
    num_videos: int,
) -> Sequence[FeatureFile]:
    found = sum(file.rows for file in files)
    if found != num_videos:
        raise RuntimeError(f"{found} videos were decoded, the manifest counts {num_videos}: run the job again.")
    left = [file.name for file in storage.list_files(output, ".") if _TEMPORARY_NAME.fullmatch(file.name)]
    storage.remove(join(output, name) for name in left)  # by jobs that died
    marker = {
        "format_version": _MARKER_VERSION,
        "model_id": model_id,
        "generation": generation,
        "format": output_format,
        "features": features,
        "files": [dataclasses.asdict(file) for file in sorted(files)],
    }
    storage.write(join(output, MARKER), (json.dumps(marker, indent=1) + "\n").encode())
    return sorted(files)
