"""Batches of images: their order, their augmentation, and their pixels from -1 to 1."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from vidpress.model.images.experiments import Experiment, Images
from vidpress.model.images.files import ImageNetRecords
from vidpress.model.images.tables import explained_decoding
from vidpress.model.training import prefetching
from vidpress.model.training.prefetching import Batch

# ImageNet's usual preprocessing: a crop of the middle is measured, of an image whose shorter side is this many times
# the crop's.
_MEASURED_SIDE = 256 / 224
# A training crop's share of the image's area, and its aspect ratio (Szegedy et al., "Going Deeper with Convolutions").
_AREA, _ASPECT_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
# After this many crops that would reach beyond the image, the whole image is used.
_CROP_ATTEMPTS = 10


def training_batches(
    data: Images, experiment: Experiment, *, batch_size: int, seed: int, first_step: int, num_steps: int
) -> Iterable[Batch]:
    """Return the batches of some training steps.

    Every epoch has each image once, in its own order; a batch may reach from one epoch into the next. The batch of step
    s, augmentation included, depends only on `seed` and s.

    Args:
      data: The training images.
      experiment: How they are augmented.
      batch_size: Images in a step.
      seed: Seed of the order and the augmentation.
      first_step: The first step, counted from 0.
      num_steps: How many steps.

    Returns:
      `(pixels float32[batch_size, height, width, channels], labels int32[batch_size])` of each step
      (`prefetching.batches`).
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox([seed, epoch])).permutation(len(data))

    def read(step: int) -> Batch:
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), len(data))
        rows = np.concatenate([order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        found, labels = data.read(rows)
        # The last number keeps the streams apart: of orders, and of augmentation.
        rng = np.random.Generator(np.random.Philox([seed, step, 1]))
        if isinstance(data, ImageNetRecords):
            size = experiment.image_shape[0]
            found = np.stack([_random_crop(image, rng, size) for image in _decoded(data, rows, found)])
        else:
            found = shifted(found, rng, experiment.max_shift, experiment.flip)
        return _scaled(found), labels

    return prefetching.batches(read, range(first_step, first_step + num_steps))


def measuring_batches(data: Images, experiment: Experiment, *, batch_size: int = 256) -> Iterable[Batch]:
    """Return all images in their order, neither augmented nor with labels; the last batch may be smaller.

    Returns:
      `(pixels float32[batch_size, height, width, channels],)` of each batch (`prefetching.batches`).
    """

    def read(start: int) -> Batch:
        rows = np.arange(start, min(start + batch_size, len(data)))
        found, _ = data.read(rows)
        if isinstance(data, ImageNetRecords):
            size = experiment.image_shape[0]
            found = np.stack([_middle_crop(image, size) for image in _decoded(data, rows, found)])
        return (_scaled(found),)

    return prefetching.batches(read, range(0, len(data), batch_size))


def shifted(images: np.ndarray, rng: np.random.Generator, max_shift: int, flip: bool) -> np.ndarray:
    """Move images by up to `max_shift` pixels in each direction, filling in black, and mirror half of them.

    Args:
      images: uint8[n, height, width, channels].
      rng: The source of the random numbers.
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


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """Return float32 from -1 to 1 of uint8."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _random_crop(image: Image.Image, rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a part of random area and aspect ratio, mirrored or not: uint8[size, size, 3]."""
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*_AREA) * image.width * image.height
        ratio = math.exp(rng.uniform(math.log(_ASPECT_RATIO[0]), math.log(_ASPECT_RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = (int(rng.integers(0, room + 1)) for room in (image.width - width, image.height - height))
            break
    else:
        left, top, width, height = 0, 0, image.width, image.height
    pixels = _resized(image, (left, top, left + width, top + height), size)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _middle_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return the middle of an image: a crop of `size` after its shorter side is scaled to `_MEASURED_SIDE * size`."""
    side = max(1.0, min(image.size) / _MEASURED_SIDE)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, (left, top, left + side, top + side), size)


def _decoded(data: ImageNetRecords, rows: np.ndarray, jpegs: np.ndarray) -> Iterator[Image.Image]:
    """Yield the images of some rows.

    Raises:
      ImageDataError: If one cannot be decoded.
    """
    for row, jpeg in zip(rows.tolist(), jpegs, strict=True):
        with explained_decoding(jpeg, data.place(row)):
            image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        yield image


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
