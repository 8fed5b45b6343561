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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from vidpress.model import message_places
from vidpress.model.message_places import BYTES, FLOATS, INTEGERS, MAX_ENTRIES, NO_KIND

# A feature's name longer than this is not kept: names stand in messages, and thousands of them in a record.
MAX_NAME_BYTES = 4096

_KINDS = ("nothing", "strings (bytes_list)", "floats (float_list)", "integers (int64_list)")

_Field = descriptor_pb2.FieldDescriptorProto


class RecordError(ValueError):
    """A record that is not a usable video: the message says why.

    Attributes:
      video_id: The video's id, where it could be read.
    """

    def __init__(self, message: str, video_id: bytes | None = None):
        super().__init__(message)
        self.video_id = video_id


class KindError(RecordError):
    """A feature whose values are of another kind than they must be, such as strings for integers.

    Attributes:
      found: Their kind, as `message_places` numbers them.
    """

    def __init__(self, what: str, found: int, wanted: int):
        super().__init__(f"{what} {_KINDS[found]}, not {_KINDS[wanted]}")
        self.found = found


@functools.cache
def _messages() -> dict[str, Any]:
    """Build the message classes; `Record` is the outermost."""
    file = descriptor_pb2.FileDescriptorProto(name="vidpress/examples.proto", package="vidpress", syntax="proto3")

    def add_message(name: str, fields: Sequence[tuple[str, int, int, bool, str | None]]) -> None:
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated, type_name in fields:
            message.field.add(
                name=field_name,
                number=number,
                type=kind,
                label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
                type_name=type_name and f".vidpress.{type_name}",
            )

    def add_map(name: str, field_name: str, value_type: str) -> None:
        message = file.message_type.add(name=name)
        entry = message.nested_type.add(name=field_name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        entry.field.add(
            name="value",
            number=2,
            type=_Field.TYPE_MESSAGE,
            label=_Field.LABEL_OPTIONAL,
            type_name=f".vidpress.{value_type}",
        )
        message.field.add(
            name=field_name,
            number=1,
            type=_Field.TYPE_MESSAGE,
            label=_Field.LABEL_REPEATED,
            type_name=f".vidpress.{name}.{entry.name}",
        )

    message_kind = _Field.TYPE_MESSAGE
    add_message("BytesList", [("value", 1, _Field.TYPE_BYTES, True, None)])
    add_message("FloatList", [("value", 1, _Field.TYPE_FLOAT, True, None)])
    add_message("Int64List", [("value", 1, _Field.TYPE_INT64, True, None)])
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
    """Split a serialized Example or SequenceExample into its parts, without a look inside them.

    Args:
      payload: The serialized message.

    Returns:
      The serialized `Feature` of each context feature, and the serialized `FeatureList` of each feature list (none
      in an Example), by name: views of the payload, where they stand there in one piece.

    Raises:
      RecordError: If the payload is not such a message, or has more than `MAX_ENTRIES` features.
    """
    places, num_entries = message_places.locate_entries(np.frombuffer(payload, np.uint8))
    if num_entries < 0:
        raise RecordError("not a tf.train.Example or SequenceExample")
    if num_entries > MAX_ENTRIES:
        raise RecordError(f"the record has more than {MAX_ENTRIES:,} features")
    view = memoryview(payload)
    context: dict[str, bytes | memoryview] = {}
    feature_lists: dict[str, bytes | memoryview] = {}
    entries = places.tolist()
    if len(entries) == num_entries:
        values: Iterable[bytes | memoryview] = [view[entry[4] : entry[5]] for entry in entries]
    else:
        entries, values = _join_parts(entries, view)
    for (field, _, key_begin, key_end, _, _), value in zip(entries, values, strict=True):
        if key_end - key_begin > MAX_NAME_BYTES:
            raise RecordError(f"a feature's name has {key_end - key_begin:,} bytes, more than {MAX_NAME_BYTES:,}")
        try:
            key = payload[key_begin:key_end].decode()
        except UnicodeDecodeError as error:
            raise RecordError(
                f"not a tf.train.Example or SequenceExample: a feature's name is not UTF-8: {error}"
            ) from error
        if field == 1:
            context[key] = value
        else:
            feature_lists[key] = value
    return context, feature_lists


def _join_parts(entries: list[list[int]], view: memoryview) -> tuple[list[list[int]], list[bytes]]:
    """Put together values that come in parts, as protocol buffers merge messages: one after the other."""
    groups = [list(group) for _, group in itertools.groupby(entries, operator.itemgetter(1))]
    return [group[0] for group in groups], [b"".join(view[part[4] : part[5]] for part in group) for group in groups]


def _survey(feature: bytes | memoryview, kind: int) -> tuple[np.ndarray, int, int]:
    """Return a serialized `Feature` as an array, how many values of a kind it has, and where they start."""
    data = np.frombuffer(feature, np.uint8)
    found, count, start = message_places.survey_feature(data)
    if found < 0:
        raise RecordError("is not a tf.train.Feature")
    if found not in (kind, NO_KIND):
        raise KindError("holds", found, kind)
    return data, count, start


def bytes_values(feature: bytes | memoryview) -> list[bytes]:
    """Return the strings of a serialized `Feature`.

    Raises:
      KindError: If it holds values of another kind.
    """
    data, count, start = _survey(feature, BYTES)
    view = memoryview(feature)
    places = message_places.locate_values(data, BYTES, count, start)
    return [bytes(view[begin:end]) for begin, end in places.tolist()]


def int64_values(feature: bytes | memoryview, max_values: int | None = None) -> np.ndarray:
    """Return the integers of a serialized `Feature` as int64[n].

    Raises:
      KindError: If it holds values of another kind.
      RecordError: If there are more than `max_values`.
    """
    data, count, start = _survey(feature, INTEGERS)
    if max_values is not None and count > max_values:
        raise RecordError(f"has {count:,} values, more than {max_values:,}")
    return message_places.read_integers(data, count, start)


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
        data, count, start = _survey(feature, FLOATS)
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


@functools.lru_cache(maxsize=1024)
def _float_header(num_bytes: int) -> bytes | None:
    """Return what a Feature of `num_bytes` starts with if it holds nothing but packed floats."""
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
    context: Mapping[str, bytes | Sequence[int] | np.ndarray],
    feature_lists: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """Serialize an Example (no feature lists) or a SequenceExample, deterministically.

    Args:
      context: `bytes`, float arrays or integers by name.
      feature_lists: uint8[num_frames, size] or float32[num_frames, size] by name.

    Returns:
      The serialized message.
    """
    record = _messages()["Record"]()
    for name, value in context.items():
        feature = record.context.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
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
