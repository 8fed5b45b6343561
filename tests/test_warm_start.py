"""A network that starts as its teachers."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC, random_model
from keras import ops

from vidpress.model.networks import classifiers, many_rates
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
    teacher = Teacher(models, SPEC, NUM_CLASSES, activations=bool(options.reconstruction))
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


# Teachers whose classes are on in some videos, and off in others.
SCORES = dataclasses.replace(
    OPTIONS, lmbda=0.01, linear_bottleneck=0, reconstruction=0.0, score_bottleneck=True, width_multiplier=2
)


@pytest.fixture(scope="module")
def rare(two_teachers):
    return [
        dataclasses.replace(model, head=(model.head[0], np.full(NUM_CLASSES, -5, np.float32))) for model in two_teachers
    ]


@pytest.mark.parametrize("lmbda_range", [None, (0.002, 0.05)])
def test_scores_above_what_a_bit_costs_are_coded(rare, lmbda_range):
    network, decoder, _ = started(dataclasses.replace(SCORES, lmbda_range=lmbda_range), *rare)
    assert decoder is None
    scores = mean_logits(rare, X)
    shares = []
    for lmbda in (0.01,) if lmbda_range is None else (0.002, 0.01, 0.05):
        if lmbda_range:
            many_rates.select_lmbda(network, lmbda)
        threshold = np.log(lmbda / (1 - lmbda))
        z = ops.convert_to_numpy(classifiers.activations_model(network)(X))
        # Between two of a range's anchors, thresholds are interpolated.
        np.testing.assert_allclose(z / 2, np.maximum(scores - threshold, 0), atol=0.02)
        on = np.rint(z) > 0
        logits = ops.convert_to_numpy(network(X))
        assert np.abs(logits - scores)[on].max() < 0.25 + 0.15
        assert (logits[~on] < threshold).all()
        assert (logits[~on] > threshold - 0.15).all()
        # Of two that are off, the more frequent class comes first.
        probability = [np.mean(1 / (1 + np.exp(-scores[~on[:, number], number]))) for number in range(NUM_CLASSES)]
        off = [logits[~on[:, number], number] for number in range(NUM_CLASSES)]
        assert [np.ptp(each) for each in off] == [0] * NUM_CLASSES
        np.testing.assert_array_equal(np.argsort([each[0] for each in off]), np.argsort(probability))
        shares.append(on.mean())
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] <= shares[0] < 0.9
    assert len(set(shares)) == len(shares)


def test_a_network_that_starts_as_its_teachers_needs_no_training(rare, tmp_path):
    labels = np.arange(len(X), dtype=np.int32) % NUM_CLASSES
    videos = LabelledVideos(X, labels, np.arange(len(X) + 1), 0, {"sha256": "0"})
    options = dataclasses.replace(SCORES, steps=0)
    network = loop.train(options, SPEC, videos, str(tmp_path / "scores"), teachers=rare)
    started_as = started(options, *rare)[0]
    loaded = loop.load_trained(str(tmp_path / "scores")).network
    for variables in zip(network.variables, started_as.variables, loaded.variables, strict=True):
        own, others, read = (ops.convert_to_numpy(variable) for variable in variables)
        np.testing.assert_array_equal(own, others)
        np.testing.assert_array_equal(own, read)
    at = {}
    for lmbda in (0.002, 0.01):
        many = dataclasses.replace(options, lmbda=lmbda, lmbda_range=(0.002, 0.05))
        network = loop.train(many, SPEC, videos, str(tmp_path / "many"), teachers=rare)
        at[lmbda] = ops.convert_to_numpy(classifiers.activations_model(network)(X))
    np.testing.assert_allclose(
        (at[0.002] - at[0.01])[at[0.01] > 0] / 2, np.log(0.01 / 0.99 / (0.002 / 0.998)), atol=0.05
    )
    with pytest.raises(loop.TrainingError, match="steps=0 leaves the weights random"):
        loop.train(options, SPEC, videos, str(tmp_path / "none"), teachers=rare[:1])


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
    assert warm_start.can_start_as(SCORES, two_teachers)
    for change in ({"score_bottleneck": False}, {"lmbda": 0.0}, {"width_multiplier": 1}):
        assert not warm_start.can_start_as(dataclasses.replace(SCORES, **change), two_teachers)
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
