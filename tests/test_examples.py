import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.records import examples
from vidpress.model.records.examples import KindError, RecordError, parse_record, serialize_record
from vidpress.model.records.frames import frame_matrix
from vidpress.model.records.message_places import MAX_ENTRIES


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


def test_more_features_than_usual_are_read():
    names = [f"feature{index}" for index in range(1000)]
    assert sorted(parse_record(serialize_record(dict.fromkeys(names, b"x")))[0]) == sorted(names)


def test_too_many_features_are_refused_whatever_their_form():
    names = [f"feature{index}" for index in range(MAX_ENTRIES + 1)]
    with pytest.raises(RecordError, match="more than 4,096 features"):
        parse_record(serialize_record(dict.fromkeys(names, b"x")))
    part = bytes([0x12, 0x00])  # a value, empty
    entry = part * (MAX_ENTRIES + 1)
    entry = b"\x0a" + varint(len(entry)) + entry
    with pytest.raises(RecordError, match="more than 4,096 features"):
        parse_record(b"\x0a" + varint(len(entry)) + entry)


def test_a_long_name_is_refused():
    with pytest.raises(RecordError, match="name has more than 4,096 bytes"):
        parse_record(serialize_record({"x" * 5000: [1]}))


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        ([1], examples.bytes_values, r"integers \(int64_list\), not strings \(bytes_list\)"),
        (b"x", examples.int64_values, r"strings \(bytes_list\), not integers \(int64_list\)"),
        (np.ones(2), examples.int64_values, r"floats \(float_list\), not integers \(int64_list\)"),
        (b"x", examples.float_values, r"strings \(bytes_list\), not floats \(float_list\)"),
    ],
)
def test_values_of_another_kind_are_refused(value, read, message):
    with pytest.raises(KindError, match=f"holds {message}"):
        read(parse_record(serialize_record({"x": value}))[0]["x"])


@pytest.mark.parametrize("read", [examples.bytes_values, examples.int64_values, examples.float_values])
def test_a_feature_without_a_kind_is_empty(read):
    assert len(read(b"")) == 0


def test_more_values_than_are_wanted_are_not_read():
    feature = parse_record(serialize_record({"x": [1] * 20}))[0]["x"]
    assert len(examples.int64_values(feature, max_values=20)) == 20
    with pytest.raises(RecordError, match="has 20 values, more than 19"):
        examples.int64_values(feature, max_values=19)


@pytest.mark.parametrize(("values", "bad"), [([5, 8, 6], 8), ([2, 5], 2), ([-1, 9], -1)])
def test_values_out_of_range_are_refused(values, bad):
    feature = parse_record(serialize_record({"x": values}))[0]["x"]
    with pytest.raises(RecordError, match=f"has {bad}, which does not lie in 3 to 7"):
        examples.int64_values(feature, least=3, greatest=7)


@pytest.mark.parametrize("size", [1, 2, 100, 125, 126, 127, 128, 5000])
def test_strings_of_any_size_are_read(size):
    feature = parse_record(serialize_record({"x": b"a" * size}))[0]["x"]
    assert examples.bytes_values(feature) == [b"a" * size]
