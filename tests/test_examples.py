import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model import examples
from vidpress.model.examples import RecordError, frame_matrix, parse_record, serialize_record


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


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=300))
def test_floats_round_trip(values):
    feature = parse_record(serialize_record({"x": np.array(values, np.float32)}))[0]["x"]
    np.testing.assert_array_equal(examples.float_values(feature), np.array(values, np.float32))


def test_unpacked_floats_are_read():
    unpacked = b"".join(b"\x0d" + np.float32(value).tobytes() for value in (1.5, -2.0))
    feature = bytes([0x12, len(unpacked)]) + unpacked
    np.testing.assert_array_equal(examples.float_values(feature), [1.5, -2.0])


@pytest.mark.parametrize("payload", [b"\xff", b"not a message", bytes(100), b"\x0a\x7f"])
def test_what_is_no_message_is_refused(payload):
    with pytest.raises(RecordError, match=r"not a tf\.train\.Example"):
        parse_record(payload)


def test_reads_and_writes_tensorflows_messages():
    tf = pytest.importorskip("tensorflow")
    frames = np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(3, 100)
    payload = serialize_record(
        {"id": b"abc", "labels": [3, 70000], "mean_rgb": np.array([0.5, -1.0], np.float32)}, {"rgb": frames}
    )
    message = tf.train.SequenceExample.FromString(payload)
    assert message.context.feature["id"].bytes_list.value[0] == b"abc"
    assert list(message.context.feature["labels"].int64_list.value) == [3, 70000]
    assert list(message.context.feature["mean_rgb"].float_list.value) == [0.5, -1.0]
    assert [f.bytes_list.value[0] for f in message.feature_lists.feature_list["rgb"].feature] == [
        frame.tobytes() for frame in frames
    ]
    context, feature_lists = parse_record(message.SerializeToString())
    assert list(examples.int64_values(context["labels"])) == [3, 70000]
    np.testing.assert_array_equal(frame_matrix(feature_lists["rgb"], 100), frames)


def parsed_in_full(payload):
    try:
        record = examples._messages()["LazyRecord"].FromString(payload)
    except DecodeError:
        return None
    return dict(record.context.feature), dict(record.feature_lists.feature_list)


@given(st.data())
def test_any_bytes_are_read_as_protocol_buffers_read_them(data):
    """Cut, doubled and overwritten messages: what is found without the parser is what the parser finds."""
    payload = bytearray(
        serialize_record(
            {"id": b"abc", "labels": [3, 70000], "mean_rgb": np.ones(40, np.float32)},
            {"rgb": np.ones((3, 20), np.uint8), "audio": np.zeros((2, 5), np.uint8)},
        )
    )
    for _ in range(data.draw(st.integers(0, 3))):
        begin, end = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(payload))])))
        change = data.draw(st.sampled_from(["cut", "double", "overwrite"]))
        if change == "cut":
            del payload[begin:end]
        elif change == "double":
            payload += payload[begin:end]
        elif begin < len(payload):
            payload[begin] = data.draw(st.sampled_from([0, 1, 2, 0x0A, 0x12, 0x7F, 0x80, 0xFF]))
    expected = parsed_in_full(bytes(payload))
    if expected is None:
        with pytest.raises(RecordError, match=r"not a tf\.train\.Example"):
            parse_record(bytes(payload))
    else:
        context, feature_lists = parse_record(bytes(payload))
        assert (dict(context), {name: bytes(value) for name, value in feature_lists.items()}) == expected


def test_more_features_than_usual_are_read():
    names = [f"feature{index}" for index in range(1000)]
    assert sorted(parse_record(serialize_record(dict.fromkeys(names, b"x")))[0]) == sorted(names)
