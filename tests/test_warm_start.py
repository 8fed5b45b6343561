"""A network that starts as its teachers."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC, random_model
from keras import ops

from vidpress.model.networks import classifiers
from vidpress.model.networks.teacher import Teacher
from vidpress.model.training import loop, warm_start
from vidpress.model.training.options import TrainingOptions
from vidpress.model.training.training_data import LabelledVideos

NUM_CLASSES = 7
OPTIONS = TrainingOptions(
    hidden=(50, 40), lmbda=1e-9, linear_bottleneck=40, reconstruction=10.0, steps=1, num_classes=NUM_CLASSES
)


@pytest.fixture(scope="module")
def teacher():
    return random_model(SPEC, hidden=(50, 40), num_classes=NUM_CLASSES)


@pytest.fixture(scope="module")
def two_teachers(teacher):
    return [teacher, random_model(SPEC, hidden=(50, 40), num_classes=NUM_CLASSES, seed=1)]


# As wide as two teachers.
WIDE = dataclasses.replace(OPTIONS, width_multiplier=2, linear_bottleneck=80)


X = np.random.default_rng(0).normal(size=(3000, SPEC.input_size)).astype(np.float32)


def started(options, *models):
    network = loop.build_network(options, SPEC, None)
    teacher = Teacher(models, SPEC, NUM_CLASSES, activations=True)
    decoder = loop.build_decoder(network, options, teacher)
    warm_start.start_as(network, decoder, options, models, X)
    return network, decoder, teacher


def mean_logits(models, x):
    return np.mean([model.logits(model.bottleneck(x)) for model in models], axis=0)


@pytest.mark.parametrize("lmbda_range", [None, (1e-10, 1e-8)])
def test_with_fine_steps_and_all_components_it_is_its_teacher(teacher, lmbda_range):
    options = dataclasses.replace(OPTIONS, lmbda_range=lmbda_range)
    network, decoder, activations = started(options, teacher)
    x = X[:200]
    logits, features = classifiers.with_features(network)(x)
    np.testing.assert_allclose(ops.convert_to_numpy(logits), teacher.logits(teacher.bottleneck(x)), atol=2e-2)
    restored = ops.convert_to_numpy(decoder(features))
    np.testing.assert_allclose(restored, ops.convert_to_numpy(activations.activations(x)), atol=2e-2)
    # In training, where batches normalise, it is nearly the same.
    logits, _ = classifiers.with_features(network)(X, training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(logits), teacher.logits(teacher.bottleneck(X)), atol=0.1)


def test_with_fine_steps_and_all_components_it_is_its_teachers_side_by_side(two_teachers):
    network, decoder, activations = started(WIDE, *two_teachers)
    assert classifiers.hidden_layers(network)[0][0].units == 100
    x = X[:200]
    logits, features = classifiers.with_features(network)(x)
    np.testing.assert_allclose(logits, mean_logits(two_teachers, x), atol=2e-2)
    restored = ops.convert_to_numpy(decoder(features))
    np.testing.assert_allclose(restored, ops.convert_to_numpy(activations.activations(x)), atol=2e-2)


def test_few_components_are_those_that_tell_most(teacher):
    errors = []
    for num_dims in (5, 20, 40):
        network, decoder, activations = started(dataclasses.replace(OPTIONS, linear_bottleneck=num_dims), teacher)
        _, features = classifiers.with_features(network)(X)
        target = ops.convert_to_numpy(activations.activations(X))
        errors.append(np.square(ops.convert_to_numpy(decoder(features)) - target).sum() / len(X))
    variances = np.linalg.eigvalsh(np.cov(target.T, bias=True))[::-1]
    np.testing.assert_allclose(errors, [variances[5:].sum(), variances[20:].sum(), 0], rtol=1e-2, atol=1e-2)


def test_steps_follow_from_what_a_bit_costs(teacher):
    """Four times the cost of a bit: twice the step."""
    found = []
    for lmbda in (1e-4, 4e-4):
        network, *_ = started(dataclasses.replace(OPTIONS, lmbda=lmbda), teacher)
        found.append(ops.convert_to_numpy(classifiers.activations_model(network)(X)))
    np.testing.assert_allclose(found[0], 2 * found[1], rtol=1e-2, atol=1e-2)
    assert found[0].mean() == pytest.approx(0, abs=0.1)


def test_only_the_same_layers_before_a_linear_bottleneck_can_start_so(teacher, two_teachers):
    assert warm_start.can_start_as(OPTIONS, [teacher])
    for change in (
        {"hidden": (50, 30)},
        {"linear_bottleneck": 0},
        {"linear_bottleneck": 41},
        {"reconstruction": 0.0},
        {"lmbda": 0.0},
    ):
        assert not warm_start.can_start_as(dataclasses.replace(OPTIONS, **change), [teacher])
    assert not warm_start.can_start_as(OPTIONS, [])
    assert warm_start.can_start_as(WIDE, two_teachers)
    assert not warm_start.can_start_as(WIDE, [teacher])
    assert not warm_start.can_start_as(OPTIONS, two_teachers)
    shallow = random_model(SPEC, hidden=(40,), num_classes=NUM_CLASSES)
    assert not warm_start.can_start_as(WIDE, [teacher, shallow])
    with pytest.raises(ValueError, match="has no task head"):
        started(OPTIONS, dataclasses.replace(teacher, head=None))


def test_a_training_starts_as_its_teachers(two_teachers, tmp_path):
    labels = np.arange(len(X), dtype=np.int32) % NUM_CLASSES
    videos = LabelledVideos(X, labels, np.arange(len(X) + 1), 0, {"sha256": "0"})
    options = dataclasses.replace(WIDE, learning_rate=1e-9, prior_learning_rate=1e-9, batch_size=1000)
    network = loop.train(options, SPEC, videos, str(tmp_path), teachers=two_teachers)
    expected = mean_logits(two_teachers, X)
    found = ops.convert_to_numpy(network(X))
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
