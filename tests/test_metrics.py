"""The metrics against oracles written out with loops."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vidpress.model import metrics


def ranked(scores):
    """Class indices, best first; equal scores by class."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def slow_average_precision(predictions, num_positives):
    """`predictions`: (score, hit), in the order in which ties count."""
    total = right = 0
    for rank, (_, hit) in enumerate(sorted(predictions, key=lambda prediction: -prediction[0]), 1):
        right += hit
        total += hit * right / rank
    return total / num_positives


def slow_metrics(scores, labels, top_k):
    videos = [(s, y) for s, y in zip(scores.tolist(), labels.tolist(), strict=True) if sum(y)]
    hit_at_1 = perr = 0
    predictions = []
    for s, y in videos:
        order = ranked(s)
        hit_at_1 += y[order[0]]
        perr += sum(y[index] for index in order[: sum(y)]) / sum(y)
        predictions += [(s[index], y[index], index) for index in order[:top_k]]
    gap = slow_average_precision([(s, hit) for s, hit, _ in predictions], sum(sum(y) for _, y in videos))
    classes = [index for index in range(scores.shape[1]) if any(y[index] for _, y in videos)]
    precisions = [
        slow_average_precision(
            [(s, hit) for s, hit, index in predictions if index == wanted], sum(y[wanted] for _, y in videos)
        )
        for wanted in classes
    ]
    return gap, hit_at_1 / len(videos), perr / len(videos), sum(precisions) / len(precisions)


def as_tuple(result):
    return result.gap, result.hit_at_1, result.perr, result.mean_ap


@st.composite
def scored_videos(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 9)))
    # Few distinct values, so that ties are common.
    scores = draw(npst.arrays(np.float32, shape, elements=st.integers(-3, 3).map(float)))
    labels = draw(npst.arrays(np.bool_, shape))
    return scores, labels


@given(scored_videos(), st.integers(1, 12))
def test_metrics_are_those_of_the_loops(videos, top_k):
    scores, labels = videos
    if not labels.any():
        with pytest.raises(ValueError, match="at least one video with labels"):
            metrics.evaluate(scores, labels, top_k)
        return
    result = metrics.evaluate(scores, labels, top_k)
    np.testing.assert_allclose(as_tuple(result), slow_metrics(scores, labels, top_k), rtol=1e-12)
    assert result.num_videos == labels.any(axis=1).sum()


@given(scored_videos(), st.integers(0, 12))
def test_batches_make_no_difference(videos, cut):
    scores, labels = videos
    if not labels.any():
        return
    accumulator = metrics.MetricsAccumulator(scores.shape[1])
    accumulator.update(scores[:cut], labels[:cut])
    accumulator.update(scores[cut:], labels[cut:])
    np.testing.assert_allclose(as_tuple(accumulator.result()), as_tuple(metrics.evaluate(scores, labels)), rtol=1e-12)


@given(scored_videos())
def test_a_video_without_labels_counts_nowhere(videos):
    scores, labels = videos
    if not labels.any():
        return
    more_scores = np.concatenate([np.full((3, scores.shape[1]), 9, np.float32), scores])
    more_labels = np.concatenate([np.zeros((3, scores.shape[1]), bool), labels])
    assert metrics.evaluate(more_scores, more_labels) == metrics.evaluate(scores, labels)


def test_a_perfect_ranking_scores_one():
    labels = metrics.multi_hot([[0, 2], [1], [3]], 30)
    assert as_tuple(metrics.evaluate(labels.astype(np.float32), labels)) == (1, 1, 1, 1)


def test_only_the_top_predictions_enter_gap_and_map():
    # The one label is ranked 21st of 25.
    scores = np.arange(25, 0, -1, dtype=np.float32)[None]
    labels = metrics.multi_hot([[20]], 25)
    assert as_tuple(metrics.evaluate(scores, labels)) == (0, 0, 0, 0)
    assert metrics.evaluate(scores, labels, top_k=21).gap == pytest.approx(1 / 21)
    assert metrics.evaluate(scores, labels, top_k=21).mean_ap == 1


def test_more_labels_than_top_k_enter_perr():
    labels = metrics.multi_hot([list(range(22))], 40)
    assert metrics.evaluate(-np.arange(40.0)[None], labels).perr == 1


@given(npst.arrays(np.float32, (6, 11), elements=st.integers(-3, 3).map(float)), st.integers(1, 11))
def test_top_classes_are_those_of_a_sort(scores, k):
    assert metrics.top_classes(scores, k).tolist() == [ranked(row)[:k] for row in scores.tolist()]


def test_multi_hot():
    assert metrics.multi_hot([[1], [], [0, 2]], 3).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert metrics.multi_hot([], 3).shape == (0, 3)
    with pytest.raises(ValueError, match="labels run from 0 to 3, but there are 3 classes"):
        metrics.multi_hot([[0, 3]], 3)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "must both be"),
        (np.zeros(3), np.zeros(3), "must both be"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "NaN"),
    ],
)
def test_unusable_input_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(scores, labels)


@given(scored_videos(), st.integers(1, 12))
def test_the_precisions_of_classes_are_those_of_the_loops(videos, top_k):
    scores, labels = videos
    if not labels.any():
        return
    accumulator = metrics.MetricsAccumulator(scores.shape[1], top_k)
    accumulator.update(scores, labels)
    found = accumulator.average_precisions()
    assert (~np.isnan(found)).tolist() == labels.any(axis=0).tolist()
    assert np.nanmean(found) == pytest.approx(slow_metrics(scores, labels, top_k)[3], rel=1e-12)


@given(scored_videos(), st.integers(0, 2**32 - 1))
def test_a_video_that_counts_several_times_is_as_several_videos(videos, seed):
    """What the bootstrap draws. (Of equal scores of a video, copies would come in another order.)"""
    scores, labels = videos
    scores = scores + np.arange(scores.shape[1]) / 64
    kept = labels.any(axis=1)
    scores, labels = scores[kept], labels[kept]
    weights = np.random.default_rng(seed).integers(0, 4, len(scores))
    if not weights.any():
        return
    accumulator = metrics.MetricsAccumulator(scores.shape[1])
    accumulator.update(scores, labels)
    ranking = accumulator._ranking()
    copies = np.repeat(np.arange(len(scores)), weights)
    expected = slow_metrics(scores[copies], labels[copies], metrics.TOP_K)
    precisions, num_positives = ranking.average_precisions(weights)
    assert ranking.gap(weights) == pytest.approx(expected[0], rel=1e-12)
    assert precisions[num_positives > 0].mean() == pytest.approx(expected[3], rel=1e-12)


def test_intervals_are_as_wide_as_samples_differ():
    rng = np.random.default_rng(0)
    labels = metrics.multi_hot(rng.integers(0, 10, (400, 1)), 12)
    scores = labels + rng.normal(0, 0.7, labels.shape)
    accumulator = metrics.MetricsAccumulator(12)
    accumulator.update(scores, labels)
    found = accumulator.intervals([np.arange(5), np.arange(5, 10), np.array([11])])
    result = accumulator.result()
    for name in ("gap", "hit_at_1", "perr", "mean_ap"):
        low, high = found[name]
        assert low < getattr(result, name) < high
    # Hit@1 is a mean of 400 independent draws, of known variance.
    deviation = np.sqrt(result.hit_at_1 * (1 - result.hit_at_1) / 400)
    low, high = found["hit_at_1"]
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.25)
    first, second, never = found["mean_ap_of_groups"]
    precisions = accumulator.average_precisions()
    assert first[0] < precisions[:5].mean() < first[1]
    assert second[0] < precisions[5:10].mean() < second[1]
    assert np.isnan(never).all()
    assert accumulator.intervals(seed=0) == accumulator.intervals(seed=0) != accumulator.intervals(seed=1)
    with pytest.raises(ValueError, match="at least one video"):
        metrics.MetricsAccumulator(3).intervals()


def test_intervals_hold_the_metric_where_classes_are_rare():
    """Copies of a video stand side by side in a sample's ranking, which lets the precision of a rare class rise."""
    rng = np.random.default_rng(1)
    labels = metrics.multi_hot(np.arange(1200)[:, None] % 400, 400)
    accumulator = metrics.MetricsAccumulator(400)
    accumulator.update(labels + rng.normal(0, 0.6, labels.shape), labels)
    low, high = accumulator.intervals()["mean_ap"]
    assert low < accumulator.result().mean_ap < high


def test_top_k_must_be_positive():
    with pytest.raises(ValueError, match="top_k=0"):
        metrics.MetricsAccumulator(3, top_k=0)


def test_accuracy_counts_the_best_and_the_five_best():
    scores = np.array([[9, 8, 7, 6, 5, 4, 3], [0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 9]])
    found = metrics.measure_accuracy(scores, np.array([0, 1, 4, 5]))
    # Equal scores rank by class: the last image's 5 comes after 6 and 0 to 3.
    assert found == metrics.Accuracy(accuracy=1 / 4, top_5_accuracy=2 / 4, num_images=4)
    few = metrics.measure_accuracy(np.array([[0.5, 0.1]]), np.array([1]))
    assert (few.accuracy, few.top_5_accuracy) == (0, 1)
    with pytest.raises(ValueError, match="score is NaN"):
        metrics.measure_accuracy(np.array([[np.nan, 1]]), np.array([0]))
    with pytest.raises(ValueError, match="must be"):
        metrics.measure_accuracy(scores, np.array([1, 2]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_each_row_is_deflated_by_itself(dtype):
    rows = np.random.default_rng(0).integers(0, 4, (30, 7, 3)).astype(dtype)
    assert metrics.deflated_bytes(rows) == sum(len(zlib.compress(rows[i].tobytes(), 9)) for i in range(30))
    assert metrics.deflated_bytes(np.asfortranarray(rows)) == metrics.deflated_bytes(rows)
    assert metrics.deflated_bytes(rows[:0]) == 0
