"""Classifiers on stored features."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from vidpress.model import metrics
from vidpress.model.training import task_heads
from vidpress.model.training.training_data import LabelledVideos

NUM_CLASSES = 4


def videos(num_videos: int, seed: int) -> tuple[np.ndarray, LabelledVideos]:
    """Features of very different scales that tell the one class of each video, and one that never varies."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, num_videos).astype(np.int32)
    features = rng.normal(size=(num_videos, 8))
    features[np.arange(num_videos), labels] += 4
    features = features * np.logspace(-2, 2, 8) + 50
    features[:, 7] = 3
    return features.astype(np.float32), LabelledVideos(
        x=np.zeros((num_videos, 1), np.float32),
        labels=labels,
        label_start=np.arange(num_videos + 1),
        num_unlabelled=0,
        fingerprint={},
    )


def gap(head, features, data):
    return metrics.evaluate(head.logits(features), data.multi_hot(np.arange(len(data)), NUM_CLASSES)).gap


def test_it_learns_and_its_weights_are_for_the_features_as_they_are():
    features, data = videos(2000, 0)
    others, other_data = videos(500, 1)
    head = task_heads.train_head(features, data, NUM_CLASSES)
    ((kernel, bias),) = head.layers
    assert kernel.shape == (8, NUM_CLASSES)
    assert kernel.dtype == bias.dtype == np.float32
    assert head.rounds > 0
    assert gap(head, others, other_data) > 0.9
    again = task_heads.train_head(features, data, NUM_CLASSES)
    np.testing.assert_allclose(again.layers[0][0], kernel, rtol=1e-4, atol=1e-6)


def test_a_hidden_layer_learns_what_is_not_linear():
    """Two classes, by the sign of a product."""
    x = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    data = LabelledVideos(x, labels, np.arange(len(x) + 1), 0, {})
    training, others = data.take(np.arange(2500)), data.take(np.arange(2500, 3000))
    found = {}
    for hidden in (None, 64):
        head = task_heads.train_head(training.x, training, 2, hidden=hidden)
        assert len(head.layers) == (1 if hidden is None else 2)
        found[hidden] = metrics.evaluate(head.logits(others.x), others.multi_hot(np.arange(500), 2)).hit_at_1
    assert found[None] < 0.65
    assert found[64] > 0.9


def test_dimensions_that_are_hardly_ever_on_do_not_drown_the_others():
    """Codes of a bottleneck: most dimensions are on in few videos, and say little."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, 1500).astype(np.int32)
    features = np.zeros((1500, 400), np.float32)
    features[np.arange(1500), labels] = rng.poisson(2, 1500)
    features[:, 4:] = rng.random((1500, 396)) < 0.004
    data = LabelledVideos(features, labels, np.arange(1501), 0, {})
    training, others = data.take(np.arange(1000)), data.take(np.arange(1000, 1500))
    gaps = []
    for tried in (task_heads._TRIED, task_heads._TRIED[-1:]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_heads, "_TRIED", tried)
            gaps.append(gap(task_heads.train_head(training.x, training, NUM_CLASSES), others.x, others))
    assert gaps[0] > gaps[1]


def test_it_never_ends_worse_than_it_started_on_the_videos_that_say_when_to_stop():
    features, data = videos(2000, 0)
    start = task_heads.train_head(features, data, NUM_CLASSES)
    # All other videos have labels that say nothing, so that training leads away from the good start.
    stopping = np.random.default_rng(0).permutation(2000)[: int(2000 * task_heads.STOPPING_SHARE)]
    labels = np.random.default_rng(1).integers(0, NUM_CLASSES, 2000).astype(np.int32)
    labels[stopping] = data.labels[stopping]
    noisy = LabelledVideos(data.x, labels, data.label_start, 0, {})
    kept = task_heads.train_head(features, noisy, NUM_CLASSES, initial=start.layers[0])
    astray = task_heads.train_head(features, noisy, NUM_CLASSES)
    hits = data.multi_hot(stopping, NUM_CLASSES)
    before, after, other = (metrics.evaluate(h.logits(features[stopping]), hits).gap for h in (start, kept, astray))
    assert after >= before - 1e-6
    assert after > other + 0.1
