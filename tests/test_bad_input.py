"""What bad input gets: each row of the README's table, fed the real thing."""

import gzip
import json
import os
import pathlib
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SPEC, frame_level, random_model, video_level, write_records

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import FeatureSpec
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.examples import serialize_record
from vidpress.pipeline import decode, encode


class Job:
    """An encode job over a folder of input files, with many good records beside the bad ones."""

    def __init__(self, folder: pathlib.Path, model_path: str):
        self.input = folder / "input"
        self.input.mkdir()
        self.output = folder / "out"
        self.model_path = model_path

    def add(self, name: str, payloads: list[bytes]) -> pathlib.Path:
        return pathlib.Path(write_records(self.input / name, payloads))

    def run(self, *options: str) -> Manifest:
        encode.main(["--input", f"{self.input}/*", "--model", self.model_path, "--output", str(self.output), *options])
        return Manifest.load(self.output)

    def letters(self) -> list[dict]:
        paths = sorted(self.output.glob("dead-letters-*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def ids(self) -> set[str]:
        return {video_id.decode() for batch in VideoDataset(self.output) for video_id in batch.ids}


@pytest.fixture
def job(tmp_path, model_path):
    return Job(tmp_path, model_path)


def names(*indices):
    return {f"video{index:05d}" for index in indices}


def flip(path: pathlib.Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


LENIENT = ("--max_bad_fraction", "1")


def test_corrupt_payload_is_set_aside_and_reading_goes_on(job):
    path = job.add("a.tfrecord", [frame_level(index) for index in range(5)])
    offset = sum(16 + len(frame_level(index)) for index in range(2))
    flip(path, offset + 12 + 50)
    manifest = job.run(*LENIENT)
    (letter,) = job.letters()
    assert (letter["file"], letter["offset"]) == (str(path), offset)
    assert "fail their checksum" in letter["reason"]
    assert job.ids() == names(0, 1, 3, 4)
    assert (manifest.counts.records, manifest.counts.videos, manifest.counts.dead_letters) == (5, 4, 1)


def test_corrupt_length_ends_the_file_but_not_the_others(job):
    path = job.add("a.tfrecord", [frame_level(index) for index in range(5)])
    job.add("b.tfrecord", [frame_level(index) for index in range(5, 8)])
    offset = sum(16 + len(frame_level(index)) for index in range(2))
    flip(path, offset + 3)
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert (letter["file"], letter["offset"]) == (str(path), offset)
    assert "length fails its checksum" in letter["reason"]
    assert job.ids() == names(0, 1, 5, 6, 7)


def test_truncated_file_ends_there_but_not_the_others(job):
    path = job.add("a.tfrecord", [frame_level(index) for index in range(5)])
    job.add("b.tfrecord", [frame_level(index) for index in range(5, 8)])
    path.write_bytes(path.read_bytes()[:-100])
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert (letter["file"], letter["offset"]) == (str(path), sum(16 + len(frame_level(i)) for i in range(4)))
    assert "file ends within a record" in letter["reason"]
    assert job.ids() == names(0, 1, 2, 3, 5, 6, 7)


def test_truncated_gzip_is_set_aside(job):
    path = job.add("a.tfrecord", [frame_level(index) for index in range(5)])
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    (job.input / "a.tfrecord.gz").write_bytes(packed[: len(packed) // 2])
    job.add("b.tfrecord", [frame_level(9)])
    manifest = job.run(*LENIENT)
    (letter,) = job.letters()
    assert letter["file"].endswith("a.tfrecord.gz")
    assert manifest.counts.dead_letters == 1
    assert "video00009" in job.ids()


def frames(num_frames, size):
    return np.zeros((num_frames, size), np.uint8)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (serialize_record({"id": b"bad"}), "feature 'rgb' is missing"),
        (serialize_record({"id": b"bad"}, {"rgb": frames(3, 24)}), "feature 'audio' is missing"),
        (
            serialize_record({"id": b"bad"}, {"rgb": frames(3, 23), "audio": frames(3, 8)}),
            "holds [23] bytes, not [24]",
        ),
        (
            serialize_record({"id": b"bad"}, {"rgb": frames(3, 24), "audio": frames(2, 8)}),
            "differ in their number of",
        ),
        (video_level(0, id=b"bad", mean_rgb=np.full(24, np.nan)), "input 0 of 32 is nan"),
        (video_level(0, id=b"bad", mean_audio=np.full(8, np.inf)), "input 24 of 32 is inf"),
        (video_level(0, id=b"bad", mean_audio=np.zeros(7)), "feature 'mean_audio' has 7 numbers, not 8"),
        (video_level(0, id=b"bad", labels=[-5]), "'labels' must be class indices"),
        (video_level(0, id=b"bad", mean_rgb=np.full(24, 3e38)), "bottleneck"),
    ],
)
def test_unusable_features_are_set_aside(job, payload, reason):
    path = job.add("a.tfrecord", [frame_level(0), payload, frame_level(1)])
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert (letter["id"], letter["file"], letter["offset"]) == ("bad", str(path), 16 + len(frame_level(0)))
    assert reason in letter["reason"]
    assert job.ids() == names(0, 1)


def test_zero_frames_are_set_aside(job):
    empty = bytes([0x0A, 0x05]) + b"\x0a\x03rgb" + bytes([0x0A, 0x07]) + b"\x0a\x05audio"
    context = serialize_record({"id": b"bad"})
    job.add("a.tfrecord", [context + bytes([0x12, len(empty)]) + empty, frame_level(1)])
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert (letter["id"], letter["reason"]) == ("bad", "the video has no frames")


def test_a_record_without_id_and_one_that_is_no_message(job):
    job.add("a.tfrecord", [frame_level(0), b"rubbish", serialize_record({"labels": [1]})])
    job.run(*LENIENT)
    assert sorted((letter["id"], letter["reason"][:20]) for letter in job.letters()) == [
        (None, "no id: none of ['id'"),
        (None, "not a tf.train.Examp"),
    ]


def test_an_equal_video_is_counted_and_one_is_kept(job):
    job.add("a.tfrecord", [frame_level(0), frame_level(1), frame_level(0)])
    job.add("b.tfrecord", [frame_level(1)])
    manifest = job.run("--max_bad_fraction", "0")
    assert (manifest.counts.records, manifest.counts.videos, manifest.counts.duplicates) == (4, 2, 2)
    assert job.ids() == names(0, 1)


def test_another_video_of_the_same_id_is_set_aside_with_both_sources(job):
    first = job.add("a.tfrecord", [frame_level(0)])
    second = job.add("b.tfrecord", [frame_level(1), video_level(0)])
    manifest = job.run(*LENIENT)
    (letter,) = job.letters()
    assert (letter["id"], letter["file"], letter["offset"]) == (
        "video00000",
        str(second),
        16 + len(frame_level(1)),
    )
    assert f"in {first} at offset 0, which is kept" in letter["reason"]
    assert (manifest.counts.videos, manifest.counts.duplicates, manifest.counts.dead_letters) == (2, 0, 1)


def stopped(capsys, run, *arguments) -> str:
    """Run what must stop with exit code 1, and return its only line."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("workers", [(), ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")])
def test_too_many_bad_records_fail_the_job_and_a_later_run_cleans_up(job, capsys, workers):
    path = job.add("a.tfrecord", [frame_level(index) for index in range(20)] + [b"rubbish"])
    line = stopped(capsys, job.run, *workers)
    assert "1 of 21 records are bad, more than --max_bad_fraction=0.01 allows. No manifest was written" in line
    assert f"{job.output}/dead-letters-00001-*.jsonl" in line
    assert len(job.letters()) == 1
    assert not (job.output / "manifest.json").exists()
    path.unlink()
    for left in job.output.iterdir():
        os.utime(left, (0, 0))
    job.add("b.tfrecord", [frame_level(0)])
    manifest = job.run("--num_shards", "2", *workers)
    left = {entry.name for entry in manifest.files} | {"manifest.json"}
    assert {path.name for path in job.output.iterdir()} == left


def test_an_empty_glob_is_refused(job, capsys):
    assert "matches no file: check the path" in stopped(capsys, job.run)
    job.add("a.tfrecord", [frame_level(0)])
    arguments = [
        "--input",
        f"{job.input}/*",
        "/nowhere/*.x",
        "--model",
        job.model_path,
        "--output",
        str(job.output),
    ]
    assert "--input /nowhere/*.x matches no file" in stopped(capsys, encode.main, arguments)
    assert not job.output.exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--num_shards", "0", "'0' must be a whole number of at least 1"),
        ("--num_shards", "2.5", "'2.5' must be a whole number of at least 1"),
        ("--max_bad_fraction", "1.5", r"'1.5' must lie in [0, 1]"),
        ("--max_bad_fraction", "nan", r"'nan' must lie in [0, 1]"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(job, capsys, option, value, message):
    job.add("a.tfrecord", [frame_level(0)])
    with pytest.raises(SystemExit) as stop:
        job.run(option, value)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not job.output.exists()


def test_an_output_that_holds_a_data_set_is_refused(job, capsys):
    job.add("a.tfrecord", [frame_level(0)])
    job.run()
    before = {path: path.read_bytes() for path in job.output.iterdir()}
    assert f"--output {job.output} holds a data set already: add what is new to it with --append" in stopped(
        capsys, job.run
    )
    assert {path: path.read_bytes() for path in job.output.iterdir()} == before


def test_an_output_that_cannot_be_written_is_refused(job, capsys, tmp_path):
    job.add("a.tfrecord", [frame_level(0)])
    (tmp_path / "file").write_text("I am no folder")
    job.output = tmp_path / "file" / "out"
    assert f"--output {job.output} cannot be written" in stopped(capsys, job.run)


@pytest.mark.parametrize(
    ("content", "message"), [(b"no model" * 9, "is not a vidpress model"), (None, "does not exist")]
)
def test_a_model_that_is_none_is_refused(job, capsys, tmp_path, content, message):
    job.add("a.tfrecord", [frame_level(0)])
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    job.model_path = str(path)
    line = stopped(capsys, job.run)
    assert str(path) in line
    assert message in line
    assert not job.output.exists()


def test_a_model_of_other_features_sets_all_aside_and_fails(job, capsys, tmp_path):
    random_model(FeatureSpec.parse("other:32")).save(tmp_path / "other.safetensors")
    job.model_path = str(tmp_path / "other.safetensors")
    job.add("a.tfrecord", [frame_level(index) for index in range(3)])
    assert "3 of 3 records are bad" in stopped(capsys, job.run)
    assert "feature 'other' is missing" in job.letters()[0]["reason"]


def test_decoding_what_is_no_data_set_is_refused(tmp_path, capsys):
    arguments = ["--input", str(tmp_path), "--output", str(tmp_path / "features")]
    assert "it is not a vidpress data set, or its job did not finish" in stopped(capsys, decode.main, arguments)


def test_a_damaged_shard_is_an_error_on_decode(job, capsys, tmp_path):
    job.add("a.tfrecord", [frame_level(index) for index in range(50)])
    job.run()
    (path,) = job.output.glob("*.parquet")
    codes = pq.ParquetFile(path).metadata.row_group(0).column(3)
    flip(path, codes.data_page_offset + codes.total_compressed_size - 1)
    line = stopped(capsys, decode.main, ["--input", str(job.output), "--output", str(tmp_path / "features")])
    assert f"{path}, row group 0, is damaged" in line
    assert not list((tmp_path / "features").glob("features-*"))


def test_a_shard_of_another_model_is_an_error_on_decode(job, capsys, tmp_path):
    job.add("a.tfrecord", [frame_level(index) for index in range(50)])
    job.run()
    random_model(SPEC, seed=3).save(tmp_path / "other.safetensors")
    (tmp_path / "elsewhere").mkdir()
    other = Job(tmp_path / "elsewhere", str(tmp_path / "other.safetensors"))
    other.add("a.tfrecord", [frame_level(index) for index in range(50)])
    other.run()
    (path,) = job.output.glob("*.parquet")
    (another,) = other.output.glob("*.parquet")
    path.write_bytes(another.read_bytes())
    line = stopped(capsys, decode.main, ["--input", str(job.output), "--output", str(tmp_path / "features")])
    assert "the shard does not belong to it" in line


def test_a_missing_shard_is_an_error_on_decode(job, tmp_path, capsys):
    job.add("a.tfrecord", [frame_level(index) for index in range(5)])
    job.run()
    (path,) = job.output.glob("*.parquet")
    path.unlink()
    line = stopped(capsys, decode.main, ["--input", str(job.output), "--output", str(tmp_path / "features")])
    assert f"{path.name} is missing" in line


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.tfrecord.gz", bytes(5000), "begins with zeros"),
        ("a.tfrecord.gz", b"", "the file is empty, which no gzip file is"),
        ("a.tfrecord", bytes(5000), "begins with zeros"),
        ("a.tfrecord", zlib.compress(bytes(5000)), "is compressed by zlib"),
        ("a.tfrecord", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("a.tfrecord", b"<html><body>404</body></html>", "is a web page or XML"),
        ("a.pb", frame_level(3), "one tf.train message without a record around it"),
    ],
)
def test_a_file_that_is_no_tfrecord_file_is_set_aside_as_what_it_is(job, name, content, reason):
    (job.input / name).write_bytes(content)
    job.add("b.tfrecord", [frame_level(9)])
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert letter["file"].endswith(name)
    assert reason in letter["reason"]
    assert letter.get("lost_bytes", 0) == len(content)
    assert job.ids() == names(9)


def test_a_second_member_of_zeros_is_set_aside(job):
    first, second = (gzip.compress(job.add("x", [frame_level(index)]).read_bytes()) for index in (0, 1))
    (job.input / "x").unlink()
    (job.input / "a.tfrecord.gz").write_bytes(first + bytes(max(len(second), 600)))
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert "zeros follow its end" in letter["reason"]
    assert job.ids() == names(0)


@pytest.mark.parametrize("value", [b"/m/09x0r", np.ones(2)])
def test_labels_of_another_kind_are_set_aside(job, value):
    job.add("a.tfrecord", [frame_level(0), video_level(1, labels=value)])
    job.run(*LENIENT)
    (letter,) = job.letters()
    assert "'labels' must be class indices, but holds" in letter["reason"]


def test_keys_of_records_can_be_named(job, capsys):
    payload = video_level(0, **{"clip/id": b"clip", "clip/label": [4]})
    job.add("a.tfrecord", [payload])
    job.run("--id_key", "clip/id", "--labels_key", "clip/label")
    (batch,) = VideoDataset(job.output)
    assert (list(batch.ids), [labels.tolist() for labels in batch.labels]) == ([b"clip"], [[4]])
    job.output = job.output.parent / "other"
    assert "printable characters" in stopped(capsys, job.run, "--id_key", "")


def test_features_of_mediapipe_are_read_by_their_names(job, tmp_path):
    spec = FeatureSpec.parse("RGB/feature/floats:24:float,AUDIO/feature/floats:8:float:0.5")
    random_model(spec).save(tmp_path / "floats.safetensors")
    job.model_path = str(tmp_path / "floats.safetensors")
    lists = {"RGB/feature/floats": np.ones((5, 24), np.float32), "AUDIO/feature/floats": np.ones((5, 8), np.float32)}
    job.add("a.tfrecord", [serialize_record({"clip/data_path": b"/a.mp4", "clip/label/index": [3]}, lists)])
    job.add("b.tfrecord", [frame_level(1)])
    job.run("--id_key", "clip/data_path", "--labels_key", "clip/label/index", *LENIENT)
    assert job.ids() == {"/a.mp4"}
    (letter,) = job.letters()
    assert "no id: none of ['clip/data_path'] is among ['id', 'labels']" in letter["reason"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("/nowhere"), "is a broken link to /nowhere"),
        (os.mkfifo, "is a named pipe, not a file"),
        (lambda path: pathlib.Path(os.fsdecode(bytes(path) + b"\xff")).touch(), "has a name that is not UTF-8"),
    ],
)
def test_what_a_glob_finds_is_never_passed_over(job, capsys, make, message):
    job.add("a.tfrecord", [frame_level(0)])
    make(job.input / "b.tfrecord")
    line = stopped(capsys, job.run)
    assert "b.tfrecord" in line
    assert message in line
    assert not job.output.exists()


def test_a_folder_is_refused(job, capsys):
    job.add("a.tfrecord", [frame_level(0)])
    arguments = ["--input", str(job.input), "--model", job.model_path, "--output", str(job.output)]
    assert f"--input {job.input} is a folder: write {job.input}/*" in stopped(capsys, encode.main, arguments)
