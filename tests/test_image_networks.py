"""ResNetV2-20 and ResNetV2-50: layers, sizes, and where the bottleneck is."""

import dataclasses
import math
import random

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import keras

from vidpress.model.images.experiments import EXPERIMENTS
from vidpress.model.images.networks import build_image_network, start_as
from vidpress.model.networks import plug_in
from vidpress.model.networks.bottleneck import Bottleneck, bottleneck_of
from vidpress.model.networks.many_rates import select_lmbda

FASHION, CIFAR, CIFAR_100, IMAGENET = (
    EXPERIMENTS[name]
    for name in ("fashion-mnist-resnetv2-20", "cifar10-resnetv2-20", "cifar100-resnetv2-20", "imagenet-resnetv2-50")
)


def kernels(model):
    return [w for w in model.trainable_weights if "kernel" in w.name]


def test_resnet_v2_20_has_the_parameters_of_he_et_al():
    model = build_image_network(CIFAR, lmbda=0)
    # 19 convolutions of 3 x 3 and the logits, and two shortcuts.
    widths = [(3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5]
    assert len(kernels(model)) == 20 + 2
    convolutions = sum(9 * a * b for a, b in widths)
    shortcuts = 16 * 32 + 32 * 64
    assert sum(int(np.prod(w.shape)) for w in kernels(model)) == convolutions + shortcuts + 64 * 10
    # Batch normalisation before every convolution but the first, and at the end; beta and gamma.
    batch_norms = 2 * sum(a for a, _ in [*widths[1:], (64, 10)])
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == (
        convolutions + shortcuts + batch_norms + 64 * 10 + 10
    )
    assert 0.27e6 < model.count_params() < 0.28e6
    assert model.get_layer("features").output.shape == (None, 64)
    assert model.output_shape == (None, 10)
    assert build_image_network(CIFAR_100, lmbda=0).output_shape == (None, 100)


def test_resnet_v2_50_has_the_parameters_of_keras():
    model = build_image_network(IMAGENET, lmbda=0)
    # What keras.applications.ResNet50V2 has with its own logits.
    assert model.count_params() == 25_613_800
    assert model.get_layer("features").output.shape == (None, 2048)
    assert model.output_shape == (None, 1000)


@pytest.mark.parametrize("experiment", [FASHION, CIFAR])
@pytest.mark.parametrize("spatial", [False, True])
def test_the_bottleneck_rounds_the_penultimate_activations(experiment, spatial):
    model = build_image_network(experiment, lmbda=0.1, spatial=spatial, mixed_precision=True)
    (bottleneck,) = [layer for layer in model.layers if isinstance(layer, Bottleneck)]
    shape = experiment.feature_shape(spatial)
    assert model.get_layer("features").output.shape == bottleneck.output.shape == (None, *shape)
    assert {v.shape[-1] for v in bottleneck.trainable_variables} == {64}
    x = np.random.default_rng(0).uniform(-1, 1, (3, *experiment.image_shape)).astype(np.float32)
    z_hat = keras.Model(model.input, bottleneck.output)(x).numpy()
    assert z_hat.dtype == np.float32
    np.testing.assert_array_equal(z_hat, np.rint(z_hat))
    pooled = z_hat.mean(axis=(1, 2)) if spatial else z_hat
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(model(x), keras.ops.matmul(pooled, kernel) + bias, atol=1e-5)
    assert len(model.losses) == 1
    assert keras.mixed_precision.dtype_policy().name == "float32"


@pytest.mark.parametrize("spatial", [False, True])
def test_a_network_for_many_rates_is_another_at_each(spatial):
    model = build_image_network(FASHION, lmbda=0.002, lmbda_range=(0.001, 0.008), spatial=spatial)
    bottleneck = bottleneck_of(model)
    assert bottleneck.output.shape == (None, *FASHION.feature_shape(spatial))
    rng = np.random.default_rng(0)
    for layer in (layer for layer in model.layers if layer.name.startswith("rate_affine")):
        layer.set_weights([weight + rng.normal(0, 0.3, weight.shape) for weight in layer.get_weights()])
    x = rng.uniform(-1, 1, (3, *FASHION.image_shape)).astype(np.float32)
    at = {}
    for lmbda in (0.002, 0.001, 0.008):
        select_lmbda(model, lmbda)
        z_hat, logits = plug_in.quantize(model, x), model(x).numpy()
        # The head reads what is stored as the network at the selected lmbda does.
        np.testing.assert_allclose(plug_in.head_of(model)(z_hat.astype(np.float32)), logits, atol=1e-5)
        at[lmbda] = z_hat.tobytes(), logits.tobytes()
    assert len({z_hat for z_hat, _ in at.values()}) == len({logits for _, logits in at.values()}) == 3
    with pytest.raises(ValueError, match="must lie in the range"):
        select_lmbda(model, 0.01)
    with pytest.raises(ValueError, match="has no tables for its prior"):
        plug_in.freeze(model, x, tables="prior")
    with pytest.raises(ValueError, match="is for one rate"):
        select_lmbda(build_image_network(FASHION, lmbda=0.002), 0.002)


@pytest.mark.parametrize("experiment", [FASHION, CIFAR])
@pytest.mark.parametrize("spatial", [False, True])
def test_a_network_starts_as_one_without_a_rate(experiment, spatial):
    trained = build_image_network(experiment, lmbda=0, spatial=not spatial, seed=1)
    rng = np.random.default_rng(0)
    for layer in (layer for layer in trained.layers if isinstance(layer, keras.layers.BatchNormalization)):
        layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    model = build_image_network(experiment, lmbda=0.002, lmbda_range=(0.001, 0.004), spatial=spatial)
    steps = np.abs(model.get_layer("post_bn").gamma).mean()
    start_as(model, trained)
    assert np.abs(model.get_layer("post_bn").gamma).mean() == pytest.approx(steps)
    x = rng.uniform(-1, 1, (2, *experiment.image_shape)).astype(np.float32)
    unrounded = keras.Model(model.input, model.get_layer("features").output)(x)
    expected = trained(x).numpy()
    np.testing.assert_allclose(plug_in.head_of(model)(unrounded), expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(model(x) - expected).max() > 1e-3 * np.abs(expected).max()


def test_the_same_seed_gives_the_same_network():
    first, second, other = (
        np.concatenate([w.ravel() for w in build_image_network(FASHION, lmbda=0.1, seed=seed).get_weights()])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize("experiment", [FASHION, IMAGENET])
def test_every_kernel_follows_from_the_seed_and_nothing_else_does(experiment):
    random.seed(9)
    before, numpy_before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 - others draw from it
    one, same, other = (kernels(build_image_network(experiment, lmbda=0.1, seed=seed)) for seed in (1, 1, 2))
    for kernel, again, another in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(kernel, again)
        assert (kernel.numpy() != another.numpy()).any()
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


def test_a_negative_lmbda_is_refused():
    with pytest.raises(ValueError, match="lmbda=-1 must not be negative"):
        build_image_network(FASHION, lmbda=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": None, "steps": 0}, "steps=0"),
        ({"epochs": None}, "steps=None, epochs=None: give exactly one"),
        ({"steps": 5}, "steps=5, epochs=4: give exactly one"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"lmbda": -1.0}, "lmbda=-1.0"),
        ({"lmbda": 0.1, "lmbda_range": (0.2, 0.3)}, "lmbda=0.1 must lie in lmbda_range=0.2 0.3"),
        ({"lmbda": 0.2, "lmbda_range": (0.3, 0.2)}, "the lower one first"),
        ({"optimizer": "lion"}, "optimizer='lion' must be one of sgd, adam"),
        ({"decays": (0.5, 1.0)}, "decays="),
        ({"decays": (0.85, 0.6)}, "must be ascending shares"),
        ({"seed": 2**32}, "seed=4294967296 must be below"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FASHION.options, **change)


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("cifar10-resnetv2-20", (128_000, 128, 0.005, (32, 32, 3), 4096)),
        ("cifar100-resnetv2-20", (128_000, 128, 0.005, (32, 32, 3), 4096)),
        ("imagenet-resnetv2-50", (300_000, 256, 0.001, (299, 299, 3), 204_800)),
    ],
)
def test_the_papers_settings_are_the_defaults(name, paper):
    experiment = EXPERIMENTS[name]
    options = experiment.options
    size = math.prod(experiment.feature_shape(options.spatial))
    assert (options.steps, options.batch_size, options.learning_rate, experiment.image_shape, size) == paper
    assert (options.optimizer, options.decays, options.weight_decay) == ("adam", (), 1e-4)  # no steps: a cosine
