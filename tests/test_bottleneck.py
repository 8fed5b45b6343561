"""The Keras layer."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import keras  # noqa: E402

from vidpress.model.networks import prior_banks  # noqa: E402
from vidpress.model.networks.bottleneck import Bottleneck  # noqa: E402


@pytest.fixture
def z():
    return tf.constant(np.random.default_rng(0).exponential(2, (50, 6)), tf.float32)


def fresh_model(**kwargs):
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(6, "relu", kernel_initializer=keras.initializers.GlorotUniform(1))
    outputs = keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(2))
    return keras.Model(inputs, outputs(Bottleneck(0.01, name="bottleneck", **kwargs)(dense(inputs))))


def test_the_output_is_rounded_half_to_even_with_straight_through_gradients(z):
    layer = Bottleneck(0.01)
    for training in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(z)
            z_hat = layer(z, training=training)
            total = tf.reduce_sum(z_hat * 3)
        np.testing.assert_array_equal(z_hat, np.rint(z))
        np.testing.assert_array_equal(tape.gradient(total, z), tf.fill(z.shape, 3.0))
    np.testing.assert_array_equal(layer(tf.constant([[0.5, 1.5, 2.5, 0, 0, 0]])), [[0, 2, 2, 0, 0, 0]])


def test_bits_are_those_of_the_prior(z):
    layer = Bottleneck(0.01)
    layer(z, training=False)
    bits = layer.prior.log_prob(tf.round(z)).numpy().astype(np.float64).sum(axis=1) / -np.log(2)
    np.testing.assert_allclose(layer.information(tf.round(z)), bits, rtol=1e-5)
    assert float(layer.losses[0]) == pytest.approx(0.01 * bits.mean(), rel=1e-5)
    assert float(layer.bits.result()) == pytest.approx(bits.mean(), rel=1e-5)


def test_training_bits_are_those_of_noisy_activations(z):
    layer = Bottleneck(0.01)
    layer(tf.zeros((1, 6)))
    layer.bits.reset_state()
    losses = []
    for _ in range(100):
        layer(z, training=True)
        losses.append(float(layer.losses[0]))
    assert len(set(losses)) > 1  # every call has noise of its own
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (100, *z.shape)).astype(np.float32)
    expected = np.mean([layer.information(z + u).numpy().mean() for u in noise])
    assert float(layer.bits.result()) == pytest.approx(expected, rel=0.02)


def test_the_rate_moves_activations_and_prior(z):
    layer = Bottleneck(0.01)
    with tf.GradientTape() as tape:
        tape.watch(z)
        layer(z, training=True)
        loss = layer.losses[0]
    gradients = tape.gradient(loss, [z, *layer.trainable_variables])
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients[:2])
    assert len(layer.trainable_variables) == 8


def test_positions_of_a_spatial_input_share_a_channels_distribution(z):
    layer = Bottleneck(0.01)
    image = tf.reshape(z, (5, 2, 5, 6))
    assert layer(image, training=True).shape == image.shape
    flat = layer.information(tf.round(z))
    np.testing.assert_allclose(
        layer.information(tf.round(image)), tf.reduce_sum(tf.reshape(flat, (5, 10)), 1), rtol=1e-5
    )
    # Swapping positions costs nothing, swapping channels does.
    np.testing.assert_allclose(
        layer.information(tf.round(image[:, ::-1])), layer.information(tf.round(image)), rtol=1e-5
    )
    assert not np.allclose(layer.information(tf.round(image[..., ::-1])), layer.information(tf.round(image)))
    assert {weight.shape[-1] for weight in layer.prior.trainable_variables} == {6}


def test_fit_learns_and_reports_bits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 4)).astype(np.float32)
    model = fresh_model()
    model.compile(keras.optimizers.Adam(0.02), "mse")
    history = model.fit(x, x[:, :1], epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["bottleneck_bits"][-1] < history["bottleneck_bits"][0]
    assert model.evaluate(x, x[:, :1], return_dict=True, verbose=0)["bottleneck_bits"] > 0


def test_the_seed_fixes_noise_and_prior(z):
    losses = []
    for seed in (7, 7, 8):
        tf.random.set_seed(len(losses))  # must not matter
        layer = Bottleneck(0.01, seed=seed)
        layer(z, training=True)
        losses.append(float(layer.losses[0]))
    assert losses[0] == losses[1] != losses[2]


def test_saved_weights_continue_the_noise(z, tmp_path):
    def losses(model, n):
        result = []
        for _ in range(n):
            model(z[:, :4], training=True)
            result.append(float(model.losses[0]))
        return result

    through = losses(fresh_model(), 5)
    first = fresh_model()
    assert losses(first, 2) == through[:2]
    first.save_weights(tmp_path / "weights.weights.h5")
    second = fresh_model()
    second.load_weights(tmp_path / "weights.weights.h5")
    assert losses(second, 3) == through[2:]


def test_a_saved_model_comes_back(z, tmp_path):
    model = fresh_model(seed=3, num_filters=(2,), init_scale=5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    layer = loaded.get_layer("bottleneck")
    assert (layer.lmbda, layer.seed, tuple(layer.num_filters), layer.init_scale) == (0.01, 3, (2,), 5)
    np.testing.assert_array_equal(loaded(z[:, :4]), model(z[:, :4]))
    assert loaded.losses == model.losses


def test_mixed_precision_leaves_it_float32():
    policy = keras.mixed_precision.global_policy()
    try:
        keras.mixed_precision.set_global_policy("mixed_float16")
        layer = Bottleneck(0.01)
        z_hat = layer(tf.constant([[2049.0, 3.4]], tf.float32), training=True)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    assert z_hat.dtype == tf.float32
    assert z_hat.numpy().tolist() == [[2049, 3]]
    assert layer.losses[0].dtype == tf.float32


def two_kinds(num_examples=64):
    """Examples that switch on the first three channels, or the last three."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=num_examples)
    on = (np.arange(6) // 3 == kind[:, None]) & (rng.random((num_examples, 6)) < 0.9)
    return tf.constant(on * 1.2, tf.float32)


def test_banks_take_off_what_the_kind_of_an_example_says_of_its_channels(monkeypatch):
    monkeypatch.setattr(prior_banks, "_BANKS_FROM", 20)
    z = two_kinds()
    layer = Bottleneck(0.01, num_banks=2)
    for call in range(150):
        layer(z, training=True)
        saved = -layer._banks(tf.round(z), tf.round(z)).numpy().mean()
        assert saved == 0 or call >= 19
    on = np.rint(z) > 0
    kind = on[:, :3].sum(1) > on[:, 3:].sum(1)
    p = np.stack([on[kind].mean(0), on[~kind].mean(0)])[np.where(kind, 0, 1)]

    def entropy(p):
        return -(on * np.log2(np.clip(p, 1e-6, 1)) + ~on * np.log2(np.clip(1 - p, 1e-6, 1))).sum(1).mean()

    assert saved == pytest.approx(entropy(on.mean(0)) - entropy(p), rel=0.1)


def test_banks_reward_what_they_expect(monkeypatch):
    monkeypatch.setattr(prior_banks, "_BANKS_FROM", 20)
    layer = Bottleneck(0.01, num_banks=2)
    for _ in range(100):
        layer(two_kinds(), training=True)
    z = tf.constant([[1.2, 1.2, 0.4, 0.4, 0, 0]])
    with tf.GradientTape() as tape:
        tape.watch(z)
        bits = layer._banks(z, tf.round(z))
    gradient = tape.gradient(bits, z).numpy()[0]
    assert gradient[2] < 0 < gradient[3]  # the same activation, expected and not
    assert gradient[0] == 0  # on for sure


def test_positions_share_a_bank(z):
    image = tf.reshape(z, (5, 2, 5, 6)) / 4
    layer = Bottleneck(0.01, num_banks=4)
    layer(image, training=True)
    banks = layer._banks
    rng = np.random.default_rng(0)
    banks._tilt.assign(rng.normal(size=(4, 6)))
    banks._log_norm.assign(rng.normal(size=(1, 4)))
    on = np.rint(image) != 0
    bits = [
        (10 * norm - (on * tilt).sum((1, 2, 3))) / np.log(2)
        for norm, tilt in zip(banks._log_norm.numpy()[0], banks._tilt.numpy(), strict=True)
    ]
    np.testing.assert_allclose(banks(tf.round(image), tf.round(image)), np.min(bits, axis=0), rtol=1e-4)


def test_saved_weights_continue_the_banks(monkeypatch, tmp_path):
    monkeypatch.setattr(prior_banks, "_BANKS_FROM", 3)
    z = tf.constant(np.random.default_rng(0).normal(size=(30, 4)) * 3, tf.float32)
    model, other = fresh_model(num_banks=4), fresh_model(num_banks=4)
    for _ in range(6):
        model(z, training=True)
    model.save_weights(tmp_path / "weights.weights.h5")
    other.load_weights(tmp_path / "weights.weights.h5")
    for _ in range(2):
        model(z, training=True)
        other(z, training=True)
        assert float(model.losses[0]) == float(other.losses[0])
    assert np.ptp(other.get_layer("bottleneck")._banks._tilt) > 0


@pytest.mark.parametrize("lmbda", [0, -0.1, float("nan"), float("inf")])
def test_lmbda_must_be_positive(lmbda):
    with pytest.raises(ValueError, match="lmbda="):
        Bottleneck(lmbda)


def test_unusable_dtypes_and_shapes_are_refused():
    with pytest.raises(ValueError, match="must be float32"):
        Bottleneck(0.01, dtype="float16")
    with pytest.raises(ValueError, match="must be known"):
        Bottleneck(0.01)(keras.Input((None,)))
