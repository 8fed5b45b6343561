"""A video as it is read from a record, and its pooled input vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.features import Feature, FeatureSpec
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.records import examples
from vidpress.model.records.examples import KindError, RangeError, RecordError
from vidpress.model.records.frames import frame_matrix
from vidpress.model.records.kept_values import KIND_OF, KeptValues, kept_values

# Limits for a record: far more than any data set has, and so little that thousands of records fit into memory.
MAX_ID_BYTES = 4096
MAX_LABELS = 16_384

_INT32_MAX = 2**31 - 1
_Values = bytes | memoryview

# The labels of all records that have no key of labels: this array, and not only an empty one.
NO_LABELS = np.empty(0, np.int32)


@dataclasses.dataclass
class Video:
    """One video's features, as a record holds them.

    Attributes:
      id: The video's id.
      labels: int32[num_labels], class indices; empty if the record has none.
      features: By the spec's feature name, either uint8[num_frames, size] (frame level, quantized),
        float32[num_frames, size] (frame level, floats not yet scaled) or float32[size] (video level, means).
      file: The file that the record is in.
      offset: Byte offset of the record in that (uncompressed) file.
      kept: Of each column that is kept the values, as `kept_values` gives them.
    """

    id: bytes
    labels: np.ndarray
    features: dict[str, np.ndarray]
    file: str = ""
    offset: int = 0
    kept: tuple[KeptValues, ...] = ()


@dataclasses.dataclass
class PooledVideo:
    """One video's input to the bottleneck network.

    Attributes:
      id: The video's id.
      labels: int32[num_labels], class indices.
      x: float32[input_size], dequantized, the mean over the video's frames.
      num_frames: How many frames were averaged, or None if the record held their mean.
      file: The file that the record is in.
      offset: Byte offset of the record in that (uncompressed) file.
      kept: Of each column that is kept the values, as `kept_values` gives them.
    """

    id: bytes
    labels: np.ndarray
    x: np.ndarray
    num_frames: int | None = None
    file: str = ""
    offset: int = 0
    kept: tuple[KeptValues, ...] = ()


def parse_video(
    payload: bytes,
    spec: FeatureSpec,
    *,
    columns: Sequence[KeptColumn] = (),
    with_labels: bool = True,
    file: str = "",
    offset: int = 0,
) -> Video:
    """Parse a frame-level SequenceExample or a video-level Example; a record with feature lists is frame level.

    Args:
      payload: The serialized message.
      spec: The features to take.
      columns: What else to keep. If the key of the labels is among them, they are kept as that, and not as labels.
      with_labels: Whether to take the labels; otherwise the video has none, whatever the record holds.
      file: The file that the record is in, for messages.
      offset: Where in that file it begins.

    Returns:
      The video. Frame-level features are views of the parsed buffer, not copies.

    Raises:
      RecordError: If the payload is not such a message, or the id or a feature is missing or misshapen.
    """
    context, feature_lists = examples.parse_record(payload)
    video_id = _parse_id(context, spec)
    try:
        kept = kept_values(context, columns) if columns else ()
        is_kept = columns and any(column.key == spec.labels_key for column in columns)
        labels = _parse_labels(context, spec) if with_labels and not is_kept else NO_LABELS
        features = {feature.name: _parse_feature(feature, context, feature_lists) for feature in spec.features}
    except RecordError as error:
        error.video_id = video_id
        raise
    return Video(video_id, labels, features, file, offset, kept)


def _parse_id(context: Mapping[str, _Values], spec: FeatureSpec) -> bytes:
    for key in spec.id_keys:
        if key in context:
            feature = context[key]
            if len(feature) > 2 * MAX_ID_BYTES:  # nothing of it is copied
                raise RecordError(f"{key!r} has {len(feature):,} bytes; an id has {MAX_ID_BYTES:,} at most")
            try:
                values = examples.bytes_values(feature)
            except KindError as error:
                raise RecordError(f"{key!r} must hold one non-empty string, but {error}; write it as one") from error
            except RecordError as error:
                raise RecordError(f"{key!r} {error}") from error
            if len(values) != 1 or not values[0]:
                raise RecordError(
                    f"{key!r} must hold one non-empty string, not {f'{len(values)} strings' if values[1:] else values}"
                )
            if len(values[0]) > MAX_ID_BYTES:
                raise RecordError(f"{key!r} has {len(values[0]):,} bytes; an id has {MAX_ID_BYTES:,} at most")
            return values[0]
    raise RecordError(
        f"no id: none of {list(spec.id_keys)} is among {listed(context)}; name the key that holds it with --id_key"
    )


def _parse_labels(context: Mapping[str, _Values], spec: FeatureSpec) -> np.ndarray:
    if spec.labels_key not in context:
        return NO_LABELS
    feature = context[spec.labels_key]
    try:
        return examples.int64_values(feature, max_values=MAX_LABELS, least=0, greatest=_INT32_MAX).astype(np.int32)
    except KindError as error:
        kept = f"{spec.labels_key}:{KIND_OF[error.found]}"
        raise RecordError(
            f"{spec.labels_key!r} must be class indices, but {error}; write indices, name another key with "
            f"--labels_key, or keep them as they are with `vidpress encode --keep {kept}`"
        ) from error
    except RangeError as error:
        raise RecordError(
            f"{spec.labels_key!r} must be class indices, but {error}; keep other numbers with `vidpress encode --keep "
            f"{spec.labels_key}:int64`"
        ) from error
    except RecordError as error:
        raise RecordError(f"{spec.labels_key!r} must be class indices, but {error}") from error


def _parse_feature(
    feature: Feature, context: Mapping[str, _Values], feature_lists: Mapping[str, _Values]
) -> np.ndarray:
    if feature.name in feature_lists:
        floats = feature.kind == "float"
        try:
            return frame_matrix(feature_lists[feature.name], feature.size, floats=floats)
        except RecordError as error:
            fix = ""
            if isinstance(error, KindError) and error.found == (examples.BYTES if floats else examples.FLOATS):
                other = Feature(feature.name, feature.size, "uint8" if floats else "float")
                fix = f"; a model trained with --features {other} takes such frames"
            elif isinstance(error, KindError):
                fix = f"; write each frame as {'floats' if floats else 'one string of bytes'}"
            raise RecordError(f"feature {feature.name!r}: {error}{fix}") from error
    if feature.mean_name in context:
        try:
            return examples.float_values(context[feature.mean_name], feature.size)
        except KindError as error:
            raise RecordError(f"feature {feature.mean_name!r} {error}; write the mean as floats") from error
        except RecordError as error:
            raise RecordError(f"feature {feature.mean_name!r} {error}") from error
    raise RecordError(
        f"feature {feature.name!r} is missing: no feature list of that name and no {feature.mean_name!r} among "
        f"{listed([*feature_lists, *context])}"
    )


def listed(names: Iterable[str]) -> list[str]:
    """Return the first of some names, sorted and shortened, for a message: they may come from a hostile file."""
    ordered = sorted(names)
    shown = [name if len(name) <= 60 else f"{name[:60]}..." for name in ordered[:20]]
    return shown if len(ordered) <= 20 else [*shown, f"and {len(ordered) - 20:,} more"]


def pool_frames(video: Video, spec: FeatureSpec) -> PooledVideo:
    """Average a video's frames and dequantize or scale the means; video-level features pass through.

    Only the video's own frames count (the dataset's starter code pads with zeros after dequantizing, which would
    shift the mean). The 8-bit numbers are summed as integers, so that the mean does not depend on their order; floats
    are summed in float64, in the order of the frames.

    Args:
      video: What `parse_video` gave.
      spec: The features, in the order of `x`.

    Returns:
      The video with its input vector.

    Raises:
      RecordError: If there are no frames, the features differ in their number of frames, or a value is NaN or
        infinite.
    """
    x = np.empty(spec.input_size, np.float32)
    scale, shift = spec.dequantization
    num_frames = None
    start = 0
    for feature in spec.features:
        part = video.features[feature.name]
        end = start + feature.size
        if part.ndim == 1:
            x[start:end] = part
            _check_finite(x, start, end, video.id)
        elif not len(part) or num_frames not in (None, len(part)):
            lengths = {name: len(values) for name, values in video.features.items() if values.ndim == 2}
            what = f"the features differ in their number of frames: {lengths}"
            raise RecordError(what if any(lengths.values()) else "the video has no frames", video.id)
        else:
            num_frames = len(part)
            if feature.kind == "float":
                _mean_float_frames(part, feature.scale, x[start:end])
                _check_finite(x, start, end, video.id)
            else:
                _mean_frames(part, scale, shift, x[start:end])
        start = end
    return PooledVideo(video.id, video.labels, x, num_frames, video.file, video.offset, video.kept)


def _check_finite(x: np.ndarray, start: int, end: int, video_id: bytes) -> None:
    part = x[start:end]
    if not np.isfinite(part).all():
        index = int(np.flatnonzero(~np.isfinite(part))[0])
        raise RecordError(
            f"input {start + index} of {len(x)} is {part[index]}: NaN and infinity have no code", video_id
        )


@jit
def _mean_frames(frames: np.ndarray, scale: float, shift: float, out: np.ndarray) -> None:
    """Write the dequantized mean of frames uint8[num_frames, size] to `out` float32[size]."""
    total = sum_frames(frames)
    for j in range(len(total)):
        out[j] = np.float32(total[j] / len(frames) * scale + shift)


@jit
def _mean_float_frames(frames: np.ndarray, scale: float, out: np.ndarray) -> None:
    """Write the scaled mean of frames float32[num_frames, size] to `out` float32[size]."""
    total = np.zeros(frames.shape[1], np.float64)
    for frame in frames:
        for j in range(len(total)):
            total[j] += np.float64(frame[j])
    for j in range(len(total)):
        out[j] = np.float32(total[j] / len(frames) * scale)


@jit
def sum_frames(frames: np.ndarray) -> np.ndarray:
    """Sum 8-bit frames.

    Args:
      frames: uint8[num_frames, size].

    Returns:
      uint64[size].
    """
    num_frames, size = frames.shape
    total = np.zeros(size, np.uint64)
    # Sums of 16 bits use twice as many lanes as larger ones, and hold at most 257 bytes of 255.
    partial = np.zeros(size, np.uint16)
    for start in range(0, num_frames, 256):
        partial[:] = 0
        end = min(start + 256, num_frames)
        whole = end - (end - start) % 4
        for frame in range(start, whole, 4):  # four at a time spare loading and storing the sums
            first, second, third, fourth = frames[frame], frames[frame + 1], frames[frame + 2], frames[frame + 3]
            for j in range(size):
                partial[j] += np.uint16(first[j]) + np.uint16(second[j]) + np.uint16(third[j]) + np.uint16(fourth[j])
        for rest in frames[whole:end]:
            for j in range(size):
                partial[j] += rest[j]
        for j in range(size):
            total[j] += partial[j]
    return total
