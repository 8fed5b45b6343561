"""Any Keras model with a bottleneck: its codec, and what is decoded."""

import numpy as np
import pytest
from test_image_files import write_mnist

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import keras
import tensorflow as tf

from vidpress.model.images import files
from vidpress.model.networks import plug_in
from vidpress.model.networks.bottleneck import Bottleneck, bottleneck_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network with a spatial bottleneck, trained for a moment; its training and test pixels and labels."""
    training, test = files.load_mnist(write_mnist(tmp_path_factory.mktemp("mnist"), 600, 200))
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1))
    y = keras.layers.Conv2D(12, 5, strides=4, activation="relu")(image)
    y = Bottleneck(lmbda=0.001)(y * 3)
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(y))
    model = keras.Model(image, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    x, x_test = (part.images / np.float32(255) for part in (training, test))
    model.fit(x, training.labels, batch_size=60, epochs=8, verbose=0)
    return model, x, x_test, test.labels


@pytest.mark.parametrize(("tables", "num_banks"), [("empirical", 1), ("empirical", 8), ("prior", 1)])
def test_a_spatial_bottleneck_is_trained_frozen_encoded_and_decoded(trained, tables, num_banks):
    model, x, x_test, labels = trained
    codec = plug_in.freeze(model, x, tables=tables, num_banks=num_banks)
    # One distribution a channel, which all 36 positions share.
    assert (codec.shape, codec.tables.num_dims, codec.tables.num_banks) == ((6, 6, 12), 12, num_banks)
    z_hat = plug_in.quantize(model, x_test)
    assert z_hat.shape == (200, 6, 6, 12)
    assert z_hat.any(axis=(0, 1, 2)).sum() > 6
    codes = codec.compress(z_hat)
    decoded = codec.decompress(codes)
    np.testing.assert_array_equal(decoded, z_hat)
    logits = plug_in.head_of(model).predict(decoded.astype(np.float32), verbose=0)
    np.testing.assert_allclose(logits, model.predict(x_test, verbose=0), atol=1e-4)
    assert (logits.argmax(axis=1) == labels).mean() > 0.9
    raw = z_hat[0].size * 4
    assert codec.num_bytes(codes) / len(codes) < raw / 10
    # The rate that was paid for is about what the range coder needs with the prior's tables.
    if tables == "prior":
        bits = tf.reduce_mean(bottleneck_of(model).information(tf.constant(z_hat, tf.float32)))
        assert 8 * codec.num_bytes(codes) / len(codes) == pytest.approx(float(bits), rel=0.05, abs=12)


def test_a_dataset_of_batches_will_do(trained):
    model, x, x_test, _ = trained
    batches = tf.data.Dataset.from_tensor_slices(x).batch(70)
    np.testing.assert_array_equal(plug_in.quantize(model, batches), plug_in.quantize(model, x, batch_size=70))
    codec = plug_in.freeze(model, batches)
    np.testing.assert_array_equal(
        codec.decompress(codec.compress(plug_in.quantize(model, x_test))), plug_in.quantize(model, x_test)
    )


def test_unusable_models_are_refused(trained):
    model, x, *_ = trained
    with pytest.raises(ValueError, match="tables='trained' must be"):
        plug_in.freeze(model, x, tables="trained")
    inputs = keras.Input((3,))
    for layers, found in (
        ([], "no Bottleneck layer among its own layers: it must have one"),
        ([Bottleneck(1.0), Bottleneck(1.0)], "2 Bottleneck layers among its own layers: it may have one"),
    ):
        y = inputs
        for layer in layers:
            y = layer(y)
        with pytest.raises(ValueError, match=f"has {found}"):
            plug_in.encoder_of(keras.Model(inputs, keras.layers.Dense(2)(y)))
    one = keras.Model(inputs, Bottleneck(1.0)(inputs))
    with pytest.raises(ValueError, match="NaN or beyond int32"):
        plug_in.quantize(one, np.full((2, 3), np.nan, np.float32))
