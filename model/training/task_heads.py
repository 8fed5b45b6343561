"""Task heads: classifiers trained on stored features, as a user's training job would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from vidpress.model.metrics import MetricsAccumulator
from vidpress.model.networks import classifiers
from vidpress.model.training.steps import TrainingStep
from vidpress.model.training.training_data import LabelledVideos

# The share of the training videos that decides when to stop, and which learning rate is better.
STOPPING_SHARE = 0.1

_BATCH = 256
# What is tried, the best of which is taken: whether each dimension is scaled by its own deviation, and Adam's learning
# rate at the start. On YouTube-8M, one scale for all is better, the lower rate for activations and codes, the higher
# one for the input. A head that is already good has one so low that the first round does not spoil it.
_TRIED = ((False, 0.001), (False, 0.004), (True, 0.001))
_FROM_INITIAL = ((True, 0.0001),)
_DECAY_A_ROUND = 0.85
# A round is an epoch, or this many steps if that is more.
_MIN_ROUND_STEPS = 30
_MAX_ROUNDS = 40
# Rounds without a better GAP after which training stops.
_PATIENCE = 2

_EVALUATION_BATCH = 2048

# Kernel and bias of each layer.
_Layers = tuple[tuple[np.ndarray, np.ndarray], ...]


class TaskHead(NamedTuple):
    """A classifier: dense layers, with a ReLU between them.

    Attributes:
      layers: `(kernel float32[in, out], bias float32[out])` of each layer; the last one gives the logits.
      rounds: After how many rounds of training it was best. A round is a pass over the training data, or several passes
        if there are few videos.
    """

    layers: _Layers
    rounds: int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32[num_videos, num_classes] of float32[num_videos, num_dims]."""
        for index, (kernel, bias) in enumerate(self.layers):
            features = (np.maximum(features, 0) if index else features) @ kernel + bias
        return features


def train_head(
    features: np.ndarray,
    videos: LabelledVideos,
    num_classes: int,
    *,
    hidden: int | None = None,
    initial: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> TaskHead:
    """Train a classifier, and stop where its GAP on a tenth of the training videos is best.

    What is measured after a round is the average of the weights over its steps.

    Args:
      features: float32[num_videos, num_dims], the features of the training videos, stored and read back.
      videos: The training videos, for their labels.
      num_classes: How many classes there are.
      hidden: Units of a hidden layer, if there is to be one.
      initial: Kernel and bias of a linear classifier to start from; by default 0 and the classes' log-odds.
      seed: Seed of the split, of the order of the data, and of a hidden layer's weights.

    Returns:
      The classifier of the best round; round 0 is before training.
    """
    rng = np.random.default_rng(seed)
    stopping, training = np.split(rng.permutation(len(features)), [max(1, int(len(features) * STOPPING_SHARE))])
    mean, deviations = _moments(features[training])
    frequencies = videos.class_frequencies(num_classes)
    bias = classifiers.log_odds(frequencies).astype(np.float32)
    units = features.shape[1] if hidden is None else hidden
    first_layer: _Layers = ()
    if hidden is not None:
        kernel = keras.initializers.GlorotUniform(seed)((features.shape[1], hidden))
        first_layer = ((keras.ops.convert_to_numpy(kernel), np.zeros(hidden, np.float32)),)

    def measure(head: TaskHead) -> float:
        accumulator = MetricsAccumulator(num_classes)
        for first in range(0, len(stopping), _EVALUATION_BATCH):
            rows = stopping[first : first + _EVALUATION_BATCH]
            accumulator.update(head.logits(features[rows]), videos.multi_hot(rows, num_classes))
        return accumulator.result().gap

    passes = -(-_MIN_ROUND_STEPS * _BATCH // len(training))
    round_steps = -(-passes * len(training) // _BATCH)
    best, best_gap = None, -1.0
    for scales_each, learning_rate in _TRIED if initial is None else _FROM_INITIAL:
        scale = deviations if scales_each else np.full_like(deviations, max(np.sqrt(np.mean(deviations**2)), 1e-6))
        start: _Layers = (*first_layer, (np.zeros((units, num_classes), np.float32), bias))
        if initial is not None:
            start = ((initial[0] * scale[:, None], initial[1] + mean @ initial[0]),)
        training_step = _Step(start, learning_rate, round_steps)
        own_gap, own_round = -1.0, 0
        for number in range(_MAX_ROUNDS + 1):
            layers = start
            if number:
                order = np.concatenate([rng.permutation(training) for _ in range(passes)])
                batches = [order[first : first + _BATCH] for first in range(0, len(order), _BATCH)]
                layers = training_step.round(
                    ((features[rows] - mean) / scale, videos.multi_hot(rows, num_classes)) for rows in batches
                )
            (kernel, shift), *others = layers
            kernel = kernel / scale[:, None]
            head = TaskHead(((kernel, shift - mean @ kernel), *others), number)
            gap = measure(head)
            if best is None or gap > best_gap:
                best, best_gap = head, gap
            if gap > own_gap:
                own_gap, own_round = gap, number
            elif number - own_round >= _PATIENCE:
                break
    if best is None:
        raise ValueError("Nothing was tried.")
    return best


def _moments(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each dimension, float32; 1 for those that do not vary."""
    mean, deviation = sample.mean(axis=0, dtype=np.float64), sample.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)


class _Step:
    """Trains the layers of a head from where they start."""

    def __init__(self, start: _Layers, learning_rate: float, round_steps: int):
        activations = [*["relu"] * (len(start) - 1), None]
        self._head = keras.Sequential(
            [
                keras.Input((len(start[0][0]),)),
                *(
                    keras.layers.Dense(len(bias), activation=activation, dtype="float32")
                    for (_, bias), activation in zip(start, activations, strict=True)
                ),
            ]
        )
        self._head.set_weights([weight for layer in start for weight in layer])
        schedule = keras.optimizers.schedules.ExponentialDecay(
            learning_rate, round_steps, _DECAY_A_ROUND, staircase=True
        )
        optimizer = keras.optimizers.Adam(schedule)
        self._step = TrainingStep(self._head, self._losses, {"optimizer": (optimizer, self._head.trainable_variables)})

    def _losses(self, x: Any, labels: Any) -> tuple[Any, Any]:
        loss = classifiers.task_loss(labels, self._head(x, training=True))
        return loss, loss

    def round(self, batches: Any) -> _Layers:
        """Make a step with each batch, and return the averages of the weights."""
        totals: Sequence[np.ndarray] = []
        count = 0
        for x, labels in batches:
            self._step(x, labels.astype(np.float32))
            weights = self._head.get_weights()
            totals = [total + weight for total, weight in zip(totals, weights, strict=True)] if count else weights
            count += 1
        averages = [total / np.float32(count) for total in totals]
        return tuple(zip(averages[::2], averages[1::2], strict=True))
