"""The classifiers."""

import random

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import keras  # noqa: E402

from vidpress.model.networks import classifiers, prior_banks  # noqa: E402
from vidpress.model.networks.bottleneck import bottleneck_of  # noqa: E402
from vidpress.model.networks.many_rates import ManyRatesBottleneck, select_lmbda  # noqa: E402


@pytest.mark.parametrize(("hidden", "lmbda"), [((5,), 0.01), ((9, 5), 0.01), ((9, 5), 0.0)])
def test_the_layers_are_the_papers(hidden, lmbda):
    network = classifiers.build_network(7, hidden, 4, lmbda=lmbda)
    names = ["x"]
    for index in range(len(hidden)):
        names += [f"hidden_{index}", f"batch_norm_{index}", f"relu_{index}"]
    assert [layer.name for layer in network.layers] == names + ["bottleneck"] * (lmbda > 0) + ["logits"]
    assert network.output_shape == (None, 4)
    kernels = [layer.kernel.shape for layer in network.layers if hasattr(layer, "kernel")]
    assert kernels == list(zip((7, *hidden), (*hidden, 4), strict=True))
    assert (bottleneck_of(network) is None) == (lmbda == 0)


def test_only_what_is_rounded_starts_small():
    def scales(lmbda):
        layers = classifiers.hidden_layers(classifiers.build_network(7, (9, 5), 4, lmbda=lmbda))
        return [set(batch_norm.gamma.numpy().tolist()) for _, batch_norm in layers]

    assert scales(0.01) == [{1.0}, {np.float32(classifiers.BOTTLENECK_SCALE)}]
    assert scales(0.0) == [{1.0}, {1.0}]


def test_the_logits_see_rounded_activations():
    x = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    network = classifiers.build_network(7, (5,), 4, lmbda=0.01)
    z = classifiers.activations_model(network)(x).numpy()
    kernel, bias = network.get_layer("logits").get_weights()
    np.testing.assert_allclose(network(x), np.rint(z) @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert (z >= 0).all()
    assert (z != np.rint(z)).any()


def test_losses_are_weight_decay_and_rate():
    x = np.zeros((3, 7), np.float32)
    network = classifiers.build_network(7, (5,), 4, lmbda=0.5, weight_decay=0.1)
    network(x, training=False)
    kernels = [layer.kernel.numpy() for layer in network.layers if hasattr(layer, "kernel")]
    decay = sum(0.1 / 2 * (kernel**2).sum() for kernel in kernels)
    bits = float(bottleneck_of(network).bits.result())
    assert sum(map(float, network.losses)) == pytest.approx(decay + 0.5 * bits, rel=1e-5)
    assert bits > 0


def test_the_first_biases_are_the_classes_log_odds():
    frequencies = np.array([0.5, 0.9, 0.001, 0.25])
    bias = classifiers.build_network(7, (5,), 4, lmbda=0, class_frequencies=frequencies).get_layer("logits").bias
    np.testing.assert_allclose(tf.sigmoid(bias), frequencies, rtol=1e-5)
    assert not np.any(classifiers.build_network(7, (5,), 4, lmbda=0).get_layer("logits").bias)


def test_the_seed_fixes_the_weights():
    def weights(seed):
        keras.utils.set_random_seed(random.SystemRandom().randrange(1000))  # must not matter
        return [w.tobytes() for w in classifiers.build_network(7, (9, 5), 4, lmbda=0.01, seed=seed).get_weights()]

    assert weights(1) == weights(1) != weights(2)


def test_the_task_loss_is_summed_over_classes_and_averaged_over_videos():
    labels = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    logits = np.array([[0.5, -2, 0], [3, 1, -1]], np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1).mean()
    assert float(classifiers.task_loss(labels, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("hidden", "classes", "lmbda"), [((), 4, 0), ((5, 0), 4, 0), ((5,), 0, 0), ((5,), 4, -1)])
def test_unusable_sizes_are_refused(hidden, classes, lmbda):
    with pytest.raises(ValueError, match=r"must be positive|must not be negative"):
        classifiers.build_network(7, hidden, classes, lmbda=lmbda)


def test_mixed_precision_rounds_the_products_alone():
    x = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    exact, mixed = (classifiers.build_network(7, (9, 5), 4, lmbda=0.01, mixed_precision=on) for on in (False, True))
    mixed.set_weights(exact.get_weights())
    assert mixed.output.dtype == "bfloat16"
    assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    assert classifiers.activations_model(mixed).output.dtype == "float32"
    assert classifiers.task_loss(np.zeros((20, 4), np.float32), mixed(x)).dtype == tf.float32
    exact, mixed = (classifiers.activations_model(network)(x).numpy() for network in (exact, mixed))
    assert (exact != mixed).any()
    np.testing.assert_allclose(mixed, exact, atol=2**-6)


def network_for_many_rates(**kwargs):
    """A network for many rates in which everything depends on lmbda, and its input."""
    network = classifiers.build_network(7, (9, 5), 4, lmbda=0.002, lmbda_range=(0.001, 0.006), **kwargs)
    rng = np.random.default_rng(0)
    for layer in (layer for layer in network.layers if layer.name.startswith("rate_affine")):
        layer.set_weights([weight + rng.normal(0, 0.3, weight.shape) for weight in layer.get_weights()])
    return network, rng.normal(size=(20, 7)).astype(np.float32)


def test_a_network_for_many_rates_is_another_at_each():
    network, x = network_for_many_rates()
    at = {}
    for lmbda in (0.001, 0.002, 0.0035, 0.006):
        select_lmbda(network, lmbda)
        at[lmbda] = classifiers.activations_model(network)(x).numpy().tobytes(), network(x).numpy().tobytes()
    assert len({z for z, _ in at.values()}) == len({logits for _, logits in at.values()}) == 4
    again, _ = network_for_many_rates()
    assert again(x).numpy().tobytes() == at[0.002][1]
    for lmbda in (0.0009, 0.007):
        with pytest.raises(ValueError, match=r"must lie in the range from 0\.001 to 0\.006"):
            select_lmbda(network, lmbda)


def test_each_video_of_a_batch_is_charged_an_lmbda_of_its_own():
    network, x = network_for_many_rates(weight_decay=0.0)
    rates, bottleneck = network.get_layer("rates"), bottleneck_of(network)
    positions = [rates(x, training=True).numpy()[:, 0] for _ in range(2)]
    for drawn in positions:
        np.testing.assert_array_equal(np.floor(drawn * len(x)), np.arange(len(x)))
    assert (positions[0] != positions[1]).any()
    # The loss of several videos is the mean of theirs: each depends on its own lmbda alone.
    z = np.random.default_rng(1).exponential(2, (20, 5)).astype(np.float32)
    alone = []
    for video, position in zip(z, positions[0], strict=True):
        bottleneck([video[None], tf.constant([[position]])])
        alone.append(float(bottleneck.losses[0]))
    bottleneck([z, tf.constant(positions[0][:, None])])
    assert float(bottleneck.losses[0]) == pytest.approx(np.mean(alone), rel=1e-5)
    bits = []
    for position, lmbda in ((0.0, 0.001), (1.0, 0.006)):
        bottleneck.bits.reset_state()
        bottleneck([z, tf.fill((20, 1), position)])
        bits.append(float(bottleneck.bits.result()))
        assert float(bottleneck.losses[0]) == pytest.approx(lmbda * bits[-1], rel=1e-5)
    assert bits[0] == pytest.approx(bits[1])  # the prior is the same everywhere at first


def test_the_prior_of_many_rates_begins_as_that_of_one():
    z = np.random.default_rng(1).exponential(2, (20, 5)).astype(np.float32)
    network, _ = network_for_many_rates()
    bottleneck = bottleneck_of(network)
    bottleneck.bits.reset_state()
    bottleneck([z, tf.fill((20, 1), 0.3)])
    assert float(bottleneck.bits.result()) == pytest.approx(np.mean(bottleneck.information(tf.round(z))), rel=1e-5)


def test_all_positions_of_a_channel_depend_on_lmbda_alike():
    z = np.random.default_rng(1).exponential(2, (20, 2, 3, 5)).astype(np.float32)
    network, _ = network_for_many_rates()
    affine = network.get_layer("rate_affine_1")
    position = tf.linspace(0.0, 1.0, 20)[:, None]
    of_positions = tf.repeat(position, 6, axis=0)
    flat = affine([z.reshape(-1, 5), of_positions])
    np.testing.assert_allclose(affine([z, position]), tf.reshape(flat, z.shape), rtol=1e-6)
    losses = []
    for inputs in ([z, position], [z.reshape(-1, 5), of_positions]):
        layer = ManyRatesBottleneck(0.001, 0.006)
        layer.build([each.shape for each in inputs])
        layer._affine.set_weights([weight + np.arange(5) / 5 for weight in layer._affine.get_weights()])
        np.testing.assert_array_equal(layer(inputs), np.rint(inputs[0]))
        losses.append(float(layer.losses[0]))
    assert losses[0] == pytest.approx(6 * losses[1], rel=1e-5)


def test_an_lmbda_outside_of_its_range_is_refused():
    for lmbda, lmbda_range in ((0.1, (0.001, 0.006)), (0.002, (0.006, 0.001)), (0.002, (0.0, 0.006))):
        with pytest.raises(ValueError, match="range"):
            classifiers.build_network(7, (5,), 4, lmbda=lmbda, lmbda_range=lmbda_range)


def test_banks_do_not_charge_again_for_what_lmbda_says(monkeypatch):
    monkeypatch.setattr(prior_banks, "_BANKS_FROM", 20)
    rng = np.random.default_rng(0)
    position = rng.random((400, 1)).astype(np.float32)
    kind = rng.integers(2, size=400)

    def saved(z):
        layer = ManyRatesBottleneck(0.001, 0.004, num_banks=2)
        for _ in range(200):
            layer([z, position], training=True)
        z = tf.constant(z)
        weights = layer._affine.anchor_weights(position)
        return -layer._banks(z, tf.round(z), weights).numpy().mean()

    # The dearer bits are, the fewer of the channels are on, and on that alone it depends.
    on = rng.random((400, 40)) < 0.6 - 0.5 * position
    by_lmbda = saved(on.astype(np.float32))
    # Each kind of video has channels of its own.
    of_kind = on & ((np.arange(40) < 20) == kind[:, None])
    by_kind = saved(of_kind.astype(np.float32))
    assert by_lmbda < by_kind / 3
