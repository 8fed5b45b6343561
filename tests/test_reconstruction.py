"""What a network learns besides its task: to give back its input, or a teacher's activations."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC, random_model
from keras import ops

from vidpress.model.frozen.input_decoder import fit_input_decoder
from vidpress.model.networks import classifiers
from vidpress.model.networks.reconstruction import Decoder, InputDropout
from vidpress.model.networks.teacher import Teacher
from vidpress.model.training import freezing, loop
from vidpress.model.training.options import FreezingOptions, TrainingOptions
from vidpress.model.training.training_data import LabelledVideos

RNG = np.random.default_rng(0)
NUM_CLASSES = 7


def test_dropout_sets_a_share_of_the_input_to_zero_and_keeps_the_mean():
    layer = InputDropout(0.25, seed=3)
    x = RNG.normal(size=(300, 40)).astype(np.float32)
    first, second = (ops.convert_to_numpy(layer(x, training=True)) for _ in range(2))
    for dropped in (first, second):
        kept = dropped != 0
        np.testing.assert_allclose(dropped[kept], x[kept] / 0.75, rtol=1e-6)
        assert kept.mean() == pytest.approx(0.75, abs=0.01)
        np.testing.assert_allclose(kept.mean(axis=0), 0.75, atol=0.11)
        np.testing.assert_allclose(kept.mean(axis=1), 0.75, atol=0.25)
    assert ((first == 0) != (second == 0)).any()
    np.testing.assert_array_equal(layer(x), x)
    again = InputDropout.from_config(layer.get_config())
    np.testing.assert_array_equal(again(x, training=True), first)
    with pytest.raises(ValueError, match="rate=1 must lie in"):
        InputDropout(1)


def test_the_loss_is_the_share_of_the_variance_that_is_not_given_back():
    features = RNG.normal(size=(50, 6)).astype(np.float32)
    target = RNG.normal(3, 2, (50, 4)).astype(np.float32)
    decoder = Decoder(5.0, 4)
    decoder(features)
    decoder._kernel.assign(np.zeros((6, 4)))
    decoder._bias.assign(target.mean(axis=0))
    assert float(decoder.loss(features, target)) == pytest.approx(5.0, rel=1e-5)
    # Scale makes no difference.
    decoder._bias.assign(100 * target.mean(axis=0))
    assert float(decoder.loss(features, 100 * target)) == pytest.approx(5.0, rel=1e-5)
    linear = RNG.normal(size=(6, 4)).astype(np.float32)
    decoder._kernel.assign(linear)
    decoder._bias.assign(np.ones(4))
    assert float(decoder.loss(features, features @ linear + 1)) == pytest.approx(0, abs=1e-6)


def test_a_teachers_activations_are_its_own_where_errors_change_its_logits_most():
    model = random_model(SPEC, num_classes=NUM_CLASSES)
    teacher = Teacher(
        [model, random_model(SPEC, hidden=(30, 12), num_classes=NUM_CLASSES)], SPEC, NUM_CLASSES, activations=True
    )
    x = RNG.normal(size=(20, SPEC.input_size)).astype(np.float32)
    found = ops.convert_to_numpy(teacher.activations(x))
    assert found.shape == (20, teacher.num_activations) == (20, 52)
    turned = found[:, :40].astype(np.float64)
    activations = model.bottleneck(x).astype(np.float64)
    kernel = model.head[0].astype(np.float64)
    metric = kernel @ kernel.T
    metric = metric / np.diag(metric).mean() + 0.1 * np.eye(40)
    errors, turned = activations[1:] - activations[:-1], turned[1:] - turned[:-1]
    np.testing.assert_allclose((turned**2).sum(axis=1), np.einsum("ni,ij,nj->n", errors, metric, errors), rtol=1e-3)


def made_up(num_videos: int) -> LabelledVideos:
    """Videos whose label says nothing about most of their input."""
    x = RNG.normal(size=(num_videos, SPEC.input_size)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int32)
    return LabelledVideos(x, labels, np.arange(num_videos + 1), 0, {"sha256": "0"})


OPTIONS = TrainingOptions(
    hidden=(24,), lmbda=0.001, steps=300, num_classes=2, batch_size=64, learning_rate=0.01, prior_banks=1
)


def unexplained(model, videos) -> float:
    """The share of the input's variance that a linear decoder of the codes does not give back."""
    z_hat = model.quantize(videos.x)
    restored = fit_input_decoder([(z_hat[::2], videos.x[::2])]).restore(z_hat[1::2])
    return float(np.square(restored - videos.x[1::2]).mean() / videos.x.var())


@pytest.mark.parametrize("linear_bottleneck", [0, 24])
def test_a_network_that_learns_it_keeps_what_its_task_does_not_need(tmp_path, linear_bottleneck):
    videos, others = made_up(2000), made_up(1000)
    found = {}
    for weight in (0.0, 50.0):
        options = dataclasses.replace(OPTIONS, reconstruction=weight, linear_bottleneck=linear_bottleneck)
        network = loop.train(options, SPEC, videos, str(tmp_path / str(weight)))
        model = freezing.freeze(network, SPEC, videos, FreezingOptions(banks=1, rounding_lmbda=0.0))
        found[weight] = unexplained(model, others)
        assert freezing.measure(model, others)["hit_at_1"] > 0.7
        z_hat = model.quantize(others.x)
        assert (z_hat.min() > 0) == bool(linear_bottleneck)
        z = ops.convert_to_numpy(classifiers.activations_model(network)(others.x))
        shift = np.rint(model.hidden[-1][1] - freezing.fold_batch_norm(network)[0][-1][1])
        np.testing.assert_allclose(z + shift, model.bottleneck(others.x), atol=0.3)  # lower layers are rounded
        logits = ops.convert_to_numpy(network(others.x))
        assert np.corrcoef(model.logits(z_hat).ravel(), logits.ravel())[0, 1] > 0.95
    assert found[50.0] < 0.7 * found[0.0]


def test_tables_of_the_prior_are_shifted_with_a_linear_bottleneck(tmp_path):
    videos = made_up(500)
    options = dataclasses.replace(OPTIONS, reconstruction=20.0, linear_bottleneck=24)
    network = loop.train(options, SPEC, videos, str(tmp_path))
    found = []
    for tables in ("prior", "empirical"):
        model = freezing.freeze(network, SPEC, videos, FreezingOptions(tables=tables, banks=1, rounding_lmbda=0.0))
        found.append(freezing.measure(model, videos)["bytes_per_video"])
    assert found[0] < 2 * found[1]  # tables that are off by the shift are several times as long
