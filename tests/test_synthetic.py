import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpress.model.features import Feature, FeatureSpec
from vidpress.model.records import synthetic
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.model.records.videos import parse_video, pool_frames

SMALL = FeatureSpec(features=(Feature("rgb", 48), Feature("audio", 16)))


def pooled(payloads, spec):
    return [pool_frames(parse_video(payload, spec), spec) for payload in payloads]


def test_tensorflow_parses_the_records_as_youtube_8m():
    tf = pytest.importorskip("tensorflow")
    for payload in synthetic.make_videos(3, frames=(5, 9), seed=2):
        context, sequences = tf.io.parse_single_sequence_example(
            payload,
            context_features={
                "id": tf.io.FixedLenFeature([], tf.string),
                "labels": tf.io.VarLenFeature(tf.int64),
            },
            sequence_features={
                "rgb": tf.io.FixedLenSequenceFeature([], tf.string),
                "audio": tf.io.FixedLenSequenceFeature([], tf.string),
            },
        )
        video = parse_video(payload, FeatureSpec())
        assert context["id"].numpy() == video.id
        assert context["labels"].values.numpy().tolist() == video.labels.tolist()
        for name, size in (("rgb", 1024), ("audio", 128)):
            frames = tf.io.decode_raw(sequences[name], tf.uint8).numpy()
            assert frames.shape[1] == size
            np.testing.assert_array_equal(frames, video.features[name])


def test_ids_say_that_they_are_synthetic_and_are_unique():
    ids = [video.id for video in pooled(synthetic.make_videos(50, spec=SMALL, frames=(1, 3)), SMALL)]
    assert len(set(ids)) == 50
    assert all(video_id.startswith(b"synthetic-") for video_id in ids)


def test_the_spec_gives_names_sizes_and_keys():
    spec = FeatureSpec(features=(Feature("audio_embedding", 8),), id_keys=("video_id",), labels_key="tags")
    video = parse_video(next(synthetic.make_videos(1, spec=spec, frames=(7, 7))), spec)
    assert video.features["audio_embedding"].shape == (7, 8)
    assert len(video.labels)


def test_a_video_depends_on_seed_and_index_alone():
    videos = list(synthetic.make_videos(6, spec=SMALL, seed=3, frames=(2, 9)))
    assert videos == list(synthetic.make_videos(6, spec=SMALL, seed=3, frames=(2, 9)))
    assert videos[4:] == list(synthetic.make_videos(2, spec=SMALL, seed=3, frames=(2, 9), start=4))
    assert not set(videos) & set(synthetic.make_videos(6, spec=SMALL, seed=4, frames=(2, 9)))


def test_shards_hold_the_same_videos_however_they_are_cut(tmp_path):
    def read(paths):
        payloads = []
        for path in paths:
            with path.open("rb") as file:
                payloads += [payload for _, payload in read_tfrecords(file)]
        return payloads

    two = synthetic.write_shards(tmp_path / "two", 2, 6, spec=SMALL, frames=(2, 4))
    three = synthetic.write_shards(tmp_path / "three", 3, 4, spec=SMALL, frames=(2, 4))
    assert [path.name for path in two] == [
        "synthetic-00000-of-00002.tfrecord",
        "synthetic-00001-of-00002.tfrecord",
    ]
    assert read(two) == read(three) == list(synthetic.make_videos(12, spec=SMALL, frames=(2, 4)))


def test_labels_are_about_three_a_video_and_long_tailed():
    videos = pooled(synthetic.make_videos(2000, spec=SMALL, num_classes=100, frames=(1, 1)), SMALL)
    counts = np.bincount(np.concatenate([video.labels for video in videos]), minlength=100)
    lengths = [len(video.labels) for video in videos]
    assert min(lengths) >= 1
    assert 2.8 < np.mean(lengths) < 3.2
    assert counts[0] > 10 * np.median(counts)
    assert (counts > 0).sum() > 90
    assert all((np.diff(video.labels) > 0).all() for video in videos)


def test_frames_lie_within_the_asked_lengths_and_resemble_the_one_before():
    videos = [parse_video(payload, SMALL) for payload in synthetic.make_videos(100, spec=SMALL, frames=(20, 40))]
    lengths = {len(video.features["rgb"]) for video in videos}
    assert min(lengths) >= 20
    assert max(lengths) <= 40
    assert len(lengths) > 10
    q = np.concatenate([video.features["rgb"][:20].astype(float) for video in videos], axis=1)
    q -= q.mean(axis=0)
    # Removing the mean of only 20 frames takes some of the correlation away.
    assert 0.3 < (q[1:] * q[:-1]).sum() / (q * q).sum() < 0.45


def test_classes_can_be_learned_but_not_perfectly():
    videos = pooled(synthetic.make_videos(2500, num_classes=20, frames=(4, 8)), FeatureSpec())
    x = np.stack([video.x for video in videos]).astype(np.float64)
    y = np.zeros((len(videos), 20))
    for row, video in zip(y, videos, strict=True):
        row[video.labels] = 1
    x_train, x_test, y_train, y_test = x[:2000], x[2000:], y[:2000], y[2000:]
    mean = x_train.mean(axis=0)
    covariance = (x_train - mean).T @ (x_train - mean) + 1000 * np.eye(x.shape[1])
    weights = np.linalg.solve(covariance, (x_train - mean).T @ (y_train - y_train.mean(axis=0)))
    scores = (x_test - mean) @ weights + y_train.mean(axis=0)

    def precision_at_number_of_labels(scores):
        ranked = np.argsort(-scores, axis=1)
        hits = [row[order[: int(row.sum())]].sum() for row, order in zip(y_test, ranked, strict=True)]
        return sum(hits) / y_test.sum()

    chance = precision_at_number_of_labels(np.tile(y_train.mean(axis=0), (len(y_test), 1)))
    assert chance + 0.2 < precision_at_number_of_labels(scores) < 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_videos": -1}, "num_videos=-1"),
        ({"num_videos": 1, "num_classes": 0}, "num_classes=0"),
        ({"num_videos": 1, "seed": -1}, "seed=-1"),
        ({"num_videos": 1, "frames": (0, 3)}, r"frames=\(0, 3\)"),
        ({"num_videos": 1, "frames": (4, 3)}, r"frames=\(4, 3\)"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.make_videos(**arguments)


def test_quantize_is_the_extractors_formula():
    np.testing.assert_array_equal(
        synthetic.quantize(np.array([-9, -2, -1, 0.01, 1, 2, 9], np.float32)), [0, 0, 64, 128, 191, 255, 255]
    )


@given(
    mean=st.lists(st.floats(-1.9921875, 2.0, width=32), min_size=1, max_size=5),
    num_frames=st.integers(1, 300),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_frames_around_keeps_any_mean_within_eight_bit_rounding(mean, num_frames, seed):
    mean = np.array(mean, np.float32)
    spec = FeatureSpec()
    frames = synthetic.frames_around(mean, num_frames, np.random.default_rng(seed), spec)
    assert frames.shape == (num_frames, len(mean))
    assert frames.dtype == np.uint8
    half_a_step = 0.5 * 4 / 255
    np.testing.assert_allclose(spec.dequantize(frames.mean(axis=0)), mean, rtol=0, atol=half_a_step + 0.001)


def test_frames_around_scatters_as_real_frames_do():
    frames = synthetic.frames_around(np.zeros(500, np.float32), 300, np.random.default_rng(1))
    values = frames * (4 / 255)
    values -= values.mean(axis=0)
    assert 0.42 < (values[1:] * values[:-1]).sum() / (values**2).sum() < 0.46
    assert 0.9 < values.std() < 1.0  # 1.0, but for what is clipped


def test_frames_around_keeps_the_means_of_real_videos(data_dir):
    spec = FeatureSpec()
    rng = np.random.default_rng(0)
    with (data_dir / "yt8m_v2_video" / "validate0100.tfrecord").open("rb") as file:
        payloads = [payload for _, payload in read_tfrecords(file)][:20]
    for video in pooled(payloads, spec):
        frames = synthetic.frames_around(video.x, 230, rng, spec)
        again = pooled([synthetic.serialize_video(video.id, video.labels, frames, spec)], spec)[0]
        assert again.id == video.id
        assert again.labels.tolist() == video.labels.tolist()
        # The rounding errors of 230 frames mostly cancel.
        assert np.abs(again.x - video.x).max() < 0.2 * 4 / 255
