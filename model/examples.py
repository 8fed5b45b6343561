"""`tf.train.Example` and `tf.train.SequenceExample` without TensorFlow.

A video's frames are taken from the wire as one matrix, where parsing 2 x 230 messages would cost more than the rest of
the pipeline. `message_places` finds the features in the bytes as everybody writes them, without a copy. Any other valid
encoding is parsed by protocol buffers: the messages of tensorflow/core/example/{example,feature}.proto are declared
here a second time, in two ways that read the same bytes: in full, and with every `Feature` and `FeatureList` left as
plain bytes.

An `Example` is a `SequenceExample` without feature lists (both keep their `Features` in field 1), so one message
serves for both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from vidpress.model.message_places import all_begin_with, locate_entries

_Field = descriptor_pb2.FieldDescriptorProto


class RecordError(ValueError):
    """A record that is not a usable video: the message says why.

    Attributes:
      video_id: The video's id, where it could be read.
    """

    def __init__(self, message: str, video_id: bytes | None = None):
        super().__init__(message)
        self.video_id = video_id


@functools.cache
def _messages() -> dict[str, Any]:
    """Build the message classes; `Record` and `LazyRecord` are the outermost."""
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

    def add_map(name: str, field_name: str, value_kind: int, value_type: str | None) -> None:
        message = file.message_type.add(name=name)
        entry = message.nested_type.add(name=field_name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        entry.field.add(
            name="value",
            number=2,
            type=value_kind,
            label=_Field.LABEL_OPTIONAL,
            type_name=value_type and f".vidpress.{value_type}",
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
    add_message("FeatureList", [("feature", 1, message_kind, True, "Feature")])
    for prefix, feature, feature_list in (("", "Feature", "FeatureList"), ("Lazy", None, None)):
        kind = message_kind if feature else _Field.TYPE_BYTES
        add_map(f"{prefix}Features", "feature", kind, feature)
        add_map(f"{prefix}FeatureLists", "feature_list", kind, feature_list)
        add_message(
            f"{prefix}Record",
            [
                ("context", 1, message_kind, False, f"{prefix}Features"),
                ("feature_lists", 2, message_kind, False, f"{prefix}FeatureLists"),
            ],
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"vidpress.{message.name}"))
        for message in file.message_type
    }


def _parse(name: str, data: bytes) -> Any:
    try:
        return _messages()[name].FromString(data)
    except DecodeError as error:
        raise RecordError(f"not a tf.train.{name.removeprefix('Lazy')} message: {error}") from error


def parse_record(payload: bytes) -> tuple[Mapping[str, bytes], Mapping[str, bytes | memoryview]]:
    """Split a serialized Example or SequenceExample into its parts, without a look inside them.

    Args:
      payload: The serialized message.

    Returns:
      The serialized `Feature` of each context feature, and the serialized `FeatureList` of each feature list (none
      in an Example), by name. Feature lists are views of the payload where they can be.

    Raises:
      RecordError: If the payload is not such a message.
    """
    places, plain = locate_entries(np.frombuffer(payload, np.uint8))
    if plain:
        view = memoryview(payload)
        context: dict[str, bytes] = {}
        feature_lists: dict[str, bytes | memoryview] = {}
        try:
            for field, key_begin, key_end, begin, end in places.tolist():
                key = payload[key_begin:key_end].decode()
                if field == 1:
                    context[key] = payload[begin:end]
                else:
                    feature_lists[key] = view[begin:end]
            return context, feature_lists
        except UnicodeDecodeError:
            pass  # the parser below says so
    try:
        record = _messages()["LazyRecord"].FromString(payload)
    except DecodeError as error:
        raise RecordError(f"not a tf.train.Example or SequenceExample: {error}") from error
    return record.context.feature, record.feature_lists.feature_list


def bytes_values(feature: bytes) -> Sequence[bytes]:
    """Return the strings of a serialized `Feature`."""
    return _parse("Feature", feature).bytes_list.value


def int64_values(feature: bytes) -> Sequence[int]:
    """Return the integers of a serialized `Feature`."""
    return _parse("Feature", feature).int64_list.value


def float_values(feature: bytes) -> np.ndarray:
    """Return the numbers of a serialized `Feature` as float32[n]."""
    values = _packed_floats(feature)
    if values is None:
        values = np.array(_parse("Feature", feature).float_list.value, np.float32)
    return values


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(field: int, length: int) -> bytes:
    """Return the key and length of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(length)


@functools.lru_cache(maxsize=1024)
def _float_header(num_bytes: int) -> bytes | None:
    """Return what a Feature of `num_bytes` starts with if it holds nothing but packed floats."""
    for header_size in range(4, 17):
        num_floats, rest = divmod(num_bytes - header_size, 4)
        if rest == 0 and num_floats > 0:
            packed = _delimited(1, 4 * num_floats)
            header = _delimited(2, len(packed) + 4 * num_floats) + packed
            if len(header) == header_size:
                return header
    return None


def _packed_floats(feature: bytes) -> np.ndarray | None:
    header = _float_header(len(feature))
    if header is None or not feature.startswith(header):
        return None
    return np.frombuffer(feature, "<f4", offset=len(header))


@functools.lru_cache(maxsize=1024)
def _frame_header(size: int) -> bytes:
    """Return what stands before the bytes of every frame: FeatureList > Feature > BytesList > value."""
    value = _delimited(1, size)
    bytes_list = _delimited(1, len(value) + size) + value
    return _delimited(1, len(bytes_list) + size) + bytes_list


def frame_matrix(feature_list: bytes | memoryview, size: int) -> np.ndarray:
    """Return the frames of a serialized `FeatureList` of 8-bit features.

    All frames are equally long on the wire and begin alike, so that their matrix is a strided view of the buffer;
    each frame's header is compared with the only one that is right. Any other valid encoding of the message is
    parsed in full.

    Args:
      feature_list: The serialized FeatureList; one `bytes_list` with one string of `size` bytes a frame.
      size: Numbers a frame.

    Returns:
      uint8[num_frames, size], quantized.

    Raises:
      RecordError: If a frame is missing or has another size.
    """
    header = _frame_header(size)
    stride = len(header) + size
    num_frames, rest = divmod(len(feature_list), stride)
    if rest == 0:
        rows = np.frombuffer(feature_list, np.uint8).reshape(num_frames, stride)
        if all_begin_with(rows, np.frombuffer(header, np.uint8)):
            return rows[:, len(header) :]
    frames = [list(feature.bytes_list.value) for feature in _parse("FeatureList", bytes(feature_list)).feature]
    for index, values in enumerate(frames):
        if len(values) != 1 or len(values[0]) != size:
            raise RecordError(
                f"frame {index} of {len(frames)} holds {[len(value) for value in values]} bytes, not [{size}]"
            )
    return np.frombuffer(b"".join(values[0] for values in frames), np.uint8).reshape(-1, size)


def serialize_record(
    context: Mapping[str, bytes | Sequence[int] | np.ndarray],
    feature_lists: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """Serialize an Example (no feature lists) or a SequenceExample, deterministically.

    Args:
      context: `bytes`, float arrays or integers by name.
      feature_lists: uint8[num_frames, size] by name.

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
            feature_list.feature.add().bytes_list.value.append(frame.tobytes())
    return record.SerializeToString(deterministic=True)
