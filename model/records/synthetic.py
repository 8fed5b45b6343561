"""Made-up frame-level records in YouTube-8M's format, for demonstrations and load tests without real data.

All that is made here says that it is synthetic: ids begin with `synthetic-`, and so do file names.

The planted structure: classes have a long-tailed popularity, and each has a prototype in a small latent space. A
video's latent vector is the sum of its classes' prototypes and of noise, so that no classifier can always be right; a
fixed random projection maps it to the input features. Frames scatter around it as real ones do.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from vidpress.model.features import FeatureSpec
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import write_tfrecords

ID_PREFIX = "synthetic-"

YOUTUBE_8M = FeatureSpec()

# Frames of real videos scatter around their mean like this, and each resembles the one before it.
FRAME_STD = 1.0
FRAME_CORRELATION = 0.45

# As in YouTube-8M v2: 3.0 labels a video; a feature's standard deviation over the set is 0.46 (`mean_rgb`) or
# 0.69 (`mean_audio`).
_MEAN_LABELS = 3.0
_VIDEO_STD = 0.5

# How hard the classes are: with 100 of them, ridge regression on 4,000 videos of 12 frames reaches a GAP of
# 0.74, and the classes' popularity alone 0.21.
_LATENT_SIZE = 32
_LATENT_NOISE_STD = 1.0
_POPULARITY_EXPONENT = 1.0

# `frames_around`: how far from its target a mean may be before rounding, in 8-bit steps, and how many
# corrections are made at most; near the ends of the range it takes some ten, elsewhere three.
_MEAN_TOLERANCE = 0.02
_MAX_SHIFTS = 30


@dataclasses.dataclass(frozen=True, eq=False)
class _Classes:
    """The planted structure.

    Attributes:
      popularity: float64[num_classes], summing to 1, falling.
      prototypes: float32[num_classes, input_size], what a class adds to a video's mean.
      projection: float32[latent size, input_size], which maps a video's noise to its mean.
    """

    popularity: np.ndarray
    prototypes: np.ndarray
    projection: np.ndarray

    @classmethod
    def plant(cls, num_classes: int, input_size: int, seed: int) -> _Classes:
        rng = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, num_classes + 1) ** _POPULARITY_EXPONENT
        latent = rng.standard_normal((num_classes, _LATENT_SIZE), np.float32)
        projection = rng.standard_normal((_LATENT_SIZE, input_size), np.float32)
        # A video of three classes then varies by _VIDEO_STD in every feature.
        variance = _LATENT_SIZE * (_MEAN_LABELS + _LATENT_NOISE_STD**2)
        projection *= np.float32(_VIDEO_STD / np.sqrt(variance))
        return cls(weights / weights.sum(), latent @ projection, projection)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a video's labels, sorted, and its mean features float32[input_size]."""
        num_classes = len(self.popularity)
        num_labels = min(1 + rng.poisson(_MEAN_LABELS - 1), num_classes)
        labels = np.sort(rng.choice(num_classes, num_labels, replace=False, p=self.popularity))
        noise = np.float32(_LATENT_NOISE_STD) * rng.standard_normal(len(self.projection), np.float32)
        return labels, self.prototypes[labels].sum(axis=0) + noise @ self.projection


def make_videos(
    num_videos: int,
    *,
    spec: FeatureSpec = YOUTUBE_8M,
    num_classes: int = 100,
    seed: int = 0,
    frames: tuple[int, int] = (120, 300),
    start: int = 0,
) -> Iterator[bytes]:
    """Make synthetic videos: serialized SequenceExamples as in YouTube-8M's frame-level files.

    A video depends only on its index and the other arguments, so that sets can be made in parts.

    Args:
      num_videos: How many.
      spec: The features, the id's key (the first one) and the labels' key.
      num_classes: Labels lie in [0, num_classes); the lower, the more frequent.
      seed: Seed of everything random, the planted classes included.
      frames: The least and the most frames of a video, each length equally likely.
      start: Index of the first video.

    Returns:
      An iterator over the serialized messages.

    Raises:
      ValueError: If an argument is out of range.
    """
    if num_videos < 0 or num_classes < 1 or start < 0 or seed < 0:
        raise ValueError(
            f"num_videos={num_videos}, start={start} and seed={seed} must not be negative, and "
            f"num_classes={num_classes} must be at least 1."
        )
    if not 1 <= frames[0] <= frames[1]:
        raise ValueError(f"frames={frames} must be the least and the most frames of a video, at least 1.")
    classes = _Classes.plant(num_classes, spec.input_size, seed)
    return (_make_video(index, classes, spec, seed, frames) for index in range(start, start + num_videos))


def _make_video(index: int, classes: _Classes, spec: FeatureSpec, seed: int, frames: tuple[int, int]) -> bytes:
    rng = np.random.default_rng([seed, index])
    labels, mean = classes.draw(rng)
    num_frames = int(rng.integers(frames[0], frames[1] + 1))
    values = mean + _frame_noise(num_frames, spec.input_size, rng)
    video_id = f"{ID_PREFIX}{seed}-{index:07d}".encode()
    return serialize_video(video_id, labels, quantize(values, spec), spec)


def serialize_video(video_id: bytes, labels: np.ndarray, frames: np.ndarray, spec: FeatureSpec) -> bytes:
    """Serialize a frame-level video as YouTube-8M does.

    Args:
      video_id: Its id.
      labels: int[num_labels], its class indices.
      frames: uint8[num_frames, input_size], quantized.
      spec: How the features share a frame's numbers, and the keys.

    Returns:
      A SequenceExample.
    """
    ends = np.cumsum([feature.size for feature in spec.features])[:-1]
    parts = np.split(frames, ends, axis=1)
    return serialize_record(
        {spec.id_keys[0]: video_id, spec.labels_key: labels.tolist()},
        {feature.name: part for feature, part in zip(spec.features, parts, strict=True)},
    )


def write_shards(
    folder: str | pathlib.Path,
    num_shards: int,
    videos_per_shard: int,
    *,
    spec: FeatureSpec = YOUTUBE_8M,
    num_classes: int = 100,
    seed: int = 0,
    frames: tuple[int, int] = (120, 300),
) -> list[pathlib.Path]:
    """Write synthetic videos to `synthetic-*.tfrecord` files; all share one planted structure.

    Args:
      folder: The folder; it is made if it does not exist.
      num_shards: How many files.
      videos_per_shard: How many videos in each.
      spec: As for `make_videos`.
      num_classes: As for `make_videos`.
      seed: As for `make_videos`.
      frames: As for `make_videos`.

    Returns:
      The files' paths, in order.

    Raises:
      ValueError: If an argument is out of range.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(num_shards):
        videos = make_videos(
            videos_per_shard,
            spec=spec,
            num_classes=num_classes,
            seed=seed,
            frames=frames,
            start=shard * videos_per_shard,
        )
        path = folder / f"{ID_PREFIX}{shard:05d}-of-{num_shards:05d}.tfrecord"
        with path.open("wb") as file:
            write_tfrecords(file, videos)
        paths.append(path)
    return paths


def quantize(values: np.ndarray, spec: FeatureSpec = YOUTUBE_8M) -> np.ndarray:
    """Quantize feature values to 8 bits as the dataset's extractor does.

    `round((clip(x, -2, 2) + 2) * 255 / 4)` for the default range (`quantize` in
    youtube-8m/feature_extractor/extract_tfrecords_main.py). The reader's `FeatureSpec.dequantize` gives
    it back shifted by half a bin.

    Args:
      values: float32[...].
      spec: Gives the range.

    Returns:
      uint8[...].
    """
    span = spec.quantized_max - spec.quantized_min
    clipped = np.clip(values, spec.quantized_min, spec.quantized_max)
    return np.rint((clipped - spec.quantized_min) * (255 / span)).astype(np.uint8)


def frames_around(
    mean: np.ndarray, num_frames: int, rng: np.random.Generator, spec: FeatureSpec = YOUTUBE_8M
) -> np.ndarray:
    """Make 8-bit frames whose dequantized mean is a given one, up to 8-bit rounding.

    This is for load tests if only video-level features are at hand: the frames have the size of a real video's, and
    their mean has its values; the rest is AR(1) noise. Where the 8-bit range clips the noise, it is shifted, so that
    the mean stays the same.

    Args:
      mean: float32[d], dequantized, within the 8-bit range.
      num_frames: How many frames.
      rng: The source of the noise.
      spec: Gives the 8-bit range.

    Returns:
      uint8[num_frames, d], quantized.
    """
    low, high = spec.dequantize(np.array([0.0, 255.0]))
    target = np.clip((mean - low) * (255 / (high - low)), 0, 255).astype(np.float32)
    noise = _frame_noise(num_frames, len(mean), rng)
    noise *= np.float32(255 / (high - low))
    noise += target - noise.mean(axis=0)
    clipped = np.clip(noise, 0, 255)
    for _ in range(_MAX_SHIFTS):
        excess = target - clipped.mean(axis=0)
        off = np.flatnonzero(np.abs(excess) > _MEAN_TOLERANCE)
        if not len(off):
            break
        # Newton's step: only values that are not clipped move with a shift.
        columns = noise[:, off]
        free = np.mean((columns > 0) & (columns < 255), axis=0, dtype=np.float32)
        columns += excess[off] / np.maximum(free, 1 / num_frames)
        noise[:, off] = columns
        clipped[:, off] = np.clip(columns, 0, 255)
    return np.rint(clipped).astype(np.uint8)


def _frame_noise(num_frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return stationary AR(1) noise over the frames, float32[num_frames, size]."""
    noise = rng.standard_normal((num_frames, size), np.float32)
    noise[1:] *= np.float32(np.sqrt(1 - FRAME_CORRELATION**2))
    step = np.empty(size, np.float32)
    for index in range(1, num_frames):
        np.multiply(noise[index - 1], np.float32(FRAME_CORRELATION), out=step)
        noise[index] += step
    if FRAME_STD != 1.0:
        noise *= np.float32(FRAME_STD)
    return noise
