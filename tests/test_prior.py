"""The prior's density and tables, against their formulas in NumPy's float64."""

import itertools

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from vidpress.model.networks.prior import DeepFactorized  # noqa: E402
from vidpress.model.tables.range_coding_tables import RangeCodingTables  # noqa: E402

CHANNELS = 5
TAIL_MASS = 2**-8


def prior(seed=0, num_filters=(3, 3), change=0.5, **kwargs):
    """A prior whose weights are as far from the first ones as training takes them."""
    layer = DeepFactorized(num_filters=num_filters, seed=seed, **kwargs)
    layer.build((None, CHANNELS))
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_variables:
        weight.assign(weight.numpy() + rng.normal(0, change, weight.shape))
    return layer


def softplus(x):
    return np.logaddexp(0, x)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def logits(weights, y):
    """Of the cumulative of Ballé et al. (2018), appendix 6.1: f_K o ... o f_1, a channel at a time.

    f_k(x) = g_k(softplus(H_k) x + b_k), g_k(x) = x + tanh(a_k) * tanh(x), and the last g is the identity.
    """
    matrices, biases, factors = (
        [weight for name, weight in weights.items() if name.startswith(kind)] for kind in ("matrix", "bias", "factor")
    )
    result = np.empty_like(y)
    for channel in range(y.shape[-1]):
        x = y[..., channel].reshape(1, -1)
        for matrix, bias, factor in itertools.zip_longest(matrices, biases, factors):
            x = softplus(matrix[..., channel]) @ x + bias[:, channel, None]
            if factor is not None:
                x = x + np.tanh(factor[:, channel, None]) * np.tanh(x)
        result[..., channel] = x.reshape(y.shape[:-1])
    return result


def log_prob(weights, y, scale=1.0, shift=0.0):
    """The logarithm of sigmoid(u) - sigmoid(l), of logits half a step above and below."""
    upper, lower = (logits(weights, y + side) * scale + shift for side in (0.5, -0.5))
    return log_sigmoid(upper) + log_sigmoid(-lower) + np.log(-np.expm1(lower - upper))


def weights_of(layer):
    return {weight.name: weight.numpy().astype(np.float64) for weight in layer.trainable_variables}


def values(num=400, reach=25):
    """Integers and what lies between, most of them near 0."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(num, CHANNELS)) * np.geomspace(0.1, reach, num)[:, None]
    y[::2] = np.rint(y[::2])
    return y.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_filters", [(3, 3), (), (2,), (3, 3, 3)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.7, -2.5)])
def test_log_probabilities_are_those_of_the_formula(seed, num_filters, scale, shift):
    layer = prior(seed, num_filters)
    assert [weight.name for weight in layer.trainable_variables if weight.name.startswith("matrix")] == [
        f"matrix_{index}" for index in range(len(num_filters) + 1)
    ]
    y = values()
    expected = log_prob(weights_of(layer), y.astype(np.float64), scale, shift)
    np.testing.assert_allclose(layer.log_prob(y, scale, shift), expected, rtol=1e-5, atol=1e-5)


def test_log_probabilities_far_out_are_finite_and_right():
    layer = prior()
    y = np.repeat(np.array([-1e4, -300, 300, 1e4], np.float32)[:, None], CHANNELS, axis=1)
    found = layer.log_prob(y).numpy()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, log_prob(weights_of(layer), y.astype(np.float64)), rtol=1e-4)


def test_probabilities_add_up_to_one():
    y = np.broadcast_to(np.arange(-3000, 3001, dtype=np.float32)[:, None], (6001, CHANNELS))
    np.testing.assert_allclose(np.exp(prior().log_prob(y).numpy().astype(np.float64)).sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_gradients_are_those_of_the_formula(seed):
    layer = prior(seed)
    y, rng = tf.constant(values(60)), np.random.default_rng(2)
    scale, shift = (tf.constant(rng.uniform(0.5, 2, (CHANNELS,)), tf.float32) for _ in range(2))
    outer = rng.normal(size=y.shape).astype(np.float32)  # so that no two values weigh alike
    variables = [weight.value for weight in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([y, scale, shift])
        total = tf.reduce_sum(outer * layer.log_prob(y, scale, shift))
    found = [each.numpy() for each in tape.gradient(total, [y, scale, shift, *variables])]

    weights = weights_of(layer)
    arguments = [each.numpy().astype(np.float64) for each in (y, scale, shift)]

    def difference(array, place, step=1e-5):
        ends = []
        for side in (step, -step):
            before = array[place]
            array[place] = before + side
            ends.append((outer * log_prob(weights, *arguments)).sum())
            array[place] = before
        return (ends[0] - ends[1]) / (2 * step)

    for array, gradient in zip([*arguments, *weights.values()], found, strict=True):
        expected = np.array([difference(array, place) for place in np.ndindex(array.shape)]).reshape(array.shape)
        assert np.any(expected)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_first_density_is_as_wide_as_it_is_told():
    """A cumulative that grows from 0.01 to 0.99 over some init_scale, whatever its depth."""
    for num_filters in ((3, 3), (), (4, 4, 4)):
        width = []
        for init_scale in (5.0, 50.0):
            layer = DeepFactorized(num_filters=num_filters, init_scale=init_scale)
            layer.build((None, CHANNELS))
            slope = layer._logits(np.zeros((1, CHANNELS), np.float32))[1].numpy()
            np.testing.assert_allclose(slope, 1 / init_scale, rtol=1e-4)
            width.append(slope)
        np.testing.assert_allclose(width[0], width[1] * 10, rtol=1e-4)


def quantiles(weights, share):
    """Where the cumulative is a share, float64[channels], by bisection."""
    target = np.log(share) - np.log1p(-share)
    low, high = np.full(CHANNELS, -1e4), np.full(CHANNELS, 1e4)
    for _ in range(200):
        middle = (low + high) / 2
        below = logits(weights, middle[None])[0] < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


@pytest.mark.parametrize(("seed", "precision"), [(0, 16), (1, 12), (2, 16)])
def test_tables_reach_to_the_tails_and_hold_the_probabilities(seed, precision):
    layer = prior(seed, change=0.2, init_scale=3.0)
    tables, weights = layer.tables(precision), weights_of(layer)
    lowest = np.floor(quantiles(weights, TAIL_MASS / 2)).astype(int)
    highest = np.ceil(quantiles(weights, 1 - TAIL_MASS / 2)).astype(int)
    np.testing.assert_array_equal(tables.cdf_offset, lowest)
    # Each has the values from the lowest to the highest, the escape, and one end more than intervals.
    np.testing.assert_array_equal(np.diff(tables.cdf_start), highest - lowest + 3)
    everywhere = np.arange(lowest.min(), highest.max() + 1, dtype=np.float64)
    probabilities = np.exp(log_prob(weights, np.repeat(everywhere[:, None], CHANNELS, axis=1)))
    pmf = [
        probabilities[low - lowest.min() : high - lowest.min() + 1, channel]
        for channel, (low, high) in enumerate(zip(lowest, highest, strict=True))
    ]
    assert all(1 - TAIL_MASS <= part.sum() <= 1 for part in pmf)
    expected = RangeCodingTables.from_pmf(pmf, lowest.astype(np.int32), precision)
    np.testing.assert_array_equal(tables.cdf_start, expected.cdf_start)
    # Probabilities are float32 there: an interval that lies at a tie may be one wider or narrower.
    widths, expected_widths = np.diff(tables.cdf), np.diff(expected.cdf)
    assert np.abs(widths - expected_widths).max() <= 1
    assert (widths != expected_widths).mean() < 0.02


def test_a_saved_prior_comes_back():
    layer = DeepFactorized(num_filters=(2,), init_scale=3.0, seed=4)
    other = DeepFactorized.from_config(layer.get_config())
    y = values(20)
    for each in (layer, other):
        each.build(y.shape)
    np.testing.assert_array_equal(layer.log_prob(y), other.log_prob(y))
    another = DeepFactorized(num_filters=(2,), init_scale=3.0, seed=5)
    another.build(y.shape)
    assert (layer.log_prob(y).numpy() != another.log_prob(y).numpy()).any()
