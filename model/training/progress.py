"""The progress of a training run, and the accuracy of its network on the way."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from tensorboard.summary import Writer
from tqdm import tqdm

from vidpress.model.metrics import Metrics, MetricsAccumulator
from vidpress.model.networks.bottleneck import bottleneck_of
from vidpress.model.training.checkpoints import TrainingError
from vidpress.model.training.options import TrainingOptions
from vidpress.model.training.training_data import LabelledVideos

_EVALUATION_BATCH = 1024

# Validation during training uses at most this many videos; after training, it uses all.
_MAX_VALIDATION_VIDEOS = 10_000


def tensorboard_writer(folder: str) -> Writer:
    """Return TensorBoard's writer. On other backends, keep it from loading TensorFlow, which it does if it can."""
    if keras.backend.backend() != "tensorflow":
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    return Writer(folder)


def mean_loss(losses: Sequence[Any], step: int, learning_rate: float, prior_learning_rate: float) -> float:
    """Return the mean of the task's losses up to a step; the learning rates are for the error message.

    Raises:
      TrainingError: If it is not finite.
    """
    mean = float(np.mean([float(loss) for loss in losses]))
    if not math.isfinite(mean):
        raise TrainingError(
            f"The loss is {mean} at step {step}: lower learning_rate={learning_rate} or "
            f"prior_learning_rate={prior_learning_rate}."
        )
    return mean


class Progress:
    """The progress bar, a line now and then, and TensorBoard."""

    def __init__(self, network: keras.Model, options: TrainingOptions, bar: tqdm, writer: Writer) -> None:
        self._network = network
        self._options = options
        self._bottleneck = bottleneck_of(network)
        self._bar = bar
        self._writer = writer
        self._tasks: list[Any] = []
        self._numbers: dict[str, str] = {}

    def add(self, task: Any) -> None:
        """Add the task's loss of a step, which need not be computed yet."""
        self._tasks.append(task)

    def report(self, step: int) -> None:
        """Write the means since the last report.

        Raises:
          TrainingError: If the loss is not finite.
        """
        task = mean_loss(self._tasks, step, self._options.learning_rate, self._options.prior_learning_rate)
        self._tasks.clear()
        decay = self._options.decay_rate ** ((step - 1) // self._options.decay_steps)
        self._write("train/task_loss", task, step)
        self._write("train/learning_rate", self._options.learning_rate * decay, step)
        self._numbers["task"] = f"{task:.3f}"
        if self._bottleneck is not None:
            self._numbers["bits"] = f"{self._write_bits('train', step):.0f}"
        self._bar.set_postfix(self._numbers)

    def validate(self, step: int, validation: LabelledVideos) -> None:
        """Measure the network on other videos, and write the metrics."""
        metrics = evaluate_network(self._network, validation, max_videos=_MAX_VALIDATION_VIDEOS)
        for name in ("gap", "hit_at_1", "perr", "mean_ap"):
            self._write(f"validation/{name}", getattr(metrics, name), step)
        if self._bottleneck is not None:
            self._write_bits("validation", step)
        self._numbers["GAP"] = f"{metrics.gap:.4f}"
        self._bar.set_postfix(self._numbers)

    def _write(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def _write_bits(self, part: str, step: int) -> float:
        """Write the mean bits of a video since they were last written."""
        assert self._bottleneck is not None
        bits = float(self._bottleneck.bits.result())
        self._write(f"{part}/bits_per_video", bits, step)
        self._bottleneck.bits.reset_state()
        return bits

    def note(self, step: int) -> None:
        """Print the last numbers on a line that stays."""
        numbers = ", ".join(f"{name} {value}" for name, value in self._numbers.items())
        tqdm.write(f"step {step:,} of {self._options.steps:,}: {numbers}", file=sys.stderr)


def evaluate_network(network: keras.Model, videos: LabelledVideos, *, max_videos: int | None = None) -> Metrics:
    """Return a network's metrics, on rounded activations if it has a bottleneck.

    Args:
      network: The network.
      videos: Labelled videos.
      max_videos: If there are more videos, use this many of them, evenly spaced.

    Returns:
      The metrics.
    """
    num_classes = network.output_shape[-1]
    if max_videos is not None:
        videos = videos.sample(max_videos)
    accumulator = MetricsAccumulator(num_classes)
    for start in range(0, len(videos), _EVALUATION_BATCH):
        chunk = np.arange(start, min(start + _EVALUATION_BATCH, len(videos)))
        logits = ops.convert_to_numpy(ops.cast(network(videos.x[chunk], training=False), "float32"))
        accumulator.update(logits, videos.multi_hot(chunk, num_classes))
    return accumulator.result()
