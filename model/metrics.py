"""GAP@20, Hit@1, PERR and mAP, as the YouTube-8M starter code defines them (eval_util.py there), in NumPy.

A video without labels is not counted: the starter code's PERR lets such a video select every class, and its top
predictions would only lower GAP and mAP. Equal scores rank by class within a video and by video between videos, so that
results are reproducible; the starter code leaves that order to chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# The starter code's --top_k: how many predictions of a video enter GAP and mAP.
TOP_K = 20


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The four metrics of a set of videos, each from 0 (worst) to 1.

    Attributes:
      gap: Global average precision: the average precision of all videos' top predictions in one ranking.
      hit_at_1: The share of videos whose best-scored class is among their labels.
      perr: Precision at equal recall rate: of as many top classes as a video has labels, the share that is right,
        averaged over videos.
      mean_ap: The average precision of each class over the same top predictions, averaged over the classes that occur.
      num_videos: Over how many videos: those with labels.
    """

    gap: float
    hit_at_1: float
    perr: float
    mean_ap: float
    num_videos: int


class MetricsAccumulator:
    """Collects the metrics batch by batch; of each video it keeps its top predictions only.

    Args:
      num_classes: How many classes there are.
      top_k: How many predictions of a video enter GAP and mAP.
    """

    def __init__(self, num_classes: int, top_k: int = TOP_K):
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1.")
        self._top_k = min(top_k, num_classes)
        self._num_positives = np.zeros(num_classes, np.int64)
        self._num_videos = 0
        self._sum_hit_at_1 = 0.0
        self._sum_perr = 0.0
        self._classes: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._hits: list[np.ndarray] = []

    def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch of videos.

        Args:
          scores: float[num_videos, num_classes]; logits or probabilities, since only their order counts.
          labels: bool or 0/1 [num_videos, num_classes], multi-hot.

        Raises:
          ValueError: If the shapes do not fit, or a score is NaN.
        """
        num_classes = len(self._num_positives)
        scores, labels = np.asarray(scores), np.asarray(labels) > 0
        if scores.shape != labels.shape or scores.ndim != 2 or scores.shape[1] != num_classes:
            raise ValueError(
                f"scores {scores.shape} and labels {labels.shape} must both be [num_videos, {num_classes} classes]."
            )
        if np.isnan(scores).any():
            raise ValueError("A score is NaN: the model that gave it is broken, and nothing can be ranked by it.")
        num_labels = labels.sum(axis=1)
        labelled = num_labels > 0
        scores, labels, num_labels = scores[labelled], labels[labelled], num_labels[labelled]
        if not len(scores):
            return
        classes = top_classes(scores, max(self._top_k, int(num_labels.max())))
        hits = np.take_along_axis(labels, classes, axis=1)
        self._num_videos += len(scores)
        self._num_positives += labels.sum(axis=0)
        self._sum_hit_at_1 += float(hits[:, 0].sum())
        right = np.take_along_axis(np.cumsum(hits, axis=1), num_labels[:, None] - 1, axis=1)[:, 0]
        self._sum_perr += float((right / num_labels).sum())
        classes = classes[:, : self._top_k]
        self._classes.append(classes.astype(np.int32))
        self._scores.append(np.take_along_axis(scores, classes, axis=1))
        self._hits.append(hits[:, : self._top_k])

    def result(self) -> Metrics:
        """Return the metrics of all videos so far.

        Raises:
          ValueError: If none of them had labels.
        """
        if not self._num_videos:
            raise ValueError("Metrics need at least one video with labels; there was none.")
        classes = np.concatenate(self._classes).ravel()
        scores = np.concatenate(self._scores).ravel()
        hits = np.concatenate(self._hits).ravel()
        by_score = np.argsort(-scores, kind="stable")
        everything = np.zeros(len(hits), np.int64)
        gap = _average_precisions(everything, hits[by_score], self._num_positives.sum(keepdims=True))[0]
        by_class = by_score[np.argsort(classes[by_score], kind="stable")]
        occurs = self._num_positives > 0
        precisions = _average_precisions(classes[by_class], hits[by_class], self._num_positives)
        return Metrics(
            gap=float(gap),
            hit_at_1=self._sum_hit_at_1 / self._num_videos,
            perr=self._sum_perr / self._num_videos,
            mean_ap=float(precisions[occurs].mean()),
            num_videos=self._num_videos,
        )


def evaluate(scores: np.ndarray, labels: np.ndarray, top_k: int = TOP_K) -> Metrics:
    """Return the metrics of one set of videos.

    Args:
      scores: float[num_videos, num_classes]; logits or probabilities.
      labels: bool or 0/1 [num_videos, num_classes], multi-hot.
      top_k: How many predictions of a video enter GAP and mAP.

    Raises:
      ValueError: If the shapes do not fit, a score is NaN, or no video has labels.
    """
    accumulator = MetricsAccumulator(np.shape(scores)[-1], top_k)
    accumulator.update(scores, labels)
    return accumulator.result()


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often examples with one class each are classified correctly.

    Attributes:
      accuracy: The share of examples whose best-scored class is theirs.
      top_5_accuracy: The share of examples whose class is among the five best-scored.
      num_images: Over how many examples.
    """

    accuracy: float
    top_5_accuracy: float
    num_images: int


def measure_accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Return the accuracy of scores; equal ones rank by class.

    Args:
      scores: float[num_images, num_classes]; logits or probabilities.
      labels: Integers [num_images], classes.

    Raises:
      ValueError: If the shapes do not fit, there are no images, or a score is NaN.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be [n, num_classes] and [n], n >= 1.")
    if np.isnan(scores).any():
        raise ValueError("A score is NaN: the model that gave it is broken, and nothing can be ranked by it.")
    hits = top_classes(scores, min(5, scores.shape[1])) == labels[:, None]
    return Accuracy(float(hits[:, 0].mean()), float(hits.any(axis=1).mean()), len(labels))


def multi_hot(labels: Sequence[np.ndarray] | Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Turn lists of class indices into bool[num_videos, num_classes].

    Raises:
      ValueError: If an index is not a class.
    """
    rows = np.repeat(np.arange(len(labels)), [len(indices) for indices in labels])
    columns = np.concatenate([np.asarray(indices, np.int64) for indices in labels]) if len(rows) else np.array([], int)
    if len(columns) and not (columns.min() >= 0 and columns.max() < num_classes):
        raise ValueError(
            f"labels run from {columns.min()} to {columns.max()}, but there are {num_classes} classes (0 to "
            f"{num_classes - 1})."
        )
    dense = np.zeros((len(labels), num_classes), bool)
    dense[rows, columns] = True
    return dense


def top_classes(scores: np.ndarray, k: int) -> np.ndarray:
    """Return each row's `k` best classes, best first; equal scores rank by class.

    Args:
      scores: float[num_videos, num_classes], no NaN.
      k: How many, at most `num_classes`.

    Returns:
      int64[num_videos, k].
    """
    num_classes = scores.shape[1]
    if k == num_classes:
        return np.argsort(-scores, axis=1, kind="stable")
    threshold = np.partition(scores, num_classes - k, axis=1)[:, num_classes - k, None]
    chosen = scores > threshold
    tied = scores == threshold
    chosen |= tied & (np.cumsum(tied, axis=1) <= k - chosen.sum(axis=1, keepdims=True))
    classes = np.nonzero(chosen)[1].reshape(-1, k)
    order = np.argsort(-np.take_along_axis(scores, classes, axis=1), axis=1, kind="stable")
    return np.take_along_axis(classes, order, axis=1)


def _average_precisions(groups: np.ndarray, hits: np.ndarray, num_positives: np.ndarray) -> np.ndarray:
    """Return the (non-interpolated) average precision of each group.

    Args:
      groups: int[n], ascending; group of each prediction, the best prediction of a group first.
      hits: bool[n], whether the prediction is right.
      num_positives: int[num_groups], what recall counts to.

    Returns:
      float64[num_groups]; 0 where `num_positives` is 0.
    """
    starts = np.searchsorted(groups, np.arange(len(num_positives)))
    before = np.concatenate([[0], np.cumsum(hits)])
    right = before[1:] - before[starts[groups]]
    precision_at_hit = hits * right / (np.arange(len(groups)) - starts[groups] + 1)
    total = np.bincount(groups, precision_at_hit, minlength=len(num_positives))
    return total / np.maximum(num_positives, 1)
