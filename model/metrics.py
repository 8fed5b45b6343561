"""GAP@20, Hit@1, PERR and mAP, as the YouTube-8M starter code defines them (eval_util.py there), in NumPy.

A video without labels is not counted: the starter code's PERR lets such a video select every class, and its top
predictions would only lower GAP and mAP. Equal scores rank by class within a video and by video between videos, so that
results are reproducible; the starter code leaves that order to chance.
"""

from __future__ import annotations

import dataclasses
import zlib
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
        self._num_classes = num_classes
        self._labels: list[np.ndarray] = []  # classes, video after video
        self._num_labels: list[np.ndarray] = []
        self._hit_at_1: list[np.ndarray] = []
        self._perr: list[np.ndarray] = []
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
        num_classes = self._num_classes
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
        self._labels.append(np.nonzero(labels)[1].astype(np.int32))
        self._num_labels.append(num_labels)
        self._hit_at_1.append(hits[:, 0])
        right = np.take_along_axis(np.cumsum(hits, axis=1), num_labels[:, None] - 1, axis=1)[:, 0]
        self._perr.append(right / num_labels)
        classes = classes[:, : self._top_k]
        self._classes.append(classes.astype(np.int32))
        self._scores.append(np.take_along_axis(scores, classes, axis=1))
        self._hits.append(hits[:, : self._top_k])

    def result(self) -> Metrics:
        """Return the metrics of all videos so far.

        Raises:
          ValueError: If none of them had labels.
        """
        ranking = self._ranking()
        weights = np.ones(ranking.num_videos, np.int64)
        precisions, num_positives = ranking.average_precisions(weights)
        return Metrics(
            gap=ranking.gap(weights),
            hit_at_1=float(ranking.hit_at_1.mean()),
            perr=float(ranking.perr.mean()),
            mean_ap=float(precisions[num_positives > 0].mean()),
            num_videos=ranking.num_videos,
        )

    def average_precisions(self) -> np.ndarray:
        """Return the average precision of each class, float64[num_classes]; NaN for classes that do not occur.

        Raises:
          ValueError: If no video had labels.
        """
        ranking = self._ranking()
        precisions, num_positives = ranking.average_precisions(np.ones(ranking.num_videos, np.int64))
        return np.where(num_positives > 0, precisions, np.nan)

    def intervals(
        self, groups: Sequence[np.ndarray] = (), *, num_samples: int = 200, share: float = 0.95, seed: int = 0
    ) -> dict[str, list[float] | list[list[float]]]:
        """Return bootstrap intervals of the metrics: of samples of as many videos, drawn with replacement.

        Samples have some videos several times. That lets the average precision of rare classes rise, as copies of a
        video stand side by side in a ranking. So the samples' metrics are shifted to where their mean is the metric.

        Args:
          groups: Integers, classes: for each group the interval of its mean average precision is given, too.
          num_samples: How many samples are drawn.
          share: The share of the samples' metrics that an interval holds; as many are below as above it.
          seed: Seed of the samples.

        Returns:
          `[low, high]` of gap, hit_at_1, perr and mean_ap; and `mean_ap_of_groups`, a list of `[low, high]`. Where no
          class of a group occurs in any sample, they are NaN.

        Raises:
          ValueError: If no video had labels.
        """
        ranking = self._ranking()
        rng = np.random.default_rng(seed)

        def measure(weights: np.ndarray) -> list[float]:
            precisions, num_positives = ranking.average_precisions(weights)
            precisions = np.where(num_positives > 0, precisions, np.nan)
            means = [weights @ ranking.hit_at_1, weights @ ranking.perr]
            of_classes = [_nanmean(precisions), *(_nanmean(precisions[group]) for group in groups)]
            return [ranking.gap(weights), *(mean / ranking.num_videos for mean in means), *of_classes]

        count = ranking.num_videos
        drawn = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(num_samples))
        samples = np.array([measure(weights) for weights in drawn])
        tail = 100 * (1 - share) / 2
        ends = np.full((samples.shape[1], 2), np.nan)
        for column, value in enumerate(measure(np.ones(count, np.int64))):
            of_samples = samples[:, column][~np.isnan(samples[:, column])]
            if len(of_samples) and not np.isnan(value):
                ends[column] = np.percentile(of_samples, [tail, 100 - tail]) - of_samples.mean() + value
        names = ("gap", "hit_at_1", "perr", "mean_ap")
        found = ends.tolist()
        return {**dict(zip(names, found, strict=False)), "mean_ap_of_groups": found[len(names) :]}

    def _ranking(self) -> _Ranking:
        if not self._hits:
            raise ValueError("Metrics need at least one video with labels; there was none.")
        num_labels = np.concatenate(self._num_labels)
        return _Ranking(
            num_classes=self._num_classes,
            labels=np.concatenate(self._labels),
            labels_video=np.repeat(np.arange(len(num_labels)), num_labels),
            hit_at_1=np.concatenate(self._hit_at_1),
            perr=np.concatenate(self._perr),
            classes=np.concatenate(self._classes),
            scores=np.concatenate(self._scores),
            hits=np.concatenate(self._hits),
        )


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


class _Ranking:
    """The top predictions of all videos, best first, together and by class; videos may count several times.

    Attributes:
      num_videos: How many videos there are.
      hit_at_1: bool[num_videos].
      perr: float64[num_videos].
    """

    def __init__(
        self,
        *,
        num_classes: int,
        labels: np.ndarray,
        labels_video: np.ndarray,
        hit_at_1: np.ndarray,
        perr: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        hits: np.ndarray,
    ):
        self.num_videos = len(perr)
        self.hit_at_1, self.perr = hit_at_1, perr
        self._num_classes, self._labels, self._labels_video = num_classes, labels, labels_video
        by_score = np.argsort(-scores.ravel(), kind="stable")
        by_class = by_score[np.argsort(classes.ravel()[by_score], kind="stable")]
        video = np.repeat(np.arange(self.num_videos), hits.shape[1])
        self._video, self._hits = video[by_score], hits.ravel()[by_score]
        self._class_video, self._class_hits = video[by_class], hits.ravel()[by_class]
        self._class = classes.ravel()[by_class]

    def gap(self, weights: np.ndarray) -> float:
        """Return the average precision of one ranking of all predictions."""
        everything = np.zeros(len(self._hits), np.int64)
        num_positives = weights[self._labels_video].sum(keepdims=True)
        return float(_average_precisions(everything, self._hits, weights[self._video], num_positives)[0])

    def average_precisions(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the average precision of each class, and how many videos have it."""
        num_positives = np.bincount(self._labels, weights[self._labels_video], minlength=self._num_classes)
        weights = weights[self._class_video]
        return _average_precisions(self._class, self._class_hits, weights, num_positives), num_positives


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


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """See that labels are class indices.

    Args:
      labels: int[num_labels].
      num_classes: How many classes there are.

    Raises:
      ValueError: If one is not a class.
    """
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {num_classes} classes (0 to "
            f"{num_classes - 1})."
        )


def multi_hot(labels: Sequence[np.ndarray] | Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Turn lists of class indices into bool[num_videos, num_classes].

    Raises:
      ValueError: If an index is not a class.
    """
    rows = np.repeat(np.arange(len(labels)), [len(indices) for indices in labels])
    columns = np.concatenate([np.asarray(indices, np.int64) for indices in labels]) if len(rows) else np.array([], int)
    check_labels(columns, num_classes)
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


def _average_precisions(
    groups: np.ndarray, hits: np.ndarray, weights: np.ndarray, num_positives: np.ndarray
) -> np.ndarray:
    """Return the (non-interpolated) average precision of each group.

    Args:
      groups: int[n], ascending; group of each prediction, the best prediction of a group first.
      hits: bool[n], whether the prediction is right.
      weights: int[n], how many times it counts.
      num_positives: int[num_groups], what recall counts to.

    Returns:
      float64[num_groups]; 0 where `num_positives` is 0.
    """
    starts = np.searchsorted(groups, np.arange(len(num_positives)))
    right, all_ = (np.concatenate([[0], np.cumsum(each)]) for each in (hits * weights, weights))
    first = starts[groups]
    # The copies of a prediction stand one after the other: before the i-th of them are i - 1 others.
    before, before_right = all_[:-1] - all_[first], right[:-1] - right[first]
    precision_at_hit = hits * _sum_of_precisions(before_right, before, weights)
    total = np.bincount(groups, precision_at_hit, minlength=len(num_positives))
    return total / np.maximum(num_positives, 1)


def _sum_of_precisions(before_right: np.ndarray, before: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Return the sum of `(before_right + i) / (before + i)` for i from 1 to the number of copies."""
    total = np.zeros(len(copies))
    for i in range(1, int(copies.max(initial=0)) + 1):
        rows = np.flatnonzero(copies >= i)
        total[rows] += (before_right[rows] + i) / (before[rows] + i)
    return total


def deflated_bytes(rows: np.ndarray) -> int:
    """Return the size of all rows, each deflated by itself at zlib's level 9: what all other sizes are compared with.

    Args:
      rows: [num_rows, ...], of any type.
    """
    return sum(len(zlib.compress(row.tobytes(), 9)) for row in rows)
