import os
import subprocess
import sys

import numpy as np
import pytest

from vidpress.model import dense_layers
from vidpress.model.dense_layers import SplitDense, dense

needs_matrix_units = pytest.mark.skipif(
    not dense_layers.has_matrix_units(), reason="this processor or process has no use of matrix units (Intel AMX)"
)


def arrays(num_rows, size_in, size_out, seed=0):
    """Input with values of many magnitudes, kernel and bias."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, size_in)) * 10.0 ** rng.uniform(-3, 3, (num_rows, size_in))
    kernel = rng.normal(size=(size_in, size_out)) * 10.0 ** rng.uniform(-1, 1, (size_in, size_out))
    return x.astype(np.float32), kernel.astype(np.float32), rng.normal(size=size_out).astype(np.float32)


def test_dense_is_a_product_a_bias_and_a_relu():
    x = np.array([[1, 2], [-3, 1]], np.float32)
    kernel = np.array([[1, 0, 2], [0, 1, -1]], np.float32)
    np.testing.assert_array_equal(dense(x, kernel, np.array([0.5, -3, 0], np.float32)), [[1.5, 0, 0], [0, 0, 0]])


# Beside whole blocks of 32, all of them cut; and more rows, and more depth, than are multiplied at once.
@needs_matrix_units
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (32, 32, 32), (5, 33, 47), (300, 31, 16), (129, 1152, 90), (3, 2400, 65), (260, 1185, 33)]
)
def test_split_products_stay_within_their_margin(sizes):
    x, kernel, bias = arrays(*sizes)
    exact = np.maximum(x.astype(np.float64) @ kernel.astype(np.float64) + bias, 0)
    scale = np.linalg.norm(x, axis=1)[:, None] * np.sqrt(np.square(kernel).sum(axis=0) + bias**2)
    layer = SplitDense(kernel, bias)
    outputs = layer(x)
    assert outputs.dtype == np.float32
    assert outputs.shape == exact.shape
    np.testing.assert_array_less(np.abs(outputs - exact), layer.margin * scale + 1e-30)
    np.testing.assert_array_equal(layer(np.asfortranarray(x)), outputs)


@needs_matrix_units
def test_split_products_of_bfloat16_are_exact():
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(-100, 101, shape).astype(np.float32) for shape in ((70, 1500), (1500, 40)))
    bias = np.zeros(40, np.float32)
    np.testing.assert_array_equal(SplitDense(kernel, bias)(x), dense(x, kernel, bias))


@needs_matrix_units
def test_no_rows_give_no_outputs():
    _, kernel, bias = arrays(0, 7, 9)
    assert SplitDense(kernel, bias)(np.empty((0, 7), np.float32)).shape == (0, 9)


@needs_matrix_units
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, -2e36])
def test_values_that_cannot_be_split_are_multiplied_in_float32(value):
    x, kernel, bias = arrays(40, 50, 60)
    x[33, 7] = value
    np.testing.assert_array_equal(SplitDense(kernel, bias)(x), dense(x, kernel, bias))


def test_without_matrix_units_there_is_no_split_layer(monkeypatch):
    monkeypatch.setattr(dense_layers, "has_matrix_units", lambda: False)
    with pytest.raises(RuntimeError, match="needs a processor with AMX"):
        SplitDense(*arrays(1, 2, 3)[1:])


@pytest.mark.parametrize("variable", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"])
def test_matrix_units_are_not_used_where_numba_compiles_for_other_processors(variable):
    code = "from vidpress.model.dense_layers import has_matrix_units; print(has_matrix_units())"
    environment = {**os.environ, variable: "generic" if variable == "NUMBA_CPU_NAME" else ""}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "False\n"
