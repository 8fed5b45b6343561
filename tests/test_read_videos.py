"""Reading files of records, as workers do."""

import dataclasses
import gzip
import logging
import os
import zlib

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from conftest import SPEC, frame_level, video_level, write_records

from vidpress.model.data_set.input_lists import InputFile
from vidpress.model.data_set.rows import MAX_REASON_LENGTH, DeadLetter
from vidpress.model.files.input_files import InputError
from vidpress.model.records.examples import serialize_record
from vidpress.transforms.read_videos import ReadVideos, read_records, read_videos


def items(path, **options):
    return [item for _, item in read_videos(str(path), SPEC, **options)]


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz", "a"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_gzip_is_told_by_the_first_bytes(tmp_path, name, pack):
    plain = tmp_path / "plain"
    write_records(plain, [frame_level(0), video_level(1)])
    (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    assert [video.id for video in items(tmp_path / name)] == [b"video00000", b"video00001"]


def test_a_dead_letter_says_how_much_of_a_file_is_lost(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_records(path, [frame_level(index) for index in range(5)])
    data = bytearray(path.read_bytes())
    offset = sum(16 + len(frame_level(index)) for index in range(2))
    data[offset] ^= 1
    path.write_bytes(data)
    *_, letter = items(path)
    assert (letter.offset, letter.lost_bytes) == (offset, len(data) - offset)
    assert f'"lost_bytes": {len(data) - offset}' in letter.to_json()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        inputs = (pipeline | ReadVideos([str(path)], spec=SPEC)).inputs
        read = sum(len(frame_level(index)) for index in range(2))
        file = InputFile(str(path), len(data), 3, read, len(data) - offset, zlib.crc32(data))
        assert_that(inputs, equal_to([file]))


def test_no_more_is_read_than_was_matched(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_records(path, [frame_level(0), frame_level(1)])
    assert [video.id for video in items(path, num_bytes=16 + len(frame_level(0)))] == [b"video00000"]


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, os.mkfifo])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path, make):
    """It was there when the patterns were matched; a retry may mend it, so that it is no dead letter."""
    make(tmp_path / "a.tfrecord")
    with pytest.raises(InputError, match=r"a\.tfrecord (cannot be read|is a )") as error:
        list(read_records(str(tmp_path / "a.tfrecord")))
    assert "\n" not in str(error.value)


def test_an_error_of_the_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.tfrecord"
    write_records(path, [frame_level(index) for index in range(9)])
    # A file whose content cannot be had: reading the memory of a process at 0 is an I/O error.
    (tmp_path / "b.tfrecord").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"b\.tfrecord cannot be read: Input/output error"):
        list(read_records(str(tmp_path / "b.tfrecord"), 100))


def warnings(caplog, tmp_path, payloads, spec=SPEC):
    path = write_records(tmp_path / "a.tfrecord", payloads)
    with caplog.at_level(logging.WARNING, "vidpress"), TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | ReadVideos([path], spec=spec)
    return [record.getMessage() for record in caplog.records if record.name == "vidpress"]


def test_a_key_of_labels_that_no_record_has_is_said_once(caplog, tmp_path):
    payloads = [video_level(index, label=[3]) for index in range(5)]
    spec = dataclasses.replace(SPEC, labels_key="nothing")
    (line,) = warnings(caplog, tmp_path, payloads, spec)
    assert "None of the 5 videos has labels under 'nothing'" in line
    assert "--labels_key: keys are ['id', 'label', 'labels', 'mean_audio', 'mean_rgb']" in line


def test_empty_lists_of_labels_are_nothing_to_speak_of(caplog, tmp_path):
    assert warnings(caplog, tmp_path, [video_level(0, labels=[])]) == []


def test_segments_that_are_left_out_are_said_once(caplog, tmp_path):
    payloads = [video_level(index, segment_labels=[3, 3], labels=[1]) for index in range(5)]
    (line,) = warnings(caplog, tmp_path, payloads)
    assert "'segment_labels'" in line
    assert "left out" in line


def test_float_frames_are_read(tmp_path):
    spec = SPEC.parse("RGB/feature/floats:4:float:2")
    frames = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = write_records(tmp_path / "a.tfrecord", [serialize_record({"id": b"v"}, {"RGB/feature/floats": frames})])
    ((_, video),) = read_videos(path, spec)
    np.testing.assert_array_equal(video.features["RGB/feature/floats"], frames)


def test_reasons_are_cut():
    letter = DeadLetter("f", 0, "x" * 10**6)
    assert len(letter.reason) == MAX_REASON_LENGTH
    assert len(letter.to_json()) < 2 * MAX_REASON_LENGTH
    assert DeadLetter("f", 0, "x" * MAX_REASON_LENGTH).reason == "x" * MAX_REASON_LENGTH
    assert "lost_bytes" not in letter.to_json()


def test_patterns_are_matched_in_a_worker(tmp_path):
    write_records(tmp_path / "a.tfrecord", [frame_level(0)])
    with pytest.raises(Exception, match=r"no\* matches no file"), TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | ReadVideos([f"{tmp_path}/*", f"{tmp_path}/no*"], spec=SPEC)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        videos = (pipeline | ReadVideos([f"{tmp_path}/*", f"{tmp_path}/{{a,a}}.tfrecord"], spec=SPEC)).videos
        assert_that(videos | beam.Map(lambda video: video.id), equal_to([b"video00000"]))
