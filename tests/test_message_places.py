"""What is found in a message's bytes, against protocol buffers."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpress.model.records import examples
from vidpress.model.records.examples import RecordError, parse_record, serialize_record
from vidpress.model.records.frames import frame_matrix

KINDS = {"bytes_list": examples.bytes_values, "float_list": examples.float_values, "int64_list": examples.int64_values}


def parsed_in_full(payload):
    try:
        return examples._messages()["Record"].FromString(payload)
    except DecodeError:
        return None


def differs_by_design(message) -> bool:
    """Whether unknown fields at any depth are groups, which are not read, or map entries.

    A map entry that has an unknown field is an unknown field to Python's protocol buffers, unlike to TensorFlow's.
    """
    maps = "feature" in message.DESCRIPTOR.fields_by_name or "feature_list" in message.DESCRIPTOR.fields_by_name
    if any(field.wire_type == 3 or (maps and field.field_number == 1) for field in UnknownFieldSet(message)):
        return True
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            parts = list(value.values())
        else:
            parts = list(value) if descriptor.label == descriptor.LABEL_REPEATED else [value]
        if any(differs_by_design(part) for part in parts):
            return True
    return False


def same(found, wanted) -> bool:
    """Whether values are the same; a NaN is equal to any other, since not all survive the way through Python."""
    if isinstance(found, list):
        return found == wanted
    return np.array_equal(found, np.array(wanted, found.dtype), equal_nan=found.dtype.kind == "f")


def check(payload: bytes) -> None:
    """See that the whole of a valid message is read as protocol buffers read it."""
    record = parsed_in_full(payload)
    if record is None or differs_by_design(record):
        try:
            parse_record(payload)  # a feature that nobody asks for may be malformed
        except RecordError as error:
            assert "not a tf.train.Example" in str(error)
        return
    try:
        context, feature_lists = parse_record(payload)
    except RecordError:
        # A group that was overwritten by a later part is gone from the record.
        assert any(byte & 7 == 3 for byte in payload)
        return
    assert set(context) == set(record.context.feature)
    assert set(feature_lists) == set(record.feature_lists.feature_list)
    for name, feature in record.context.feature.items():
        kind = feature.WhichOneof("kind")
        for other, read in KINDS.items():
            if kind in (None, other):
                assert same(read(context[name]), list(getattr(feature, other).value))
            else:
                with pytest.raises(RecordError, match="holds"):
                    read(context[name])
    for name, feature_list in record.feature_lists.feature_list.items():
        frames = [list(feature.bytes_list.value) for feature in feature_list.feature]
        try:
            matrix = frame_matrix(feature_lists[name], 20)
        except RecordError as error:
            assert any(len(frame) != 1 or len(frame[0]) != 20 for frame in frames), error
        else:
            assert [[row.tobytes()] for row in matrix] == frames


PAYLOAD = serialize_record(
    {"id": b"abc", "labels": [3, 70000, -1], "mean_rgb": np.linspace(-1, 1, 40).astype(np.float32), "x": [1]},
    {"rgb": np.ones((3, 20), np.uint8), "audio": np.zeros((2, 20), np.uint8)},
)


@settings(max_examples=200)
@given(st.data())
def test_any_bytes_are_read_as_protocol_buffers_read_them(data):
    """Cut, doubled and overwritten messages."""
    payload = bytearray(PAYLOAD)
    for _ in range(data.draw(st.integers(0, 4))):
        begin, end = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(payload))])))
        change = data.draw(st.sampled_from(["cut", "double", "overwrite", "overwrite"]))
        if change == "cut":
            del payload[begin:end]
        elif change == "double":
            payload += payload[begin:end]
        elif begin < len(payload):
            payload[begin] = data.draw(st.sampled_from([0, 1, 2, 0x08, 0x0A, 0x0D, 0x12, 0x1A, 0x7F, 0x80, 0xFF]))
    check(bytes(payload))


def delimited(number: int, value: bytes) -> bytes:
    return examples.delimited(number, len(value)) + value


def wild_field(draw, number: int, value: bytes) -> bytes:
    """A field, perhaps between unknown ones, perhaps with a length that takes more bytes than it needs."""
    unknown = st.sampled_from([b"", b"", b"\x78\x01", b"\x7a\x01x", b"\x7d1234", b"\x7912345678", b"\xf8\x07\x80\x01"])
    size = len(value)
    length = bytes([size & 0x7F | 0x80, size >> 7 | 0x80, 0]) if draw(st.booleans()) else examples._varint(size)
    return draw(unknown) + bytes([number << 3 | 2]) + length + value + draw(unknown)


@st.composite
def wild_features(draw) -> bytes:
    """A valid `Feature` of one or several kinds, in any form."""
    out = b""
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.integers(1, 3))
        items = b""
        for _ in range(draw(st.integers(0, 3))):
            if kind == 1:
                items += wild_field(draw, 1, draw(st.binary(max_size=3)))
            elif kind == 2:
                number = draw(st.binary(min_size=4, max_size=4))
                items += b"\x0d" + number if draw(st.booleans()) else wild_field(draw, 1, 2 * number)
            else:
                number = examples._varint(draw(st.integers(0, 2**64 - 1)))
                items += b"\x08" + number if draw(st.booleans()) else wild_field(draw, 1, 2 * number)
        out += wild_field(draw, kind, items)
    return out


@st.composite
def wild_records(draw) -> bytes:
    """A valid record whose map entries come in any order, twice, in parts, without name or value."""
    out = b""
    for _ in range(draw(st.integers(1, 3))):
        entries = b""
        for _ in range(draw(st.integers(0, 3))):
            name = wild_field(draw, 1, draw(st.sampled_from([b"", b"id", b"labels", "\u00e4".encode()])))
            parts = [wild_field(draw, 2, part) for part in draw(st.lists(wild_features(), max_size=3))]
            entries += wild_field(draw, 1, b"".join(draw(st.permutations([name, *parts]))))
        out += wild_field(draw, 1, entries)
    return out


@settings(max_examples=200)
@given(wild_records())
def test_any_form_of_a_valid_message_is_read(payload):
    assert parsed_in_full(payload) is not None
    check(payload)


def test_a_value_in_parts_is_merged_as_tensorflow_merges_it():
    tf = pytest.importorskip("tensorflow")

    def frames(value, count):
        return count * delimited(1, delimited(1, delimited(1, bytes([value]) * 20)))

    entry = delimited(1, b"rgb") + delimited(2, frames(0, 1)) + delimited(2, frames(200, 2))
    payload = delimited(2, delimited(1, entry))
    theirs = tf.train.SequenceExample.FromString(payload).feature_lists.feature_list["rgb"]
    ours = frame_matrix(parse_record(payload)[1]["rgb"], 20)
    assert [row.tobytes() for row in ours] == [frame.bytes_list.value[0] for frame in theirs.feature]
    assert ours[:, 0].tolist() == [0, 200, 200]


def test_of_two_kinds_the_last_one_counts_as_in_tensorflow():
    tf = pytest.importorskip("tensorflow")
    labels = delimited(3, delimited(1, b"\x05")) + delimited(2, delimited(1, bytes(4)))
    payload = delimited(1, delimited(1, delimited(1, b"labels") + delimited(2, labels)))
    assert tf.train.Example.FromString(payload).features.feature["labels"].WhichOneof("kind") == "float_list"
    with pytest.raises(RecordError, match="holds floats"):
        examples.int64_values(parse_record(payload)[0]["labels"])
