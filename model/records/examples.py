"""`tf.train.Example` and `tf.train.SequenceExample` without TensorFlow.

For reading, `message_places` finds everything in the bytes, in whatever form it was encoded, and counts before anything
is allocated: a hostile record costs little more than its own size. For writing, the messages of
tensorflow/core/example/{example,feature}.proto are declared here a second time.

An `Example` is a `SequenceExample` without feature lists (both keep their `Features` in field 1), so one message
serves for both.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidpress.model.extras import needed
from vidpress.model.records import message_places
from vidpress.model.records.message_places import BYTES, FLOATS, INTEGERS, MAX_ENTRIES, MAX_NAME_BYTES, NO_KIND

_NO_LIMIT = 2**31
_UNUSABLE = {
    message_places.NO_MESSAGE: "not a tf.train.Example or SequenceExample",
    message_places.TOO_MANY_ENTRIES: f"the record has more than {MAX_ENTRIES:,} features",
    message_places.LONG_NAME: f"a feature's name has more than {MAX_NAME_BYTES:,} bytes",
}

_KINDS = ("nothing", "strings (bytes_list)", "floats (float_list)", "integers (int64_list)")


class RecordError(ValueError):
    """A record that is not a usable video: the message says why.

    Attributes:
      video_id: The video's id, where it could be read.
    """

    def __init__(self, message: str, video_id: bytes | None = None):
        super().__init__(message)
        self.video_id = video_id


class KindError(RecordError):
    """A feature whose values are of the wrong kind, such as strings instead of integers.

    Attributes:
      found: Their kind, as `message_places` numbers them.
    """

    def __init__(self, what: str, found: int, wanted: int):
        super().__init__(f"{what} {_KINDS[found]}, not {_KINDS[wanted]}")
        self.found = found


class RangeError(RecordError):
    """A feature with an integer that is too small or too large."""


@functools.cache
def _messages() -> dict[str, Any]:
    """Build the message classes; `Record` is the outermost. Reading does without them, and without their library."""
    with needed("writing records", "tfrecord"):
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    field_kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vidpress/examples.proto", package="vidpress", syntax="proto3")

    def add_message(name: str, fields: Sequence[tuple[str, int, int, bool, str | None]]) -> None:
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated, type_name in fields:
            message.field.add(
                name=field_name,
                number=number,
                type=kind,
                label=field_kinds.LABEL_REPEATED if repeated else field_kinds.LABEL_OPTIONAL,
                type_name=type_name and f".vidpress.{type_name}",
            )

    def add_map(name: str, field_name: str, value_type: str) -> None:
        message = file.message_type.add(name=name)
        entry = message.nested_type.add(name=field_name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=field_kinds.TYPE_STRING, label=field_kinds.LABEL_OPTIONAL)
        entry.field.add(
            name="value",
            number=2,
            type=field_kinds.TYPE_MESSAGE,
            label=field_kinds.LABEL_OPTIONAL,
            type_name=f".vidpress.{value_type}",
        )
        message.field.add(
            name=field_name,
            number=1,
            type=field_kinds.TYPE_MESSAGE,
            label=field_kinds.LABEL_REPEATED,
            type_name=f".vidpress.{name}.{entry.name}",
        )

    message_kind = field_kinds.TYPE_MESSAGE
    add_message("BytesList", [("value", 1, field_kinds.TYPE_BYTES, True, None)])
    add_message("FloatList", [("value", 1, field_kinds.TYPE_FLOAT, True, None)])
    add_message("Int64List", [("value", 1, field_kinds.TYPE_INT64, True, None)])
    add_message(
        "Feature",
        [
            ("bytes_list", 1, message_kind, False, "BytesList"),
            ("float_list", 2, message_kind, False, "FloatList"),
            ("int64_list", 3, message_kind, False, "Int64List"),
        ],
    )
    feature = file.message_type[-1]
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    add_message("FeatureList", [("feature", 1, message_kind, True, "Feature")])
    add_map("Features", "feature", "Feature")
    add_map("FeatureLists", "feature_list", "FeatureList")
    add_message(
        "Record",
        [("context", 1, message_kind, False, "Features"), ("feature_lists", 2, message_kind, False, "FeatureLists")],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"vidpress.{message.name}"))
        for message in file.message_type
    }


def parse_record(payload: bytes) -> tuple[Mapping[str, bytes | memoryview], Mapping[str, bytes | memoryview]]:
    """Split a serialized Example or SequenceExample into its parts, without parsing them.

    Args:
      payload: The serialized message.

    Returns:
      The serialized `Feature` of each context feature, and the serialized `FeatureList` of each feature list (none
      in an Example), by name: views of the payload, if they are contiguous there.

    Raises:
      RecordError: If the payload is not such a message, or has more than `MAX_ENTRIES` features.
    """
    places, num_entries = message_places.locate_entries(np.frombuffer(payload, np.uint8))
    if num_entries < 0:
        raise RecordError(_UNUSABLE[num_entries])
    view = memoryview(payload)
    context: dict[str, bytes | memoryview] = {}
    feature_lists: dict[str, bytes | memoryview] = {}
    try:
        if len(places) == num_entries:
            for field, _, key_begin, key_end, begin, end in places.tolist():
                parts = context if field == 1 else feature_lists
                parts[payload[key_begin:key_end].decode()] = view[begin:end]
        else:
            for _, group in itertools.groupby(places.tolist(), operator.itemgetter(1)):
                (field, _, key_begin, key_end, begin, end), *rest = group
                parts = context if field == 1 else feature_lists
                # Protocol buffers merge messages that come in parts, as if the parts were concatenated.
                value = b"".join([view[begin:end], *(view[part[4] : part[5]] for part in rest)])
                parts[payload[key_begin:key_end].decode()] = value
    except UnicodeDecodeError as error:
        raise RecordError(f"{_UNUSABLE[message_places.NO_MESSAGE]}: a name is not UTF-8: {error.reason}") from error
    return context, feature_lists


def _wrong_kind(found: int, wanted: int) -> RecordError:
    return RecordError("is not a tf.train.Feature") if found < 0 else KindError("holds", found, wanted)


def bytes_values(feature: bytes | memoryview, *, max_values: int = _NO_LIMIT) -> list[bytes]:
    """Return the strings of a serialized `Feature`.

    Raises:
      KindError: If it holds values of another kind.
      RecordError: If there are more than `max_values`.
    """
    size = len(feature) - len(_STRING_HEADERS[0])
    if 0 < size < len(_STRING_HEADERS) and feature[: len(_STRING_HEADERS[0])] == _STRING_HEADERS[size]:
        return [bytes(feature[-size:])]
    data = np.frombuffer(feature, np.uint8)
    kind, count, start = message_places.survey_feature(data)
    if kind not in (BYTES, NO_KIND):
        raise _wrong_kind(kind, BYTES)
    if count > max_values:
        raise RecordError(f"has {count:,} values, more than {max_values:,}")
    view = memoryview(feature)
    places = message_places.locate_values(data, BYTES, count, start)
    return [bytes(view[begin:end]) for begin, end in places.tolist()]


def int64_values(
    feature: bytes | memoryview, *, max_values: int = _NO_LIMIT, least: int = -(2**63), greatest: int = 2**63 - 1
) -> np.ndarray:
    """Return the integers of a serialized `Feature` as int64[n].

    Raises:
      KindError: If it holds values of another kind.
      RangeError: If one does not lie between `least` and `greatest`.
      RecordError: If there are more than `max_values`.
    """
    kind, count, values, lowest, highest = message_places.read_integers(np.frombuffer(feature, np.uint8), max_values)
    if kind not in (INTEGERS, NO_KIND):
        raise _wrong_kind(kind, INTEGERS)
    if count > max_values:
        raise RecordError(f"has {count:,} values, more than {max_values:,}")
    if count and not least <= lowest <= highest <= greatest:
        raise RangeError(f"has {lowest if lowest < least else highest}, which does not lie in {least} to {greatest}")
    return values


def float_values(feature: bytes | memoryview, size: int | None = None) -> np.ndarray:
    """Return the numbers of a serialized `Feature` as float32[n].

    Raises:
      KindError: If it holds values of another kind.
      RecordError: If there are not `size` of them.
    """
    values = _packed_floats(feature)
    if values is not None:
        count = len(values)
    else:
        data = np.frombuffer(feature, np.uint8)
        kind, count, start = message_places.survey_feature(data)
        if kind not in (FLOATS, NO_KIND):
            raise _wrong_kind(kind, FLOATS)
    if size is not None and count != size:
        raise RecordError(f"has {count} numbers, not {size}")
    return message_places.read_floats(data, count, start).view("<f4").reshape(-1) if values is None else values


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(field: int, length: int) -> bytes:
    """Return the key and length of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(length)


# The first bytes of a Feature that holds only one string, by the string's size.
_STRING_HEADERS = [delimited(1, size + 2) + delimited(1, size) for size in range(126)]


@functools.lru_cache(maxsize=1024)
def _float_header(num_bytes: int) -> bytes | None:
    """Return the first bytes of a Feature of `num_bytes` that holds only packed floats."""
    for header_size in range(4, 17):
        num_floats, rest = divmod(num_bytes - header_size, 4)
        if rest == 0 and num_floats > 0:
            packed = delimited(1, 4 * num_floats)
            header = delimited(2, len(packed) + 4 * num_floats) + packed
            if len(header) == header_size:
                return header
    return None


def _packed_floats(feature: bytes | memoryview) -> np.ndarray | None:
    header = _float_header(len(feature))
    if header is None or feature[: len(header)] != header:
        return None
    return np.frombuffer(feature, "<f4", offset=len(header))


def serialize_record(
    context: Mapping[str, bytes | tuple[bytes, ...] | Sequence[int] | np.ndarray],
    feature_lists: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """Serialize an Example (no feature lists) or a SequenceExample, deterministically.

    Args:
      context: `bytes`, tuples of these, float arrays or integers by name.
      feature_lists: uint8[num_frames, size] or float32[num_frames, size] by name.

    Returns:
      The serialized message.
    """
    record = _messages()["Record"]()
    for name, value in context.items():
        feature = record.context.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, tuple):
            feature.bytes_list.value.extend(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            feature.float_list.value.extend(value.tolist())
        else:
            feature.int64_list.value.extend(int(number) for number in value)
    for name, frames in (feature_lists or {}).items():
        feature_list = record.feature_lists.feature_list[name]
        for frame in frames:
            feature = feature_list.feature.add()
            if frames.dtype.kind == "f":
                feature.float_list.value.extend(frame.tolist())
            else:
                feature.bytes_list.value.append(frame.tobytes())
    return record.SerializeToString(deterministic=True)
