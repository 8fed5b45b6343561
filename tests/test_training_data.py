"""Reading and pooling of training data, and the order of batches."""

import dataclasses
import gzip
import itertools
import pathlib

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the extra vidpress[train]")

from conftest import SPEC, frame_level, video_level, write_records

from vidpress.model.features import FeatureSpec
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.model.training.training_data import TrainingDataError, load_videos, match_files, training_batches

NUM_CLASSES = 7

# Fingerprints of 600 made-up videos, as TensorFlow's own parsing gave them.
FRAME_LEVEL = "bf4ec7fd6e98db59098f00c5818fdd8bc422e02c8eaf2c1a5872f9b645461788"
VIDEO_LEVEL = "620c919b60c55070e9cc8b0589dcd0034cfae11deaf01e1f81e75906995f2be0"


@pytest.fixture
def videos(tmp_path):
    return load_videos([write_records(tmp_path / "a.tfrecord", list(map(video_level, range(60))))], SPEC, NUM_CLASSES)


@pytest.mark.parametrize("make", [frame_level, video_level])
def test_videos_are_those_of_the_reader_of_records(tmp_path, make):
    payloads = list(map(make, range(600)))
    files = [write_records(tmp_path / f"{index}.tfrecord", payloads[index::3]) for index in range(3)]
    pooled = [pool_frames(parse_video(p, SPEC), SPEC) for index in range(3) for p in payloads[index::3]]
    expected = [video for video in pooled if len(video.labels)]
    seen = []
    videos = load_videos(files, SPEC, NUM_CLASSES, progress=seen.append)
    assert len(videos) == len(expected)
    assert videos.x.tobytes() == np.stack([video.x for video in expected]).tobytes()
    dense = videos.multi_hot(np.arange(len(videos)), NUM_CLASSES)
    assert [np.flatnonzero(row).tolist() for row in dense] == [sorted(video.labels) for video in expected]
    assert videos.num_unlabelled == 600 - len(expected) > 0
    assert sum(seen) == videos.fingerprint["records"] == 600
    assert videos.fingerprint["labelled_videos"] == len(expected)


def test_the_fingerprint_tells_data_apart(tmp_path):
    def fingerprint(name, payloads):
        return load_videos([write_records(tmp_path / name, payloads)], SPEC, NUM_CLASSES).fingerprint

    payloads = list(map(video_level, range(9)))
    first = fingerprint("a", payloads)
    assert fingerprint("a", payloads) == first
    assert first["sha256"] not in (fingerprint("b", payloads)["sha256"], fingerprint("a", payloads[::-1])["sha256"])


def test_a_sample_has_videos_at_even_distances_with_their_labels(videos):
    sample = videos.sample(10)
    rows = np.linspace(0, len(videos) - 1, 10).astype(int)
    assert sample.x.tobytes() == videos.x[rows].tobytes()
    everything = np.arange(10)
    assert (sample.multi_hot(everything, NUM_CLASSES) == videos.multi_hot(rows, NUM_CLASSES)).all()
    assert videos.sample(len(videos)) is videos


def test_other_ids_features_and_compression(tmp_path):
    spec = FeatureSpec.parse("audio_embedding:5")
    frames = np.arange(15, dtype=np.uint8).reshape(3, 5)
    payload = serialize_record({"video_id": b"v", "labels": [3], "start": [1]}, {"audio_embedding": frames})
    plain = pathlib.Path(write_records(tmp_path / "a.tfrecord", [payload]))
    packed = tmp_path / "a.tfrecord.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    videos = load_videos([str(plain), str(packed)], spec, 4)
    np.testing.assert_array_equal(videos.x, [spec.dequantize(frames.mean(axis=0)).astype(np.float32)] * 2)


def in_numpy(batches):
    """Of what Keras' backend takes."""
    return (tuple(map(np.asarray, batch)) for batch in batches)


@pytest.mark.parametrize("batch_size", [7, 59, 150])
def test_every_epoch_has_every_video_once_in_an_order_of_its_own(videos, batch_size):
    num_videos = len(videos)
    batches = training_batches(
        videos, num_classes=NUM_CLASSES, batch_size=batch_size, seed=3, first_step=0, num_steps=3 * num_videos
    )
    x, labels = zip(*itertools.islice(in_numpy(batches), -(-2 * num_videos // batch_size)), strict=True)
    assert all(len(batch) == batch_size for batch in x)
    x, labels = np.concatenate(x), np.concatenate(labels)
    rows = [int(np.flatnonzero((videos.x == video).all(axis=1))[0]) for video in x[: 2 * num_videos]]
    assert sorted(rows[:num_videos]) == sorted(rows[num_videos:]) == list(range(num_videos))
    assert rows[:num_videos] != rows[num_videos:]
    np.testing.assert_array_equal(labels[: len(rows)], videos.multi_hot(np.array(rows), NUM_CLASSES))


@pytest.mark.parametrize("mix", [False, True])
def test_a_batch_depends_on_seed_and_step_alone(videos, mix):
    def batches(seed, first_step, num_steps):
        dataset = training_batches(
            videos,
            num_classes=NUM_CLASSES,
            batch_size=8,
            seed=seed,
            first_step=first_step,
            num_steps=num_steps,
            mix=mix,
        )
        return [x.tobytes() + labels.tobytes() for x, labels in in_numpy(dataset)]

    through = batches(0, 0, 30)
    assert batches(0, 13, 17) == through[13:]
    assert batches(1, 0, 30) != through
    assert batches(0, 5, 0) == []


def test_mixtures_are_of_two_videos_and_mostly_of_the_first(videos):
    options = {"num_classes": NUM_CLASSES, "batch_size": 9, "seed": 0, "first_step": 0, "num_steps": 200}
    alone = in_numpy(training_batches(videos, **options))
    mixed = in_numpy(training_batches(videos, **options, mix=True))
    shares = []
    for (x, labels), (mixture, same_labels) in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(labels, same_labels)
        other = x[::-1]
        # The share that explains a mixture best, and whether it explains it.
        distance = (x - other).astype(np.float64)
        share = ((mixture - other) * distance).sum(axis=1) / np.maximum((distance**2).sum(axis=1), 1e-9)
        np.testing.assert_allclose(mixture, share[:, None] * distance + other, atol=1e-5)
        shares.extend(share[distance.any(axis=1)])  # the middle one is mixed with itself
    assert 0.5 - 1e-4 < min(shares) < 0.51
    assert 0.99 < max(shares) < 1 + 1e-4
    assert np.mean(shares) == pytest.approx(0.75, abs=0.02)


def test_class_frequencies_are_within_zero_and_one(tmp_path):
    payloads = [video_level(0, labels=[0, 1]), video_level(1, labels=[1])]
    videos = load_videos([write_records(tmp_path / "a.tfrecord", payloads)], SPEC, 3)
    np.testing.assert_allclose(videos.class_frequencies(3), [1.5 / 3, 2.5 / 3, 0.5 / 3])


def test_patterns_are_matched(tmp_path):
    names = [write_records(tmp_path / name, [video_level(0)]) for name in ("b.tfrecord", "a.tfrecord", "c.txt")]
    assert match_files([str(tmp_path / "*.tfrecord"), names[0]]) == sorted(names[:2])
    with pytest.raises(TrainingDataError, match=r"no-such.* matches no file"):
        match_files([names[0], str(tmp_path / "no-such*")])


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


class TestBadInput:
    """Every error names the second of three files, which is the bad one."""

    @pytest.fixture
    def files(self, tmp_path):
        return [tmp_path / f"{index}.tfrecord" for index in range(3)]

    def error(self, files, bad, make=video_level, spec=SPEC, num_classes=NUM_CLASSES, damage=None):
        for index, path in enumerate(files):
            write_records(path, [make(number) for number in range(300)] + (bad if index == 1 else []))
        if damage:
            damage(files[1])
        with pytest.raises(TrainingDataError, match=r"1\.tfrecord") as info:
            load_videos(list(map(str, files)), spec, num_classes)
        return str(info.value)

    def test_a_damaged_record(self, files):
        error = self.error(files, [], damage=lambda path: flip(path, path.stat().st_size // 2))
        assert "checksum" in error
        assert "byte" in error

    def test_a_truncated_file(self, files):
        error = self.error(files, [], damage=lambda path: path.write_bytes(path.read_bytes()[:-10]))
        assert "file ends within" in error

    def test_a_missing_feature(self, files):
        bad = serialize_record({"id": b"x", "labels": [1], "mean_rgb": np.zeros(24, np.float32)})
        assert "feature 'audio' is missing" in self.error(files, [bad])

    def test_a_misshapen_feature(self, files):
        assert "has 23 numbers, not 24" in self.error(files, [video_level(0, mean_rgb=np.zeros(23, np.float32))])

    def test_misshapen_frames(self, files):
        bad = frame_level(0, FeatureSpec.parse("rgb:25,audio:8"))
        assert "feature 'rgb'" in self.error(files, [bad], frame_level)

    def test_no_frames(self, files):
        assert "no frames" in self.error(files, [frame_level(0, num_frames=0)], frame_level)

    def test_features_of_different_lengths(self, files):
        frames = {"rgb": np.zeros((2, 24), np.uint8), "audio": np.zeros((3, 8), np.uint8)}
        assert "differ" in self.error(files, [serialize_record({"id": b"x", "labels": [1]}, frames)], frame_level)

    def test_nan(self, files):
        bad = video_level(0, mean_rgb=np.full(24, np.nan, np.float32))
        assert "NaN" in self.error(files, [bad])

    def test_a_label_that_is_no_class(self, files):
        error = self.error(files, [video_level(0, labels=[7])])
        assert "label 7 is not among the 7 classes" in error
        assert "--classes" in error

    @pytest.mark.parametrize(("make", "other"), [(video_level, frame_level), (frame_level, video_level)])
    def test_two_kinds_of_files(self, files, make, other):
        assert "level, as the first record is" in self.error(files, [other(0)], make)

    def test_no_message(self, files):
        assert "not a tf.train" in self.error(files, [b"\xff\xff"])

    def test_labels_of_another_kind(self, files):
        error = self.error(files, [video_level(0, labels=b"/m/09x0r")])
        assert "byte" in error
        assert "must be class indices, but holds strings (bytes_list)" in error

    def test_frames_of_another_kind(self, files):
        bad = serialize_record(
            {"id": b"x"}, {"rgb": np.zeros((2, 24), np.float32), "audio": np.zeros((2, 8), np.uint8)}
        )
        assert "--features rgb:24:float takes such frames" in self.error(files, [bad], frame_level)

    def test_what_is_no_tfrecord_file_is_named(self, files):
        error = self.error(files, [], damage=lambda path: path.write_bytes(b"<html></html>"))
        assert "is not a TFRecord file" in error
        assert "is a web page" in error

    def test_a_file_that_is_gone(self, files):
        assert "cannot be read: No such file" in self.error(files, [], damage=lambda path: path.unlink())


def test_gzip_is_told_by_the_first_bytes(tmp_path):
    plain = pathlib.Path(write_records(tmp_path / "a", [video_level(index) for index in range(9)]))
    packed = tmp_path / "b.tfrecord"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = (load_videos([str(path)], SPEC, NUM_CLASSES) for path in (plain, packed))
    assert one.x.tobytes() == other.x.tobytes()
    assert one.labels.tolist() == other.labels.tolist()


def test_keys_and_float_frames(tmp_path):
    spec = FeatureSpec.parse("RGB/feature/floats:4:float:0.5")
    spec = dataclasses.replace(spec, id_keys=("clip/data_path",), labels_key="clip/label/index")
    frames = np.arange(12, dtype=np.float32).reshape(3, 4)
    payload = serialize_record({"clip/data_path": b"v", "clip/label/index": [3]}, {"RGB/feature/floats": frames})
    videos = load_videos([write_records(tmp_path / "a", [payload])], spec, 4)
    np.testing.assert_array_equal(videos.x, [frames.mean(axis=0) / 2])
    assert videos.labels.tolist() == [3]


def test_a_fingerprint_is_what_it_always_was(tmp_path):
    """Of both kinds, over several chunks; runs that are resumed compare it."""
    made = [
        load_videos([write_records(tmp_path / "a.tfrecord", list(map(make, range(600))))], SPEC, NUM_CLASSES)
        for make in (frame_level, video_level)
    ]
    assert [videos.fingerprint["sha256"] for videos in made] == [FRAME_LEVEL, VIDEO_LEVEL]


def test_nothing_to_learn_from(tmp_path):
    unlabelled = write_records(tmp_path / "a.tfrecord", [video_level(0, labels=[])])
    with pytest.raises(TrainingDataError, match=r"None of the 1 videos in .*a.tfrecord has labels"):
        load_videos([unlabelled], SPEC, NUM_CLASSES)
    other = write_records(
        tmp_path / "d.tfrecord", [serialize_record({"id": b"v", "label": [1], "mean_rgb": np.zeros(24)})]
    )
    with pytest.raises(TrainingDataError, match=r"--labels_key; keys are \['id', 'label', 'mean_rgb'\]"):
        load_videos([other], FeatureSpec.parse("rgb:24"), NUM_CLASSES)
    empty = write_records(tmp_path / "b.tfrecord", [])
    with pytest.raises(TrainingDataError, match=r"b.tfrecord holds no records"):
        load_videos([empty], SPEC, NUM_CLASSES)
    text = tmp_path / "c.txt"
    text.write_text("This is no TFRecord file.")
    with pytest.raises(TrainingDataError, match=r"c.txt is not a TFRecord file"):
        load_videos([str(text)], SPEC, NUM_CLASSES)


def test_real_files_of_all_kinds(data_dir):
    youtube_8m = FeatureSpec()
    videos = load_videos([str(data_dir / "yt8m_frame" / "SjJ3.tfrecord")], youtube_8m, 3862)
    assert videos.x.shape == (1, 1152)
    videos = load_videos(match_files([str(data_dir / "yt8m_v1_video" / "*")]), youtube_8m, 4716)
    assert len(videos) > 0
    assert videos.num_unlabelled > 0
    audio_set = match_files([str(data_dir / "audioset_vggish_frames" / "bal_train-0000[0]*")])
    videos = load_videos(audio_set, FeatureSpec.parse("audio_embedding:128"), 527)
    assert videos.x.shape[1] == 128
    assert videos.fingerprint["records"] >= len(videos)


def test_relabelled_videos_have_other_classes(videos):
    new_class = np.full(NUM_CLASSES, -1)
    new_class[[1, 3]] = (0, 1)
    found = videos.relabelled(new_class, "two classes")
    before = [videos.labels[start:end].tolist() for start, end in itertools.pairwise(videos.label_start)]
    after = [found.labels[start:end].tolist() for start, end in itertools.pairwise(found.label_start)]
    expected = [[int(new_class[label]) for label in labels if new_class[label] >= 0] for labels in before]
    kept = [row for row, labels in enumerate(expected) if labels]
    assert after == [expected[row] for row in kept]
    np.testing.assert_array_equal(found.x, videos.x[kept])
    assert found.num_unlabelled == videos.num_unlabelled + len(videos) - len(kept)
    assert found.fingerprint["labelled_videos"] == len(kept)
    digests = {each.fingerprint["sha256"] for each in (videos, found, videos.relabelled(new_class, "others"))}
    assert len(digests) == 3
    assert videos.relabelled(new_class, "two classes").fingerprint == found.fingerprint
    same = videos.relabelled(np.arange(NUM_CLASSES), "all")
    np.testing.assert_array_equal(same.labels, videos.labels)
    assert len(videos.relabelled(np.full(NUM_CLASSES, -1), "none")) == 0
