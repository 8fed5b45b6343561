"""Noise that follows from seed, call and place."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from keras import ops  # noqa: E402

from vidpress.model.networks import noise  # noqa: E402


def drawn(shape, seed=0, call=1):
    return noise.uniform(shape, seed, tf.constant(call)).numpy()


def test_numbers_are_those_of_plain_integers():
    """The hash of 32 bits as its author writes it, without a sign."""

    def mixed(value):
        value = (value ^ value >> 16) * 0x21F0AAAD % 2**32
        value = (value ^ value >> 15) * 0x735A2D97 % 2**32
        return value ^ value >> 15

    for seed, call in ((0, 1), (2**32 - 1, 7), (12345, 2**31 - 1)):
        key = mixed(call) + seed
        expected = [(mixed((mixed(place) + mixed(key % 2**32)) % 2**32) % 2**24) / 2**24 for place in range(15)]
        found = drawn((3, 5), seed, call)
        assert found.dtype == np.float32
        assert found.ravel().tolist() == expected


def test_it_is_uniform_whatever_it_is_drawn_for():
    samples = [drawn((400, 500), *which) for which in ((0, 1), (0, 2), (1, 1), (1 << 31, 1))]
    for sample in samples:
        assert 0 <= sample.min() < 1e-4
        assert 1 - 1e-4 < sample.max() < 1
        assert sample.mean() == pytest.approx(1 / 2, abs=5 * np.sqrt(1 / 12 / sample.size))
        counts = np.histogram(sample, 1000, (0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 1000 + 5 * np.sqrt(2000)  # chi-squared
        # Neither places beside or below each other have anything to do with each other.
        for one, other in ((sample[1:], sample[:-1]), (sample[:, 1:], sample[:, :-1])):
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)
    for index, one in enumerate(samples):
        for other in samples[:index]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_a_compiled_step_draws_the_same():
    compiled = tf.function(lambda call: noise.uniform((40, 30), 3, call), jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.constant(9)), drawn((40, 30), 3, 9))
    any_size = tf.function(
        lambda z, call: noise.uniform(ops.shape(z), 3, call),
        input_signature=[tf.TensorSpec([None, 30]), tf.TensorSpec([], tf.int32)],
    )
    np.testing.assert_array_equal(any_size(tf.zeros((40, 30)), tf.constant(9)), drawn((40, 30), 3, 9))
