"""Batches of images: their order, their augmentation, and their pixels from -1 to 1."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from vidpress.model.images.experiments import Experiment, Images
from vidpress.model.images.files import ImageNetRecords

# ImageNet's usual preprocessing: what is measured is the middle of an image whose shorter side is this much longer.
_MEASURED_SIDE = 256 / 224
# A training crop's share of the image's area, and its aspect ratio (Szegedy et al., "Going Deeper with Convolutions").
_AREA, _ASPECT_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def training_batches(
    data: Images, experiment: Experiment, *, batch_size: int, seed: int, first_step: int, num_steps: int
) -> tf.data.Dataset:
    """Return the batches of some training steps.

    In every epoch each image comes once, in an order of its own; a batch may reach from one epoch into the next. Step
    s's batch, augmentation included, depends on `seed` and s alone.

    Args:
      data: The training images.
      experiment: How they are augmented.
      batch_size: Images a step.
      seed: Of order and augmentation.
      first_step: The first step, counted from 0.
      num_steps: How many.

    Returns:
      A dataset of `(pixels float32[batch_size, height, width, channels], labels int32[batch_size])`.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox([seed, epoch])).permutation(len(data))

    def read(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), len(data))
        found, labels = data.read(
            np.concatenate([order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        )
        if not isinstance(data, ImageNetRecords):
            # The last number keeps the streams apart: of orders, and of augmentation.
            rng = np.random.Generator(np.random.Philox([seed, int(step), 1]))
            found = shifted(found, rng, experiment.max_shift, experiment.flip)
        return found, labels

    steps = tf.data.Dataset.range(first_step, first_step + num_steps)
    batches = _read(steps, read, data)
    if isinstance(data, ImageNetRecords):
        random = functools.partial(_random_crop, size=experiment.image_shape[0])
        seeds = steps.map(lambda step: tf.stack([step * batch_size, tf.cast(seed, tf.int64)]))
        batches = tf.data.Dataset.zip((batches, seeds)).map(
            lambda batch, start: (_each(random, batch[0], start), batch[1]), num_parallel_calls=tf.data.AUTOTUNE
        )
    return _finish(batches, experiment, batch_size)


def measuring_batches(data: Images, experiment: Experiment, *, batch_size: int = 256) -> tf.data.Dataset:
    """Return all images in their order, as they are: `(pixels, labels)` as `training_batches`, the last batch short."""

    def read(start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return data.read(np.arange(start, min(start + batch_size, len(data))))

    batches = _read(tf.data.Dataset.range(0, len(data), batch_size), read, data)
    if isinstance(data, ImageNetRecords):
        middle = functools.partial(_middle_crop, size=experiment.image_shape[0])
        batches = batches.map(
            lambda jpegs, labels: (_each(middle, jpegs, tf.zeros(2, tf.int64)), labels),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    return _finish(batches, experiment, None)


def shifted(images: np.ndarray, rng: np.random.Generator, max_shift: int, flip: bool) -> np.ndarray:
    """Move images by up to `max_shift` pixels in each direction, what comes in being black, and mirror half of them.

    Args:
      images: uint8[n, height, width, channels].
      rng: Of where to.
      max_shift: Pixels.
      flip: Whether images are mirrored.
    """
    num, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    top, left = rng.integers(0, 2 * max_shift + 1, (2, num, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    if flip:
        mirrored = rng.random(num) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    return padded[np.arange(num)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _read(numbers: tf.data.Dataset, read, data: Images) -> tf.data.Dataset:
    kind = tf.string if isinstance(data, ImageNetRecords) else tf.uint8
    return numbers.map(
        lambda number: tuple(tf.numpy_function(read, [number], (kind, tf.int32), stateful=False)),
        num_parallel_calls=2,
        deterministic=True,
    )


def _finish(batches: tf.data.Dataset, experiment: Experiment, batch_size: int | None) -> tf.data.Dataset:
    def scale(pixels: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.ensure_shape(tf.cast(pixels, tf.float32) / 127.5 - 1, (batch_size, *experiment.image_shape))
        return pixels, tf.ensure_shape(labels, (batch_size,))

    return batches.map(scale, num_parallel_calls=2, deterministic=True).prefetch(4)


def _each(crop, jpegs: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Apply `crop(jpeg, seed int64[2])` to each JPEG: float32[n, size, size, 3], from 0 to 255."""
    numbers = tf.range(tf.size(jpegs, tf.int64))
    seeds = tf.stack([start[0] + numbers, tf.fill(tf.shape(numbers), start[1])], axis=1)
    return tf.map_fn(lambda pair: crop(*pair), (jpegs, seeds), fn_output_signature=tf.float32)


def _random_crop(jpeg: tf.Tensor, seed: tf.Tensor, *, size: int) -> tf.Tensor:
    """Return a part of random area and aspect ratio, mirrored or not."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(jpeg),
        tf.zeros((1, 0, 4)),
        seed,
        aspect_ratio_range=_ASPECT_RATIO,
        area_range=_AREA,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    image = tf.image.resize(tf.image.decode_and_crop_jpeg(jpeg, window, channels=3), (size, size))
    return tf.image.stateless_random_flip_left_right(image, seed)


def _middle_crop(jpeg: tf.Tensor, seed: tf.Tensor, *, size: int) -> tf.Tensor:
    """Return the middle: the square that a `size` crop is of an image whose shorter side is `_MEASURED_SIDE` of it."""
    del seed
    shape = tf.cast(tf.image.extract_jpeg_shape(jpeg)[:2], tf.float32)
    side = tf.reduce_min(shape) / _MEASURED_SIDE
    begin = tf.cast((shape - side) / 2, tf.int32)
    length = tf.maximum(tf.cast(side, tf.int32), 1)
    window = tf.stack([begin[0], begin[1], length, length])
    return tf.image.resize(tf.image.decode_and_crop_jpeg(jpeg, window, channels=3), (size, size))
