"""Task heads: linear classifiers trained on stored features, as a user's training job would."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from vidpress.model.metrics import MetricsAccumulator
from vidpress.model.networks import classifiers
from vidpress.model.training.steps import TrainingStep
from vidpress.model.training.training_data import LabelledVideos

# The share of the training videos that decides when to stop.
STOPPING_SHARE = 0.1

_BATCH = 256
# Adam's learning rates at the start: lower for a head that is already good, so that the first round does not spoil it.
_LEARNING_RATE = 0.001
_LEARNING_RATE_FROM_INITIAL = 0.0001
_DECAY_A_ROUND = 0.85
# A round is an epoch, or this many steps if that is more.
_MIN_ROUND_STEPS = 30
_MAX_ROUNDS = 40
# Rounds without a better GAP after which training stops.
_PATIENCE = 2

_EVALUATION_BATCH = 2048


class TaskHead(NamedTuple):
    """A linear classifier: `logits = features @ kernel + bias`.

    Attributes:
      kernel: float32[num_dims, num_classes].
      bias: float32[num_classes].
      rounds: After how many rounds of training it was best. A round is a pass over the training data, or several passes
        if there are few videos.
    """

    kernel: np.ndarray
    bias: np.ndarray
    rounds: int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32[num_videos, num_classes] of float32[num_videos, num_dims]."""
        return features @ self.kernel + self.bias


def train_head(
    features: np.ndarray,
    videos: LabelledVideos,
    num_classes: int,
    *,
    initial: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> TaskHead:
    """Train a logistic classifier, and stop where its GAP on a tenth of the training videos is best.

    Args:
      features: float32[num_videos, num_dims], the features of the training videos, stored and read back.
      videos: The training videos, for their labels.
      num_classes: How many classes there are.
      initial: Kernel and bias to start from; by default 0 and the classes' log-odds.
      seed: Seed of the split and of the order of the data.

    Returns:
      The classifier of the best round; round 0 is before training.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(features))
    stopping, training = np.split(order, [max(1, int(len(order) * STOPPING_SHARE))])
    mean, scale = _moments(features, training)
    if initial is None:
        frequencies = videos.class_frequencies(num_classes)
        start = (
            np.zeros((features.shape[1], num_classes), np.float32),
            (np.log(frequencies) - np.log1p(-frequencies)).astype(np.float32),
        )
    else:
        start = (initial[0] * scale[:, None], initial[1] + mean @ initial[0])
    layer = keras.layers.Dense(num_classes, dtype="float32")
    head = keras.Sequential([keras.Input((features.shape[1],)), layer])
    head.set_weights(start)
    passes = -(-_MIN_ROUND_STEPS * _BATCH // len(training))
    learning_rate = _LEARNING_RATE if initial is None else _LEARNING_RATE_FROM_INITIAL
    step = _step(head, learning_rate, -(-passes * len(training) // _BATCH))
    best, best_gap, best_round = start, -1.0, 0
    for number in range(_MAX_ROUNDS + 1):
        if number:
            order = np.concatenate([rng.permutation(training) for _ in range(passes)])
            for first in range(0, len(order), _BATCH):
                rows = order[first : first + _BATCH]
                x = (features[rows] - mean) / scale
                step(x, videos.multi_hot(rows, num_classes).astype(np.float32))
        kernel, bias = head.get_weights()
        accumulator = MetricsAccumulator(num_classes)
        for first in range(0, len(stopping), _EVALUATION_BATCH):
            rows = stopping[first : first + _EVALUATION_BATCH]
            logits = ((features[rows] - mean) / scale) @ kernel + bias
            accumulator.update(logits, videos.multi_hot(rows, num_classes))
        gap = accumulator.result().gap
        if gap > best_gap:
            best, best_gap, best_round = (kernel, bias), gap, number
        elif number - best_round >= _PATIENCE:
            break
    kernel = best[0] / scale[:, None]
    return TaskHead(kernel, best[1] - mean @ kernel, best_round)


def _moments(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each dimension, float32; 1 for those that do not vary."""
    sample = features[rows]
    mean, deviation = sample.mean(axis=0, dtype=np.float64), sample.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)


def _step(head: keras.Model, learning_rate: float, round_steps: int) -> TrainingStep:
    schedule = keras.optimizers.schedules.ExponentialDecay(learning_rate, round_steps, _DECAY_A_ROUND, staircase=True)

    def losses(x: Any, labels: Any) -> tuple[Any, Any]:
        loss = classifiers.task_loss(labels, head(x, training=True))
        return loss, loss

    return TrainingStep(head, losses, {"optimizer": (keras.optimizers.Adam(schedule), head.trainable_variables)})
