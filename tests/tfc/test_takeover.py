"""A model trained with tensorflow-compression is taken over: each side reads the other's strings."""

import numpy as np
import pytest

tfc = pytest.importorskip("tensorflow_compression", reason="needs tensorflow-compression: `make test-tfc`")

import tensorflow as tf  # noqa: E402
import theirs  # noqa: E402

from vidpress.model.coding.feature_codec import FeatureCodec  # noqa: E402
from vidpress.model.tables.range_coding_tables import RangeCodingTables  # noqa: E402


class Encoder(tf.keras.Model):
    """Keras 2, a convolution and the bottleneck, as its users write it."""

    def __init__(self, channels):
        super().__init__()
        self.conv = tf.keras.layers.Conv2D(channels, 5, strides=4)
        self.deconv = tf.keras.layers.Conv2DTranspose(1, 5, strides=4, output_padding=3)
        self.prior = tfc.NoisyDeepFactorized(batch_shape=[channels])

    def call(self, x, training=False):
        model = tfc.ContinuousBatchedEntropyModel(self.prior, coding_rank=3, compression=False, offset_heuristic=False)
        y, bits = model(self.conv(x), training=training)
        self.add_loss(1e-3 * tf.reduce_mean(bits))
        return self.deconv(y)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return (rng.uniform(size=(64, 7, 7, 1)).repeat(4, 1).repeat(4, 2) * 8).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(images):
    tf.keras.utils.set_random_seed(0)
    model = Encoder(12)
    model.compile(tf.keras.optimizers.Adam(0.01), "mse")
    history = model.fit(images, images, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    return model


def assert_each_reads_the_others(codec, model, y):
    """`y` as the entropy model takes it; what it has more of than `codec.shape` in front are rows."""
    strings = model.compress(y).numpy()
    codes = list(strings.reshape(-1))
    flat = np.asarray(y).reshape(-1, *codec.shape)
    z_hat = codec.quantize(flat)
    assert codec.compress(z_hat) == codes
    np.testing.assert_array_equal(codec.decompress(codes), z_hat)
    broadcast_shape = y.shape[strings.ndim : y.ndim - len(model.prior_shape)]
    theirs = model.decompress(np.reshape(codes, strings.shape), broadcast_shape).numpy()
    np.testing.assert_array_equal(codec.dequantize(z_hat).reshape(y.shape), theirs)
    np.testing.assert_array_equal(model.quantize(y), theirs)
    assert np.ptp(z_hat) > 2


@pytest.mark.parametrize("coding_rank", [1, 3])
@pytest.mark.parametrize("offset_heuristic", [False, True])
@pytest.mark.parametrize("precision", [8, 12, 16])
def test_a_trained_model_is_taken_over(encoder, images, coding_rank, offset_heuristic, precision):
    y = encoder.conv(images[:10]).numpy()
    model = theirs.entropy_model(
        encoder.prior, coding_rank=coding_rank, offset_heuristic=offset_heuristic, range_coder_precision=precision
    )
    shape = y.shape[-coding_rank:]
    codec = FeatureCodec.from_entropy_model(model, shape)
    assert (codec.shape, codec.tables.precision) == (shape, precision)
    assert (codec.quantization_offset is not None) == offset_heuristic
    assert_each_reads_the_others(codec, model, y)
    y[:, 0] *= 1000  # escapes
    assert_each_reads_the_others(codec, model, y)
    # Its features have codes of our own kind too.
    z_hat = codec.quantize(y).reshape(-1, *shape)
    banks = codec.with_banks(z_hat, 2)
    np.testing.assert_array_equal(banks.decompress(banks.compress(z_hat)), z_hat)
    np.testing.assert_array_equal(banks.dequantize(z_hat), codec.dequantize(z_hat))


def test_from_its_arrays_without_tensorflow(encoder, images, tmp_path):
    y = encoder.conv(images[:10]).numpy()
    model = theirs.entropy_model(encoder.prior, coding_rank=3, offset_heuristic=True)
    np.savez(
        tmp_path / "tables.npz",
        cdf=model.cdf,
        cdf_offset=model.cdf_offset,
        quantization_offset=model.quantization_offset,
    )
    arrays = np.load(tmp_path / "tables.npz")
    tables = RangeCodingTables.from_lookup(arrays["cdf"], arrays["cdf_offset"])
    assert_each_reads_the_others(FeatureCodec(tables, y.shape[1:], arrays["quantization_offset"]), model, y)


def test_priors_of_other_shapes():
    rng = np.random.default_rng(0)
    whole = theirs.entropy_model(tfc.NoisyNormal(loc=0.0, scale=rng.uniform(0.5, 5, (4, 3))), coding_rank=2)
    y = rng.normal(size=(5, 4, 3)).astype(np.float32) * 4
    assert_each_reads_the_others(FeatureCodec.from_entropy_model(whole, (12,)), whole, y)
    stacked = theirs.entropy_model(tfc.NoisyNormal(loc=0.0, scale=rng.uniform(0.5, 5, (4, 3))), coding_rank=3)
    y = rng.normal(size=(5, 2, 4, 3)).astype(np.float32) * 4
    assert_each_reads_the_others(FeatureCodec.from_entropy_model(stacked, (2, 12)), stacked, y)
    single = theirs.entropy_model(tfc.NoisyNormal(loc=0.3, scale=2.0), coding_rank=2, offset_heuristic=True)
    assert_each_reads_the_others(FeatureCodec.from_entropy_model(single, (4, 3, 1)), single, y[:, 0])


def test_one_offset_for_all_channels():
    prior = tfc.NoisyNormal(loc=0.25, scale=tf.constant([1.0, 2.0, 4.0]))
    model = theirs.entropy_model(prior, quantization_offset=tf.constant(0.25))
    codec = FeatureCodec.from_entropy_model(model, (3,))
    assert codec.quantization_offset.tolist() == [0.25] * 3
    assert_each_reads_the_others(codec, model, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32) * 3)


def prior(channels=3):
    return tfc.NoisyNormal(loc=0.0, scale=tf.ones(channels))


def given_tables(lookup):
    """An entropy model of tables that someone made by hand."""
    return tfc.ContinuousBatchedEntropyModel(
        prior_shape=[1], coding_rank=1, compression=True, cdf=lookup, cdf_offset=[0], offset_heuristic=False
    )


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: theirs.entropy_model(prior(), compression=False), (3,), "has no tables: build it .* compression=True"),
        (lambda: theirs.entropy_model(prior(), coding_rank=3), (3,), r"must be \(\.\.\., \.\.\., 3\).* coding_rank=3"),
        (lambda: theirs.entropy_model(prior()), (2, 2, 3), r"feature_shape=\(2, 2, 3\) must be \(3,\)"),
        (lambda: theirs.entropy_model(prior()), (4,), r"must be \(3,\), and features reshaped"),
        (lambda: theirs.entropy_model(prior([2, 3]), coding_rank=2), (2, 3), r"must be \(6,\).* shape \(2, 3\)"),
        (lambda: given_tables([2, 0, 1, 4]), (1,), "tables without escapes are not supported"),
        (prior, (3,), "is a NoisyNormal, and only a ContinuousBatchedEntropyModel's"),
        (
            lambda: tfc.ContinuousIndexedEntropyModel(
                tfc.NoisyNormal, [3], {"loc": lambda _: 0.0, "scale": lambda i: tf.exp(i)}, 1, compression=True
            ),
            (1,),
            "is a ContinuousIndexedEntropyModel, and only",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, shape, message):
    with pytest.raises(ValueError, match=message):
        FeatureCodec.from_entropy_model(make(), shape)
