"""The classifiers."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from vidpress.model import networks  # noqa: E402


@pytest.mark.parametrize(("hidden", "lmbda"), [((5,), 0.01), ((9, 5), 0.01), ((9, 5), 0.0)])
def test_the_layers_are_the_papers(hidden, lmbda):
    network = networks.build_network(7, hidden, 4, lmbda=lmbda)
    names = ["x"]
    for index in range(len(hidden)):
        names += [f"hidden_{index}", f"batch_norm_{index}", f"relu_{index}"]
    assert [layer.name for layer in network.layers] == names + ["bottleneck"] * (lmbda > 0) + ["logits"]
    assert network.output_shape == (None, 4)
    kernels = [layer.kernel.shape for layer in network.layers if hasattr(layer, "kernel")]
    assert kernels == list(zip((7, *hidden), (*hidden, 4), strict=True))
    assert (networks.bottleneck_of(network) is None) == (lmbda == 0)


def test_only_what_is_rounded_starts_small():
    def scales(lmbda):
        layers = networks.hidden_layers(networks.build_network(7, (9, 5), 4, lmbda=lmbda))
        return [set(batch_norm.gamma.numpy().tolist()) for _, batch_norm in layers]

    assert scales(0.01) == [{1.0}, {np.float32(networks.BOTTLENECK_SCALE)}]
    assert scales(0.0) == [{1.0}, {1.0}]


def test_the_logits_see_rounded_activations():
    x = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    network = networks.build_network(7, (5,), 4, lmbda=0.01)
    z = networks.activations_model(network)(x).numpy()
    kernel, bias = network.get_layer("logits").get_weights()
    np.testing.assert_allclose(network(x), np.rint(z) @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert (z >= 0).all()
    assert (z != np.rint(z)).any()


def test_losses_are_weight_decay_and_rate():
    x = np.zeros((3, 7), np.float32)
    network = networks.build_network(7, (5,), 4, lmbda=0.5, weight_decay=0.1)
    network(x, training=False)
    kernels = [layer.kernel.numpy() for layer in network.layers if hasattr(layer, "kernel")]
    decay = sum(0.1 / 2 * (kernel**2).sum() for kernel in kernels)
    bits = float(networks.bottleneck_of(network).bits.result())
    assert sum(map(float, network.losses)) == pytest.approx(decay + 0.5 * bits, rel=1e-5)
    assert bits > 0


def test_the_first_biases_are_the_classes_log_odds():
    frequencies = np.array([0.5, 0.9, 0.001, 0.25])
    bias = networks.build_network(7, (5,), 4, lmbda=0, class_frequencies=frequencies).get_layer("logits").bias
    np.testing.assert_allclose(tf.sigmoid(bias), frequencies, rtol=1e-5)
    assert not np.any(networks.build_network(7, (5,), 4, lmbda=0).get_layer("logits").bias)


def test_the_seed_fixes_the_weights():
    def weights(seed):
        tf.random.set_seed(np.random.randint(1000))  # noqa: NPY002 - must not matter
        return [w.tobytes() for w in networks.build_network(7, (9, 5), 4, lmbda=0.01, seed=seed).get_weights()]

    assert weights(1) == weights(1) != weights(2)


def test_the_task_loss_is_summed_over_classes_and_averaged_over_videos():
    labels = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    logits = np.array([[0.5, -2, 0], [3, 1, -1]], np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(axis=1).mean()
    assert float(networks.task_loss(labels, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("hidden", "classes", "lmbda"), [((), 4, 0), ((5, 0), 4, 0), ((5,), 0, 0), ((5,), 4, -1)])
def test_unusable_sizes_are_refused(hidden, classes, lmbda):
    with pytest.raises(ValueError, match=r"must be positive|must not be negative"):
        networks.build_network(7, hidden, classes, lmbda=lmbda)


def test_mixed_precision_rounds_the_products_alone():
    x = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    exact, mixed = (networks.build_network(7, (9, 5), 4, lmbda=0.01, mixed_precision=on) for on in (False, True))
    mixed.set_weights(exact.get_weights())
    assert mixed.output.dtype == tf.bfloat16
    assert {variable.dtype for variable in mixed.trainable_variables} == {tf.float32}
    assert networks.activations_model(mixed).output.dtype == tf.float32
    assert networks.task_loss(np.zeros((20, 4), np.float32), mixed(x)).dtype == tf.float32
    exact, mixed = (networks.activations_model(network)(x).numpy() for network in (exact, mixed))
    assert (exact != mixed).any()
    np.testing.assert_allclose(mixed, exact, atol=2**-6)
