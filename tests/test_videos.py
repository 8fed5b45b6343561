import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.features import FeatureSpec
from vidpress.model.records.examples import RecordError, serialize_record
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.model.records.videos import Video, parse_video, pool_frames, sum_frames

SPEC = FeatureSpec.parse("rgb:6,audio:2")


def frame_level(rgb, audio, **context):
    return serialize_record({"id": b"v", "labels": [1, 5], **context}, {"rgb": rgb, "audio": audio})


def frames(num_frames, size, fill=7):
    return np.full((num_frames, size), fill, np.uint8)


def pool(payload):
    return pool_frames(parse_video(payload, SPEC, file="f", offset=3), SPEC)


def test_frame_level_video_is_averaged_and_dequantized():
    rgb = np.array([[0, 0, 0, 255, 255, 255], [0, 255, 1, 255, 255, 0]], np.uint8)
    audio = np.array([[1, 2], [3, 5]], np.uint8)
    video = pool(frame_level(rgb, audio))
    means = np.concatenate([rgb.mean(axis=0), audio.mean(axis=0)])
    np.testing.assert_allclose(video.x, means * 4 / 255 + 4 / 512 - 2, rtol=1e-6)
    assert (video.id, video.labels.tolist(), video.num_frames) == (b"v", [1, 5], 2)
    assert (video.file, video.offset, video.x.dtype) == ("f", 3, np.float32)


def test_video_level_video_passes_through():
    mean_rgb = np.linspace(-1, 1, 6, dtype=np.float32)
    mean_audio = np.array([0.25, -0.5], np.float32)
    video = pool(serialize_record({"video_id": b"v", "mean_rgb": mean_rgb, "mean_audio": mean_audio}))
    np.testing.assert_array_equal(video.x, np.concatenate([mean_rgb, mean_audio]))
    assert video.num_frames is None
    assert video.labels.tolist() == []


@given(st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_sum_of_frames_is_exact(num_frames, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (num_frames, 40), np.uint8)
    rows[:, :5] = 255  # the largest sums
    np.testing.assert_array_equal(sum_frames(rows[:, 3:]), rows[:, 3:].sum(axis=0, dtype=np.uint64))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (serialize_record({"labels": [1]}), r"no id: none of \['id', 'video_id'\] is among \['labels'\]"),
        (serialize_record({"id": b"v"}), r"feature 'rgb' is missing: .* no 'mean_rgb' among \['id'\]"),
        (serialize_record({"id": b""}), "must hold one non-empty string"),
        (serialize_record({"id": [7]}), r"must hold one non-empty string, but holds integers \(int64_list\)"),
        (
            frame_level(frames(2, 5), frames(2, 2)),
            r"feature 'rgb': frame 0 of 2 holds \[5\] bytes, not \[6\]",
        ),
        (
            frame_level(frames(2, 6), frames(3, 2)),
            r"differ in their number of frames: {'rgb': 2, 'audio': 3}",
        ),
        (frame_level(frames(0, 6), frames(0, 2)), "missing|no frames"),
        (frame_level(frames(1, 6), frames(1, 2), labels=[-1]), "'labels' must be class indices, but has -1"),
        (
            frame_level(frames(1, 6), frames(1, 2), labels=b"cat"),
            r"'labels' .* but holds strings \(bytes_list\).*--labels_key",
        ),
        (frame_level(frames(1, 6), frames(1, 2), labels=np.ones(2)), r"'labels' .* but holds floats \(float_list\)"),
        (frame_level(frames(1, 6), frames(1, 2), labels=[1] * 16385), "but has 16,385 values, more than 16,384"),
        (serialize_record({"id": np.ones(1)}), r"'id' must hold one non-empty string, but holds floats"),
        (serialize_record({"id": b"x" * 4097}), "'id' has 4,097 bytes; an id has 4,096 at most"),
        (serialize_record({"id": b"x" * 100_000}), r"'id' has 100,0\d\d bytes; an id has 4,096 at most"),
        (serialize_record({"id": b"v", "mean_rgb": b"x" * 24}), r"'mean_rgb' holds strings \(bytes_list\), not floats"),
        (serialize_record({"id": b"v", "mean_rgb": [1] * 6}), r"'mean_rgb' holds integers \(int64_list\), not floats"),
        (
            frame_level(np.zeros((2, 6), np.float32), frames(2, 2)),
            r"'rgb': frame 0 of 2 holds floats .*; a model trained with --features rgb:6:float takes such frames",
        ),
        (frame_level(frames(1, 6), frames(1, 2), labels=[2**40]), "'labels' must be class indices"),
        (
            serialize_record({"id": b"v", "mean_rgb": np.zeros(5, np.float32), "mean_audio": np.zeros(2)}),
            "feature 'mean_rgb' has 5 numbers, not 6",
        ),
        (
            serialize_record({"id": b"v", "mean_rgb": np.zeros(6), "mean_audio": np.array([0, np.nan])}),
            "input 7 of 8 is nan",
        ),
        (
            serialize_record({"id": b"v", "mean_rgb": np.full(6, -np.inf), "mean_audio": np.zeros(2)}),
            "input 0 of 8 is -inf",
        ),
    ],
)
def test_unusable_records_are_refused(payload, message):
    with pytest.raises(RecordError, match=message):
        pool(payload)


def test_an_id_of_the_greatest_size_is_kept():
    payload = frame_level(frames(1, 6), frames(1, 2), id=b"x" * 4096)
    assert pool(payload).id == b"x" * 4096


def test_messages_show_few_names_and_cut_them():
    names = {f"{index:04d}{'x' * 1000}": [1] for index in range(1000)}
    with pytest.raises(RecordError, match=r"and 980 more.*--id_key") as error:
        pool(serialize_record(names))
    assert len(str(error.value)) < 2500


FLOATS = FeatureSpec.parse("RGB/feature/floats:6:float:0.5,audio:2")


def float_level(rgb, audio):
    return serialize_record({"id": b"v"}, {"RGB/feature/floats": rgb, "audio": audio})


def test_float_frames_are_averaged_and_scaled():
    rgb = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    video = pool_frames(parse_video(float_level(rgb, frames(7, 2)), FLOATS), FLOATS)
    np.testing.assert_array_equal(video.x[:6], (rgb.astype(np.float64).sum(axis=0) / 7 * 0.5).astype(np.float32))
    np.testing.assert_array_equal(video.x[6:], FLOATS.dequantize(np.full(2, 7.0)).astype(np.float32))
    assert video.num_frames == 7


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        (
            np.zeros((2, 6), np.uint8),
            r"holds strings .*; a model trained with --features RGB/feature/floats:6 takes such",
        ),
        (np.zeros((2, 5), np.float32), "frame 0 of 2 holds 5 floats, not 6"),
        (np.full((2, 6), np.nan, np.float32), "input 0 of 8 is nan"),
        (np.full((2, 6), -np.inf, np.float32), "input 0 of 8 is -inf"),
        (np.zeros((3, 6), np.float32), "differ in their number of frames"),
    ],
)
def test_odd_float_frames_are_refused(rgb, message):
    with pytest.raises(RecordError, match=message):
        pool_frames(parse_video(float_level(rgb, frames(2, 2)), FLOATS), FLOATS)


def test_other_keys_can_be_named():
    spec = dataclasses.replace(SPEC, id_keys=("clip/id",), labels_key="clip/label/index")
    payload = serialize_record(
        {"clip/id": b"v", "clip/label/index": [3], "id": b"other"}, {"rgb": frames(1, 6), "audio": frames(1, 2)}
    )
    video = parse_video(payload, spec)
    assert (video.id, video.labels.tolist()) == (b"v", [3])


def test_more_frames_than_32_bits_can_sum():
    """16,843,010 frames of 255: one row, seen again and again."""
    rows = np.broadcast_to(np.array([[255]], np.uint8), (16_843_010, 1))
    assert sum_frames(rows).tolist() == [16_843_010 * 255]
    assert 16_843_010 * 255 > 2**32
    video = Video(b"v", np.empty(0, np.int32), {"tiny": rows})
    spec = FeatureSpec.parse("tiny:1")
    np.testing.assert_array_equal(pool_frames(video, spec).x, spec.dequantize(np.array([255.0])).astype(np.float32))


def test_the_error_knows_the_video_where_it_could_be_read():
    with pytest.raises(RecordError) as error:
        pool(frame_level(frames(2, 5), frames(2, 2)))
    assert error.value.video_id == b"v"


def test_real_frames_pool_to_what_a_plain_computation_gives(data_dir):
    tf = pytest.importorskip("tensorflow")
    path = data_dir / "yt8m_frame" / "SjJ3.tfrecord"
    spec = FeatureSpec()
    with path.open("rb") as file:
        ((_, payload),) = read_tfrecords(file)
    video = pool_frames(parse_video(payload, spec), spec)
    message = tf.train.SequenceExample.FromString(payload)
    quantized = [
        np.stack(
            [np.frombuffer(f.bytes_list.value[0], np.uint8) for f in message.feature_lists.feature_list[k].feature]
        )
        for k in ("rgb", "audio")
    ]
    dequantized = np.concatenate(quantized, axis=1) * (4 / 255) + (4 / 512 - 2)
    np.testing.assert_allclose(video.x, dequantized.mean(axis=0), atol=1e-6)
    assert video.num_frames == 170
