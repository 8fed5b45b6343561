"""Files of other kinds in place of TFRecords are named as what they are."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import frame_level, video_level

from vidpress.model.data_set.manifest import Manifest, ManifestError
from vidpress.model.files.file_kinds import START_BYTES, describe
from vidpress.model.files.file_names import MANIFEST
from vidpress.model.files.record_framing import begins_with_a_record
from vidpress.model.frozen.frozen_model import FrozenModel, ModelError
from vidpress.model.records.tfrecord import read_tfrecords, write_tfrecords
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError


def written(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def tar(file):
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.tfrecord"), io.BytesIO())


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.tfrecord", RECORDS)


def arrow_stream(file):
    with pa.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE)


RECORDS = written(lambda file: write_tfrecords(file, [video_level(index) for index in range(20)]))
TABLE = pa.table({"a": [1, 2]})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"

FILES = [
    (zlib.compress(RECORDS), "zlib"),
    (zlib.compress(RECORDS, 1), "zlib"),
    (zlib.compress(RECORDS, 9), "zlib"),
    (pa.compress(RECORDS, "zstd", asbytes=True), "zstd"),
    (pa.compress(RECORDS, "snappy", asbytes=True), "snappy"),
    (b"\xff\x06\x00\x00sNaPpY" + bytes(10), "snappy"),
    ((0).to_bytes(8, "big") + pa.compress(RECORDS, "snappy", asbytes=True), "snappy"),  # as Hadoop frames it
    (pa.compress(RECORDS, "lz4", asbytes=True), "LZ4"),
    (bz2.compress(RECORDS), "bzip2"),
    (lzma.compress(RECORDS), "xz"),
    (lzma.compress(RECORDS, lzma.FORMAT_ALONE), "xz"),
    (written(tar), "tar archive"),
    (written(zipped), "zip archive"),
    (written(lambda file: pq.write_table(TABLE, file)), "Parquet"),
    (written(arrow_stream), "Arrow"),
    (written(lambda file: np.save(file, np.zeros(3))), "NumPy"),
    (written(lambda file: np.savez(file, np.zeros(3))), "npz"),
    (pickle.dumps({"a": np.zeros(3)}), "pickle"),
    (POINTER, "Git LFS pointer; fetch the file itself with git lfs pull"),
    (b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>', "web page or XML"),
    (b"\n\n<!DOCTYPE html><html>", "web page"),
    (b"\xef\xbb\xbf<html>", "web page"),
    (json.dumps({"error": 404}).encode(), "JSON"),
    ("id,labels\nfür,1\n".encode() * 100, "a text"),
    (video_level(3), "one tf.train message"),
    (frame_level(3), "one tf.train message"),
    (bytes(1000), "begins with zeros"),
]


@pytest.mark.parametrize(("data", "name"), FILES)
def test_a_file_of_another_kind_is_named(data, name):
    for num_bytes in (None, len(data)):
        ((offset, damage),) = read_tfrecords(io.BytesIO(data), num_bytes, name="a.tfrecord")
        assert (offset, damage.ends_file) == (0, True)
        assert ": the file " in damage.reason
        assert name in damage.reason


@pytest.mark.parametrize(("data", "name"), [*FILES, (gzip.compress(RECORDS, mtime=0), "gzip twice")])
def test_within_gzip_too(data, name):
    ((_, damage),) = read_tfrecords(io.BytesIO(gzip.compress(data)))
    assert "what the gzip file holds" in damage.reason
    assert name in damage.reason


STAND_INS = [
    (POINTER, "Git LFS pointer; fetch the file itself with git lfs pull"),
    (b"<!DOCTYPE html><html>" + bytes(100), "web page"),
    (bytes(1000), "begins with zeros"),
    (gzip.compress(bytes(1000), mtime=0), "gzip; unpack it first"),
]


@pytest.mark.parametrize(("data", "name"), STAND_INS)
def test_what_lies_in_the_place_of_a_model_a_shard_or_a_manifest(tmp_path, data, name):
    for read, error in ((FrozenModel.load, ModelError), (Shard.open, ShardError)):
        path = tmp_path / "file"
        path.write_bytes(data)
        with pytest.raises(error, match=f"file is not a .* it (is|begins).*{name.removeprefix('begins ')}"):
            read(path)
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(ManifestError, match=f"is not a vidpress manifest: .*{name}"):
        Manifest.load(tmp_path)


def test_what_is_unknown_is_not_guessed():
    assert describe(np.random.default_rng(3).bytes(START_BYTES)) is None
    assert describe(b"") is None


def test_a_record_begins_with_its_length_and_checksum():
    assert begins_with_a_record(RECORDS)
    assert not begins_with_a_record(RECORDS[:11])
    assert not begins_with_a_record(RECORDS[1:])
