"""Rounding to the nearest integer, and the steps that lower layers are rounded to."""

import itertools

import numpy as np
import pytest
from emulated_products import KINDS, Undecided

from vidpress.model.frozen.dense_layers import Dense
from vidpress.model.frozen.nearest_rounding import MAX_Z, fit_steps, round_to_nearest


def rounded(layer, x, dtype=np.int32):
    z, row_bounds = layer.bounded(x)
    out = z if dtype is np.float32 else np.empty(z.shape, dtype)
    usable = round_to_nearest(layer, x, z, row_bounds, out)
    return out, usable


def network(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_halves_go_to_even_and_what_is_beside_them_does_not(kind):
    kernel = np.eye(4, dtype=np.float32)
    kernel[3] = 2.0**-30  # what the fourth input adds, no float32 sum shows
    layer = kind(kernel, np.array([0.5, 1.5, 2.5, 0], np.float32))
    x = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, -1], [1, 1, 1, 0]], np.float32)
    for dtype in (np.int32, np.float32):
        out, usable = rounded(layer, x, dtype)
        np.testing.assert_array_equal(out[:, :3], [[0, 2, 2], [1, 2, 3], [0, 1, 2], [2, 2, 4]])
        assert usable.all()


def test_few_are_summed_exactly_and_none_is_missed(monkeypatch):
    (layer,) = network(1152, 200)
    x = np.random.default_rng(1).normal(size=(300, 1152)).astype(np.float32)
    kernel = layer[0] / np.float32(30)
    counts = []
    exact_at = Dense.exact_at
    monkeypatch.setattr(
        Dense, "exact_at", lambda self, x, rows, columns: counts.append(len(rows)) or exact_at(self, x, rows, columns)
    )
    found, _ = rounded(Dense(kernel, layer[1]), x)
    assert 0 < counts[0] < 0.01 * found.size
    np.testing.assert_array_equal(found, rounded(Undecided(kernel, layer[1]), x)[0])
    assert counts[1] == found.size


@pytest.mark.parametrize("value", [MAX_Z, MAX_Z + 1, MAX_Z + 2, 1e30, np.nan])
def test_what_is_beyond_the_greatest_integer_is_not_usable(value):
    layer = Dense(np.ones((2, 1), np.float32), np.zeros(1, np.float32))
    x = np.array([[1, 2], [0, 0]], np.float64)
    x[1, 0] = value
    z, row_bounds = layer.bounded(x.astype(np.float32))
    out = np.empty((2, 1), np.int32)
    assert round_to_nearest(layer, x, z, row_bounds, out).tolist() == [True, bool(value <= MAX_Z)]
    assert out[0, 0] == 3


def test_steps_leave_the_network_as_it_is():
    hidden = network(30, 50, 40, 20)
    x = np.random.default_rng(1).normal(size=(200, 30)).astype(np.float32)
    scaled = fit_steps(hidden, x)
    before = after = x.astype(np.float64)
    for index, (layer, other) in enumerate(zip(hidden, scaled, strict=True)):
        before, after = (np.maximum(z @ kernel + bias, 0) for z, (kernel, bias) in ((before, layer), (after, other)))
        for array, scaled_array in zip(layer, other, strict=True):
            assert scaled_array.dtype == np.float32
            np.testing.assert_array_equal(np.frexp(array)[0], np.frexp(scaled_array)[0])
        if index < 2:
            typical = np.sqrt(np.mean(after[after > 0] ** 2))
            assert 8 <= typical < 16
    np.testing.assert_array_equal(after, before)


def test_a_layer_that_is_never_active_keeps_its_step():
    hidden = [(np.zeros((3, 2), np.float32), np.full(2, -1, np.float32)), *network(2, 2)]
    scaled = fit_steps(hidden, np.ones((4, 3), np.float32))
    for layer, other in zip(hidden, scaled, strict=True):
        np.testing.assert_array_equal(layer[0], other[0])


def test_a_network_of_one_layer_has_no_steps():
    hidden = network(3, 2)
    assert fit_steps(hidden, np.ones((4, 3), np.float32))[0][0].tolist() == hidden[0][0].tolist()
