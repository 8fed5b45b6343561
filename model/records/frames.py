"""The frames of a serialized `FeatureList` as one matrix.

They are used as they are in the serialized bytes: parsing 2 x 230 messages a video would cost more than the rest of the
pipeline.
"""

from __future__ import annotations

import functools

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.records.examples import KindError, RecordError, delimited
from vidpress.model.records.message_places import (
    BYTES,
    FLOATS,
    LENGTH_DELIMITED,
    locate_values,
    next_field,
    survey_feature,
)


@functools.lru_cache(maxsize=1024)
def _frame_header(kind: int, num_bytes: int) -> np.ndarray:
    """Return the bytes before the values of every frame: FeatureList > Feature > BytesList or FloatList > value."""
    value = delimited(1, num_bytes)
    values = delimited(kind, len(value) + num_bytes) + value
    return np.frombuffer(delimited(1, len(values) + num_bytes) + values, np.uint8)


def frame_matrix(feature_list: bytes | memoryview, size: int, *, floats: bool = False) -> np.ndarray:
    """Return the frames of a serialized `FeatureList`.

    All frames usually have the same length and header in the serialized bytes, so that their matrix is a strided view
    of the buffer; each frame's header is compared with the expected one. Any other valid encoding of the message is
    copied frame by frame.

    Args:
      feature_list: The serialized FeatureList; a frame is one `bytes_list` with one string of `size` bytes, or one
        `float_list` of `size` numbers.
      size: How many numbers a frame has.
      floats: Whether the frames are floats instead of bytes.

    Returns:
      uint8[num_frames, size], quantized, or float32[num_frames, size].

    Raises:
      KindError: If a frame's values are of another kind.
      RecordError: If a frame is missing or has another size.
    """
    kind = FLOATS if floats else BYTES
    header = _frame_header(kind, size * 4 if floats else size)
    stride = len(header) + (size * 4 if floats else size)
    num_frames, rest = divmod(len(feature_list), stride)
    if rest == 0:
        rows = np.frombuffer(feature_list, np.uint8).reshape(num_frames, stride)
        if _all_begin_with(rows, header):
            frames = rows[:, len(header) :]
            return np.ascontiguousarray(frames).view("<f4") if floats else frames
    return _copied_frames(np.frombuffer(feature_list, np.uint8), kind, size)


def _copied_frames(feature_list: np.ndarray, kind: int, size: int) -> np.ndarray:
    num_frames, bad, found, count, num_bytes = _survey_frames(feature_list, kind, size)
    if num_frames < 0 or found < 0:
        raise RecordError("is not a tf.train.FeatureList")
    if bad >= 0:
        frame = f"frame {bad} of {num_frames} holds"
        if found != kind:
            raise KindError(frame, found, kind)
        if kind == FLOATS:
            raise RecordError(f"{frame} {count} floats, not {size}")
        if count != 1:
            raise RecordError(f"{frame} {count} strings of bytes, not one")
        raise RecordError(f"{frame} [{num_bytes}] bytes, not [{size}]")
    frames = np.empty((num_frames, size * 4 if kind == FLOATS else size), np.uint8)
    _copy_frames(feature_list, kind, frames)
    return frames.view("<f4") if kind == FLOATS else frames


@jit
def _survey_frames(feature_list: np.ndarray, kind: int, size: int) -> tuple[int, int, int, int, int]:
    """Count the frames of a serialized `FeatureList`, and check whether all are as they must be.

    Args:
      feature_list: uint8[num_bytes].
      kind: What each frame must be: one string of `BYTES`, or `FLOATS`.
      size: How many bytes the string must have, or how many floats there must be.

    Returns:
      The number of frames, or -1 if it is not such a message. And of the first wrong frame: its number, or -1 if there
      is none, its kind, how many values it has, and the size in bytes of the first.
    """
    num_frames = 0
    bad, bad_kind, bad_count, bad_bytes = -1, 0, 0, 0
    end = 0
    while end < len(feature_list):
        number, wire, begin, end = next_field(feature_list, end, len(feature_list))
        if number == 0:
            return -1, bad, bad_kind, bad_count, bad_bytes
        if wire != LENGTH_DELIMITED or number != 1:
            continue
        if bad < 0:
            frame = feature_list[begin:end]
            found, count, start = survey_feature(frame)
            num_bytes = 0
            if found == BYTES and count == 1:
                place = locate_values(frame, BYTES, 1, start)
                num_bytes = place[0, 1] - place[0, 0]
            right = count == 1 and num_bytes == size if kind == BYTES else count == size
            if found != kind or not right:
                bad, bad_kind, bad_count, bad_bytes = num_frames, found, count, num_bytes
        num_frames += 1
    return num_frames, bad, bad_kind, bad_count, bad_bytes


@jit
def _copy_frames(feature_list: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Copy the bytes of frames that `_survey_frames` found to be right to uint8[num_frames, bytes of a frame]."""
    index = end = 0
    while end < len(feature_list):
        number, wire, begin, end = next_field(feature_list, end, len(feature_list))
        if wire != LENGTH_DELIMITED or number != 1:
            continue
        frame = feature_list[begin:end]
        _, count, start = survey_feature(frame)
        places = locate_values(frame, kind, count, start)
        column = 0
        for value in range(count):
            for position in range(places[value, 0], places[value, 1]):
                out[index, column] = frame[position]
                column += 1
        index += 1


@jit
def _all_begin_with(rows: np.ndarray, header: np.ndarray) -> bool:
    """Return whether each of `rows`, uint8[n, m], begins with `header`, uint8[k], k <= m."""
    for i in range(len(rows)):
        for j in range(len(header)):
            if rows[i, j] != header[j]:
                return False
    return True
