"""Batches that are prepared while a step runs: by tf.data if Keras runs on TensorFlow, else in threads."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

Batch = tuple[np.ndarray, ...]

_THREADS = 2
_AHEAD = 4


def batches(make: Callable[[int], Batch], steps: range) -> Iterable[Batch]:
    """Return the batches of some steps, in their order.

    Args:
      make: Makes a step's batch: arrays of the same types for all steps, and of the same shapes for all but the last.
        It is called in several threads.
      steps: The steps.

    Returns:
      An iterable, which can be iterated several times: a `tf.data.Dataset` of tensors on TensorFlow, else arrays.
    """
    if not steps:
        return []
    if keras.backend.backend() == "tensorflow":
        return _dataset(make, steps)
    return _InThreads(make, steps)


def _dataset(make: Callable[[int], Batch], steps: range) -> Iterable[Batch]:
    import tensorflow as tf

    first, last = make(steps[0]), make(steps[-1])
    shapes = [
        array.shape if array.shape == other.shape else (None, *array.shape[1:])
        for array, other in zip(first, last, strict=True)
    ]

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        tensors = tf.numpy_function(
            lambda step: make(int(step)), [step], [array.dtype for array in first], stateful=False
        )
        return tuple(tf.ensure_shape(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True))

    # Without this, a thread looks for settings that are given here; and an iterator that ends waits until it wakes up,
    # which can take a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.range(steps.start, steps.stop, steps.step).with_options(options)
    return dataset.map(batch, num_parallel_calls=_THREADS, deterministic=True).prefetch(_AHEAD)


class _InThreads:
    def __init__(self, make: Callable[[int], Batch], steps: range):
        self._make = make
        self._steps = steps

    def __iter__(self) -> Iterator[Batch]:
        pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
        ahead: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
        try:
            for step in self._steps:
                ahead.append(pool.submit(self._make, step))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
