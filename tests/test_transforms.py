"""Each transform on its own; that a pipeline equals the direct computation is in test_pipeline_encode."""

import json

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from conftest import SPEC, frame_level, video_level, write_records

from vidpress.model.data_set.input_lists import InputFile
from vidpress.model.data_set.manifest import Manifest
from vidpress.model.data_set.rows import DeadLetter, encode_videos
from vidpress.model.records.videos import Video, parse_video, pool_frames
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.transforms.decode_videos import DecodeVideos
from vidpress.transforms.encode_videos import EncodeVideos
from vidpress.transforms.pool_frames import PoolFrames
from vidpress.transforms.read_shards import ReadShards
from vidpress.transforms.read_videos import ReadVideos
from vidpress.transforms.write_shards import WriteShards


def pipeline():
    return TestPipeline(runner="FnApiRunner")


def pooled(index, file="f"):
    return pool_frames(parse_video(frame_level(index), SPEC, file=file, offset=index), SPEC)


def test_read_videos(tmp_path):
    first = write_records(tmp_path / "a.tfrecord", [frame_level(0), b"rubbish", video_level(1)])
    second = write_records(tmp_path / "b.tfrecord", [frame_level(2)])
    with pipeline() as p:
        read = p | ReadVideos([first, second], spec=SPEC)
        ids = read.videos | beam.Map(lambda video: (video.id, video.file))
        assert_that(ids, equal_to([(b"video00000", first), (b"video00001", first), (b"video00002", second)]), "ids")
        places = read.dead_letters | beam.Map(lambda letter: (letter.file, letter.offset > 0, letter.reason[:33]))
        assert_that(places, equal_to([(first, True, "not a tf.train.Example or Sequenc")]), "dead letters")
        lengths = [len(frame_level(0)) + len(b"rubbish") + len(video_level(1)), len(frame_level(2))]
        sizes = [length + 16 * count for length, count in zip(lengths, (3, 1), strict=True)]
        inputs = [InputFile(first, sizes[0], 3, lengths[0]), InputFile(second, sizes[1], 1, lengths[1])]
        assert_that(read.inputs, equal_to(inputs), "inputs")


def test_read_videos_checks_its_options():
    with pytest.raises(ValueError, match="must be a list of one or more patterns"):
        ReadVideos("a.tfrecord")
    with pytest.raises(ValueError, match="must be a list of one or more patterns"):
        ReadVideos([])


def test_pool_frames():
    good = parse_video(frame_level(3), SPEC)
    bad = Video(
        b"bad",
        np.zeros(0, np.int32),
        {"rgb": np.zeros((2, 24), np.uint8), "audio": np.zeros((1, 8), np.uint8)},
        "f",
        9,
    )
    with pipeline() as p:
        videos, letters = p | beam.Create([good, bad]) | PoolFrames(spec=SPEC)
        assert_that(
            videos | beam.Map(lambda video: (video.id, video.x.tolist())),
            equal_to([(good.id, pool_frames(good, SPEC).x.tolist())]),
            "pooled",
        )
        reason = "the features differ in their number of frames: {'rgb': 2, 'audio': 1}"
        assert_that(letters, equal_to([DeadLetter("f", 9, reason, b"bad")]), "letters")


def test_encode_videos(model, model_path):
    videos = [pooled(index) for index in range(300)]
    expected = {row["id"]: row for row in encode_videos(model, videos).rows.to_pylist()}
    with pipeline() as p:
        batches, _ = p | beam.Create(videos) | EncodeVideos(model_path, model_id=model.model_id)
        found = batches | beam.FlatMap(lambda batch: batch.to_pylist()) | beam.Map(lambda row: (row["id"], row))
        assert_that(found, equal_to(list(expected.items())))


def test_encode_videos_refuses_another_model(model_path):
    with pytest.raises(Exception, match="not 0000000000000000: it was changed"), pipeline() as p:
        _ = p | beam.Create([pooled(0)]) | EncodeVideos(model_path, model_id="0" * 16)


def write(model, videos, output, num_shards=3, letters=(), inputs=None, **options):
    inputs = [InputFile("f", 2000, len(videos) + len(letters), 1000)] if inputs is None else inputs
    batches = [encode_videos(model, videos[start : start + 7]).rows for start in range(0, len(videos), 7)]
    with pipeline() as p:
        return (
            p
            | beam.Create(batches)
            | WriteShards(
                str(output),
                header=ShardHeader(model.model_id, model.spec, model.tables),
                dead_letters=p | "letters" >> beam.Create(list(letters)),
                inputs=p | "inputs" >> beam.Create(inputs),
                num_shards=num_shards,
                **options,
            )
        )


def test_write_and_read_shards(model, tmp_path):
    videos = [pooled(index) for index in range(60)]
    letters = [DeadLetter("z", 5, "why", b"x"), DeadLetter("a", 9, "how")]
    write(model, videos, tmp_path, letters=letters, max_bad_fraction=0.1)
    manifest = Manifest.load(str(tmp_path))
    assert (manifest.counts.records, manifest.counts.videos, manifest.counts.dead_letters) == (62, 60, 2)
    names = [entry.name for entry in manifest.generations[0].files]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "manifest.json"])
    found = [
        json.loads(line) for entry in manifest.dead_letters for line in (tmp_path / entry.name).read_text().splitlines()
    ]
    assert sorted(found, key=str) == sorted((json.loads(letter.to_json()) for letter in letters), key=str)
    z_hat = {video.id: model.quantize(video.x[None])[0].tolist() for video in videos}
    with pipeline() as p:
        decoded = p | ReadShards(str(tmp_path)) | DecodeVideos()
        rows = decoded | beam.FlatMap(lambda batch: [(row["id"], row["z_hat"]) for row in batch.to_pylist()])
        assert_that(rows, equal_to(list(z_hat.items())))


def test_more_shards_than_videos_leave_no_empty_files(model, tmp_path):
    write(model, [pooled(0), pooled(1)], tmp_path, num_shards=50)
    manifest = Manifest.load(str(tmp_path))
    assert len(manifest.shards) == 2
    assert all(entry.rows == 1 for entry in manifest.shards)


def test_rows_that_get_lost_fail_the_job(model, tmp_path):
    with pytest.raises(RuntimeError, match="1 records are unaccounted for"):
        write(model, [pooled(0)], tmp_path, inputs=[InputFile("f", 20, 2, 10)])
    assert not (tmp_path / "manifest.json").exists()


def test_without_input_nothing_is_added(model, tmp_path):
    write(model, [], tmp_path, inputs=[])
    assert list(tmp_path.iterdir()) == []
    write(model, [pooled(0)], tmp_path)
    before = sorted(tmp_path.iterdir())
    write(model, [], tmp_path, inputs=[], previous=1)
    assert sorted(tmp_path.iterdir()) == before


def test_rows_without_a_file_that_they_are_from_fail_the_job(model, tmp_path):
    write(model, [pooled(0)], tmp_path)
    with pytest.raises(RuntimeError, match="-1 records are unaccounted for"):
        write(model, [pooled(1)], tmp_path, inputs=[], previous=1)


def test_write_shards_checks_its_options(model):
    header = ShardHeader(model.model_id, model.spec, model.tables)
    with pytest.raises(ValueError, match="num_shards=0 must be at least 1"):
        WriteShards("out", header=header, dead_letters=None, inputs=None, num_shards=0)
    with pytest.raises(ValueError, match=r"max_bad_fraction=2 must lie in \[0, 1\]"):
        WriteShards("out", header=header, dead_letters=None, inputs=None, max_bad_fraction=2)
