import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.records.examples import KindError, RecordError, parse_record, serialize_record
from vidpress.model.records.frames import frame_matrix


def feature_list(frames: np.ndarray) -> bytes:
    return bytes(parse_record(serialize_record({}, {"rgb": frames}))[1]["rgb"])


@given(st.integers(0, 5), st.sampled_from([1, 2, 127, 128, 129, 1024, 16384]), st.integers(0, 2**32 - 1))
def test_frames_round_trip(num_frames, size, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, size), np.uint8)
    matrix = frame_matrix(feature_list(frames), size)
    np.testing.assert_array_equal(matrix, frames)


def test_frames_are_a_view_not_a_copy():
    assert frame_matrix(feature_list(np.ones((3, 128), np.uint8)), 128).base is not None


def test_frames_in_another_valid_encoding_are_parsed_in_full():
    """Protocol buffers allow unknown fields, which a strict stride would trip over."""
    frames = np.arange(20, dtype=np.uint8).reshape(2, 10)
    unknown = bytes([0x78, 0x01])  # field 15, varint 1
    np.testing.assert_array_equal(frame_matrix(feature_list(frames) + unknown, 10), frames)


@pytest.mark.parametrize("size", [9, 11, 1])
def test_frames_of_another_size_are_refused(size):
    with pytest.raises(RecordError, match=rf"frame 0 of 2 holds \[10\] bytes, not \[{size}\]"):
        frame_matrix(feature_list(np.zeros((2, 10), np.uint8)), size)


def test_one_frame_of_another_size_is_refused():
    mixed = feature_list(np.zeros((2, 10), np.uint8)) + feature_list(np.zeros((1, 12), np.uint8))
    with pytest.raises(RecordError, match="frame 2 of 3"):
        frame_matrix(mixed, 10)


def test_a_float_list_of_frames_is_refused():
    payload = serialize_record({"x": np.zeros(3, np.float32)})
    feature = parse_record(payload)[0]["x"]
    with pytest.raises(RecordError, match="frame 0 of 1 holds"):
        frame_matrix(bytes([0x0A, len(feature)]) + feature, 10)


@given(st.integers(0, 5), st.sampled_from([1, 2, 31, 32, 128]), st.integers(0, 2**32 - 1))
def test_float_frames_round_trip_packed_and_unpacked(num_frames, size, seed):
    frames = np.random.default_rng(seed).normal(size=(num_frames, size)).astype(np.float32)
    packed = feature_list(frames)
    unpacked = b"".join(field(1, field(2, b"".join(b"\x0d" + value.tobytes() for value in frame))) for frame in frames)
    for encoded in (packed, unpacked, packed + b"\x78\x01"):
        matrix = frame_matrix(encoded, size, floats=True)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, frames)


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 2**14
    size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 0x7F | 0x80, len(value) >> 7])
    return bytes([number << 3 | 2]) + size + value


@pytest.mark.parametrize(
    ("frames", "floats", "message"),
    [
        (np.zeros((2, 4), np.float32), False, r"frame 0 of 2 holds floats \(float_list\), not strings"),
        (np.zeros((2, 4), np.uint8), True, r"frame 0 of 2 holds strings \(bytes_list\), not floats"),
    ],
)
def test_frames_of_another_kind_are_refused(frames, floats, message):
    with pytest.raises(KindError, match=message):
        frame_matrix(feature_list(frames), 4, floats=floats)


@pytest.mark.parametrize(
    ("encoded", "floats", "message"),
    [
        (field(1, field(2, field(1, bytes(12)))), True, "frame 0 of 1 holds 3 floats, not 4"),
        (field(1, field(1, 2 * field(1, bytes(4)))), False, "frame 0 of 1 holds 2 strings of bytes, not one"),
        (field(1, b""), False, "frame 0 of 1 holds nothing"),
        (field(1, field(3, field(1, bytes(4)))), False, r"frame 0 of 1 holds integers \(int64_list\)"),
        (field(1, b"\x0a\x7f"), False, "not a tf.train.FeatureList"),
        (b"\x0a\x7f", False, "not a tf.train.FeatureList"),
    ],
)
def test_odd_frames_are_refused(encoded, floats, message):
    with pytest.raises(RecordError, match=message):
        frame_matrix(encoded, 4, floats=floats)


def test_of_two_kinds_in_a_frame_the_last_one_counts():
    frame = field(1, field(3, field(1, b"\1")) + field(1, field(1, bytes(4))))
    np.testing.assert_array_equal(frame_matrix(frame, 4), np.zeros((1, 4)))
