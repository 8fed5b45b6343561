"""That fast layers keep the bounds that they claim."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from emulated_products import KINDS, EmulatedSplit, FromTheFirst, TooFarOff, Units
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpress.model.frozen import dense_layers, matrix_units
from vidpress.model.frozen.dense_layers import Dense, SplitDense, dense

needs_matrix_units = pytest.mark.skipif(
    not dense_layers.has_matrix_units(), reason="this processor or process has no use of matrix units (Intel AMX)"
)


def many_magnitudes(rng, shape, decades):
    return (rng.normal(size=shape) * 10.0 ** rng.uniform(-decades, decades, shape)).astype(np.float32)


def arrays(num_rows, size_in, size_out, seed=0):
    """Input with values of many magnitudes, kernel and bias."""
    rng = np.random.default_rng(seed)
    x, kernel = many_magnitudes(rng, (num_rows, size_in), 3), many_magnitudes(rng, (size_in, size_out), 1)
    return x, kernel, rng.normal(size=size_out).astype(np.float32)


def most_is_lost(rng, shape):
    """Numbers of which bfloat16 leaves out as much as it can, all to the same side."""
    return rng.choice(np.array([1 + 2**-8, 1 + 2**-9 + 2**-17, 1 + 2**-8 - 2**-16], np.float32), shape)


def layers(case, num_rows=6, size_in=700, size_out=5, seed=0):
    """Input, kernel and bias of a kind that is hard on sums in float32, or on their bounds."""
    rng = np.random.default_rng(seed)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((num_rows, size_in), (size_in, size_out)))
    bias = rng.normal(size=size_out).astype(np.float32)
    if case.startswith("mean"):
        x += np.float32(case.removeprefix("mean "))
    elif case == "all positive":
        x, kernel = np.abs(x), np.abs(kernel)
    elif case == "cancelling":
        half = size_in // 2
        x[:, half : 2 * half] = x[:, :half] * np.float32(1e5)
        x[:, :half] *= np.float32(1e5)
        kernel[half : 2 * half] = -kernel[:half] * (1 + rng.choice([0, 2**-23, 2**-12], (half, size_out)))
    elif case == "magnitudes":
        x, kernel = many_magnitudes(rng, x.shape, 15), many_magnitudes(rng, kernel.shape, 15)
    elif case == "denormal":
        x, kernel = (many_magnitudes(rng, array.shape, 2) for array in (x, kernel))
        x *= np.float32(1e-38)
        kernel *= np.float32(1e34)
    elif case == "denormal weights":
        kernel *= np.float32(1e-38)
        bias *= np.float32(1e-38)
    elif case == "lost in bfloat16":
        x, kernel = most_is_lost(rng, x.shape), most_is_lost(rng, kernel.shape)
    elif case == "integers":
        x = np.abs(np.rint(30 * x))
    elif case == "great bias":
        x *= np.float32(1e-6)
        bias *= np.float32(1e4)
    elif case == "sparse":
        x[rng.random(x.shape) < 0.95] = 0
    elif case == "great":
        x *= np.float32(1e15)
        kernel *= np.float32(1e15)
    return x, kernel, bias


CASES = [
    *("mean 0", "mean 100", "mean 1000", "all positive", "cancelling", "magnitudes", "denormal", "denormal weights"),
    *("lost in bfloat16", "integers", "great bias", "sparse", "great"),
]


def excess(layer, x, kernel, bias):
    """Return the greatest error of a layer, in units of its bound: against sums without any rounding, and `exact`."""
    outputs, row_bounds = layer.bounded(x)
    bounds = row_bounds[:, None] * layer.column_bounds
    products = [x[:, k, None].astype(np.float64) * kernel[k].astype(np.float64) for k in range(len(kernel))]
    terms = np.stack([*products, np.broadcast_to(bias.astype(np.float64), outputs.shape)])  # without rounding
    true = np.array([[max(math.fsum(terms[:, i, j]), 0) for j in range(terms.shape[2])] for i in range(terms.shape[1])])
    errors = [np.abs(outputs.astype(np.float64) - sums) / bounds for sums in (true, layer.exact(x))]
    return np.max(errors)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_outputs_are_within_their_bounds(kind, case):
    x, kernel, bias = layers(case)
    assert excess(kind(kernel, bias), x, kernel, bias) <= 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_deep_sums_are_within_their_bounds(kind):
    x, kernel, bias = layers("all positive", size_in=6000)
    assert excess(kind(kernel, bias), x, kernel, bias) <= 1


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(CASES),
    st.integers(1, 5),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_layers_of_any_size_are_within_their_bounds(kind, case, num_rows, size_in, size_out, seed):
    x, kernel, bias = layers(case, num_rows, size_in, size_out, seed)
    assert excess(kind(kernel, bias), x, kernel, bias) <= 1


@pytest.mark.parametrize("case", CASES)
def test_a_product_that_is_too_far_off_is_noticed(case):
    x, kernel, bias = layers(case)
    assert excess(TooFarOff(kernel, bias), x, kernel, bias) > 1


def test_bounds_are_reached():
    """By sums of which each addition loses half of a last digit, and by products of which splitting loses most."""
    x, kernel = np.full((1, 380), 2.0**-6, np.float32), np.full((380, 1), 2.0**-12, np.float32)
    x[0, 0], kernel[0] = 2.0**6, 1
    bias = np.zeros(1, np.float32)
    assert 0.9 < excess(FromTheFirst(kernel, bias), x, kernel, bias) <= 1
    x, kernel, bias = layers("lost in bfloat16", size_in=32)
    assert 0.1 < excess(EmulatedSplit(kernel, bias), x, kernel, bias) <= 1


def test_what_may_leave_float32s_range_is_bound_to_nothing():
    x, kernel = np.array([[3e38, -3e38], [1, 1]], np.float32), np.full((2, 2), 3e38, np.float32)
    for kind in KINDS:
        layer = kind(kernel, np.zeros(2, np.float32))
        outputs, row_bounds = layer.bounded(x)
        assert not (row_bounds[:, None] * layer.column_bounds < 2**24).any(), kind
        assert outputs.shape == (2, 2)


def test_dense_is_a_product_a_bias_and_a_relu():
    x = np.array([[1, 2], [-3, 1]], np.float32)
    kernel = np.array([[1, 0, 2], [0, 1, -1]], np.float32)
    np.testing.assert_array_equal(dense(x, kernel, np.array([0.5, -3, 0], np.float32)), [[1.5, 0, 0], [0, 0, 0]])
    x, kernel, bias = arrays(3, 1000, 4)
    np.testing.assert_allclose(dense(x, kernel, bias), np.maximum(x @ kernel + bias, 0), rtol=1e-4)


def split_kinds():
    return [pytest.param(EmulatedSplit, id="emulated"), pytest.param(SplitDense, marks=needs_matrix_units, id="real")]


# Beside whole blocks of 32, all of them cut; and more rows, and more depth, than are multiplied at once.
@pytest.mark.parametrize("kind", split_kinds())
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (32, 32, 32), (5, 33, 47), (300, 31, 16), (129, 1152, 9), (3, 2400, 65), (140, 1185, 33)]
)
def test_split_products_stay_within_their_bounds(kind, sizes):
    x, kernel, bias = arrays(*sizes)
    layer = kind(kernel, bias)
    outputs, row_bounds = layer.bounded(x)
    assert outputs.dtype == np.float32
    np.testing.assert_array_less(np.abs(outputs - layer.exact(x)), row_bounds[:, None] * layer.column_bounds)
    np.testing.assert_array_equal(layer(np.asfortranarray(x)), outputs)


@pytest.mark.parametrize("kind", split_kinds())
def test_split_products_of_bfloat16_are_exact(kind):
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(-100, 101, shape).astype(np.float32) for shape in ((70, 1500), (1500, 40)))
    bias = np.zeros(40, np.float32)
    np.testing.assert_array_equal(kind(kernel, bias)(x), dense(x, kernel, bias))


@pytest.mark.parametrize("kind", split_kinds())
def test_no_rows_give_no_outputs(kind):
    _, kernel, bias = arrays(0, 7, 9)
    assert kind(kernel, bias)(np.empty((0, 7), np.float32)).shape == (0, 9)


@pytest.mark.parametrize("kind", split_kinds())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, -2e36])
def test_values_that_cannot_be_split_are_multiplied_in_float32(kind, value):
    x, kernel, bias = arrays(40, 50, 60)
    x[33, 7] = value
    layer = kind(kernel, bias)
    outputs, row_bounds = layer.bounded(x)
    np.testing.assert_array_equal(outputs, dense(x, kernel, bias))
    others = np.arange(40) != 33
    assert (row_bounds[others] >= Dense(kernel, bias).bounded(x)[1][others]).all()


@needs_matrix_units
@pytest.mark.parametrize("sizes", [(32, 32, 32), (40, 1185, 70), (3, 2400, 33)])
def test_matrix_units_sum_as_emulated_ones(sizes):
    """What their bounds are built on."""
    x, kernel, bias = arrays(*sizes)
    np.testing.assert_array_equal(SplitDense(kernel, bias)(x), EmulatedSplit(kernel, bias)(x))


def test_small_integers_have_no_low_parts():
    x, kernel, bias = arrays(40, 70, 30)
    x = np.abs(np.rint(x)) % 257
    calls = []

    class Counting(Units):
        def add_products(self, *tiles):
            calls.append(tiles)
            super().add_products(*tiles)

    layer = EmulatedSplit(kernel, bias)
    with Counting().patches():
        few = matrix_units.multiply(x, layer._tiles, bias)
        num_few = len(calls)
        matrix_units.multiply(x + np.float32(0.001), layer._tiles, bias)
    assert len(calls) - num_few == num_few * 3 // 2
    np.testing.assert_allclose(few, dense(x, kernel, bias), rtol=1e-3, atol=1e-1)


def test_units_that_add_products_one_by_one_are_not_used():
    with Units().patches():
        assert matrix_units.sums_products_first()
    with Units(one_by_one=True).patches():
        assert not matrix_units.sums_products_first()


def test_without_matrix_units_there_is_no_split_layer(monkeypatch):
    monkeypatch.setattr(dense_layers, "has_matrix_units", lambda: False)
    with pytest.raises(RuntimeError, match="needs a processor with AMX"):
        SplitDense(*arrays(1, 2, 3)[1:])


def run(program, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("variable", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"])
def test_matrix_units_are_not_used_where_numba_compiles_for_other_processors(variable):
    program = "from vidpress.model.frozen.dense_layers import has_matrix_units; print(has_matrix_units())"
    assert run(program, **{variable: "generic" if variable == "NUMBA_CPU_NAME" else ""}).stdout == "False\n"


COMPILE = """
from numba import types
from vidpress.model.frozen import matrix_units

array = types.Array
number, half, byte = types.float32, types.uint16, types.uint8
matrix_units._multiply.compile((
    array(number, 2, "C"), array(half, 5, "C"), array(number, 1, "C"), array(half, 5, "C"), array(number, 2, "C"),
    array(number, 2, "C"), array(byte, 1, "C"), array(number, 2, "C"),
))
print(next(iter(matrix_units._multiply.inspect_asm().values())).count("tdpbf16ps"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LLVM for x86-64")
def test_products_are_compiled_for_processors_with_matrix_units(tmp_path):
    """Also where this one has none, so that nothing runs."""
    features = "+amx-tile,+amx-bf16,+avx512f"
    result = run(COMPILE, NUMBA_CPU_NAME="sapphirerapids", NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=str(tmp_path))
    assert int(result.stdout) >= 12, result.stderr
