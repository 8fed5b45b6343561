"""The frames of a serialized `FeatureList` as one matrix.

They are taken from the wire as they stand there: parsing 2 x 230 messages a video would cost more than the rest of the
pipeline.
"""

from __future__ import annotations

import functools

import numpy as np

from vidpress.model import message_places
from vidpress.model.examples import KindError, RecordError, delimited
from vidpress.model.message_places import BYTES, FLOATS


@functools.lru_cache(maxsize=1024)
def _frame_header(kind: int, num_bytes: int) -> np.ndarray:
    """Return what stands before the bytes of every frame: FeatureList > Feature > BytesList or FloatList > value."""
    value = delimited(1, num_bytes)
    values = delimited(kind, len(value) + num_bytes) + value
    return np.frombuffer(delimited(1, len(values) + num_bytes) + values, np.uint8)


def frame_matrix(feature_list: bytes | memoryview, size: int, *, floats: bool = False) -> np.ndarray:
    """Return the frames of a serialized `FeatureList`.

    All frames are equally long on the wire and begin alike, so that their matrix is a strided view of the buffer;
    each frame's header is compared with the only one that is right. Any other valid encoding of the message is copied
    frame by frame.

    Args:
      feature_list: The serialized FeatureList; a frame is one `bytes_list` with one string of `size` bytes, or one
        `float_list` of `size` numbers.
      size: Numbers a frame.
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
        if message_places.all_begin_with(rows, header):
            frames = rows[:, len(header) :]
            return np.ascontiguousarray(frames).view("<f4") if floats else frames
    return _copied_frames(np.frombuffer(feature_list, np.uint8), kind, size)


def _copied_frames(feature_list: np.ndarray, kind: int, size: int) -> np.ndarray:
    num_frames, bad, found, count, num_bytes = message_places.survey_frames(feature_list, kind, size)
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
    message_places.copy_frames(feature_list, kind, frames)
    return frames.view("<f4") if kind == FLOATS else frames
