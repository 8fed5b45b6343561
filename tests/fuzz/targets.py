"""What is fuzzed: the five parsers of files that a stranger may have made.

A target takes the bytes of a file and raises nothing: what its parser promises to raise is caught, and whatever else it
raises is a finding.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import random
from collections.abc import Callable, Iterator

import mutators
import numpy as np
import pyarrow as pa

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.records import tfrecord
from vidpress.model.records.examples import RecordError, serialize_record
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.model.shards import shard_rows
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.tables.range_coding_tables import RangeCodingTables

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
SPEC = FeatureSpec.parse("rgb:24,audio:8")
COLUMNS = tuple(map(KeptColumn.parse, ("title:string", "starts:int64", "scores:float")))


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser to be fuzzed.

    Attributes:
      seeds: Yields files that are whole.
      run: Parses a file.
      mutate: Damages a file below its checksums (`mutators`).
    """

    seeds: Callable[[], Iterator[bytes]]
    run: Callable[[bytes], None]
    mutate: Callable[[bytes, random.Random, mutators.ChangeBytes, int], bytes]


def _tfrecord_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    kept = {"title": (b"a", b""), "starts": [1, -5], "scores": np.ones(3, np.float32)}
    context = {"id": b"video", "labels": [1, 5], **kept}
    frames = {feature.name: rng.integers(0, 256, (2, feature.size), np.uint8) for feature in SPEC.features}
    means = {feature.mean_name: rng.normal(size=feature.size).astype(np.float32) for feature in SPEC.features}
    records = [
        mutators.record(serialize_record(context, frames)),
        mutators.record(serialize_record({**context, **means})),
    ]
    yield from records
    yield b"".join(records)


def _run_tfrecord(data: bytes) -> None:
    for _, payload in tfrecord.read_tfrecords(io.BytesIO(data), len(data)):
        if isinstance(payload, bytes):
            try:
                pool_frames(parse_video(payload, SPEC, columns=COLUMNS), SPEC)
            except RecordError as error:
                _check_message(error)


def _tables() -> Iterator[RangeCodingTables]:
    rng = np.random.default_rng(0)
    tables = RangeCodingTables.fit(rng.geometric(0.6, (50, 12)).astype(np.int32) - 1)
    yield tables
    yield dataclasses.replace(tables, bank_tilt=rng.integers(-24, 25, (4, 12)).astype(np.int8))


def _tables_seeds() -> Iterator[bytes]:
    for tables in _tables():
        yield tables.to_bytes()


def _run_tables(data: bytes) -> None:
    try:
        tables = RangeCodingTables.from_bytes(data)
    except ValueError as error:
        _check_message(error)
        return
    assert tables.coder_arrays.start.max() < len(tables.coder_arrays.cdf)


def _shard_seeds() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("shard-v*.parquet")):
        yield path.read_bytes()
    rng = np.random.default_rng(0)
    for tables in _tables():
        header = ShardHeader("0123456789abcdef", SPEC, tables).metadata
        columns = {
            "id": pa.array([b"video%05d" % row for row in range(40)], pa.binary()),
            "labels": pa.array([rng.integers(0, 3862, rng.integers(0, 4)).tolist() for _ in range(40)]),
            "num_frames": pa.array([None if row % 5 == 0 else row for row in range(40)], pa.int32()),
            "bank": pa.array(rng.integers(0, tables.num_banks, 40).astype(np.uint8)),
            "code": pa.array([rng.bytes(int(rng.integers(0, 6))) for _ in range(40)], pa.binary()),
        }
        rows = pa.table(columns).cast(shard_rows.SCHEMA)
        for page_checksums in (True, False):
            yield mutators.write_shard(rows, header, page_checksums=page_checksums, row_group_size=25)


def _run_shard(data: bytes) -> None:
    try:
        opened = Shard(io.BytesIO(data), "a shard")
        for row_group, size in enumerate(opened.row_group_sizes):
            assert len(opened.read_ids(row_group)) == size
            assert shard_rows.decode_rows(opened.read(row_group)).num_rows == size
    except VidpressError as error:
        _check_message(error)


def _model_seeds() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("model-v*.safetensors")):
        yield path.read_bytes()


def _run_model(data: bytes) -> None:
    try:
        model = FrozenModel.from_bytes(data)
    except VidpressError as error:
        _check_message(error)
        return
    assert FrozenModel.from_bytes(model.to_bytes()).tables.to_bytes() == model.tables.to_bytes()


def _manifest_seeds() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("data-set-*/manifest*.json")):
        yield path.read_bytes()


def _run_manifest(data: bytes) -> None:
    try:
        manifest = Manifest.from_json(data)
    except VidpressError as error:
        _check_message(error)
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


def _check_message(error: Exception) -> None:
    """See that a message is a line, and a readable one: a file's own text may drive a terminal."""
    assert str(error).isprintable(), repr(str(error))


TARGETS = {
    "tfrecord": Target(_tfrecord_seeds, _run_tfrecord, mutators.mutate_tfrecord),
    "shard": Target(_shard_seeds, _run_shard, mutators.mutate_shard),
    "tables": Target(_tables_seeds, _run_tables, mutators.mutate_tables),
    "model": Target(_model_seeds, _run_model, mutators.mutate_model),
    "manifest": Target(_manifest_seeds, _run_manifest, mutators.mutate_manifest),
}
