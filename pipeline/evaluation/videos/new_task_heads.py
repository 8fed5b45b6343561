"""Heads for new tasks: trained and measured on features as they are read back, the same training for all features."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vidpress.model.metrics import MetricsAccumulator
from vidpress.pipeline.evaluation.videos.measuring import chunks, rounded

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

# The heads, by name: the units of their hidden layer, if they have one.
HEADS = {"linear": None, "hidden": 2000}

_NUM_GROUPS = 4


def measure_heads(
    features: np.ndarray,
    videos: LabelledVideos,
    validation_features: np.ndarray,
    validation: LabelledVideos,
    num_classes: int,
) -> dict[str, Any]:
    """Train each of `HEADS`, and measure it.

    Args:
      features: float32[num_videos, num_dims], of the videos to train on.
      videos: These videos, with the labels of the new classes.
      validation_features: The same of the videos to measure on.
      validation: These videos.
      num_classes: How many classes are new.

    Returns:
      By the names of `HEADS`: gap, hit_at_1, perr, mean_ap and num_videos; mean_ap_of_quartiles, of the quarter of the
      classes that most training videos have, and so on; intervals, by name, of bootstrap samples of the videos; rounds,
      of the training. Classes that no validation video has are left out.
    """
    from vidpress.model.training import task_heads

    found = {}
    for name, hidden in HEADS.items():
        head = task_heads.train_head(features, videos, num_classes, hidden=hidden)
        accumulator = MetricsAccumulator(num_classes)
        for rows in chunks(len(validation)):
            accumulator.update(head.logits(validation_features[rows]), validation.multi_hot(rows, num_classes))
        precisions = accumulator.average_precisions()
        groups = frequency_groups(np.bincount(videos.labels, minlength=num_classes), ~np.isnan(precisions))
        intervals = accumulator.intervals(groups)
        found[name] = {
            **rounded(dataclasses.asdict(accumulator.result())),
            "mean_ap_of_quartiles": [round(float(precisions[group].mean()), 6) for group in groups],
            "intervals": {
                {"mean_ap_of_groups": "mean_ap_of_quartiles"}.get(key, key): np.round(value, 6).tolist()
                for key, value in intervals.items()
            },
            "rounds": head.rounds,
        }
    return found


def frequency_groups(counts: np.ndarray, occurs: np.ndarray) -> list[np.ndarray]:
    """Divide classes into quarters by frequency, the most frequent first.

    Args:
      counts: int64[num_classes], how many training videos have each.
      occurs: bool[num_classes], which are divided.

    Returns:
      The classes of each quarter that has some.
    """
    classes = np.flatnonzero(occurs)
    order = classes[np.argsort(-counts[classes], kind="stable")]
    return [group for group in np.array_split(order, _NUM_GROUPS) if len(group)]
