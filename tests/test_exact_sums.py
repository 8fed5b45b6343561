"""The sums that define a layer, against plain Python, and the same to the bit on other processors."""

import fractions
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.frozen.exact_sums import exact_layer, exact_sums


def by_definition(x, column, bias):
    """Python's floats are IEEE's, and it does what is written."""
    parts = [0.0] * 32
    for k, (a, b) in enumerate(zip(x.tolist(), column.tolist(), strict=True)):
        parts[k % 32] += a * b
    total = 0.0
    for part in parts:
        total += part
    return max(total + float(bias), 0.0)


def arrays(size_in, dtype, seed=0, size_out=4, num_rows=3):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(num_rows, size_in)) * 10.0 ** rng.uniform(-5, 5, (num_rows, size_in))).astype(dtype)
    columns = rng.normal(size=(size_out, size_in)).astype(np.float32)
    return x, columns, rng.normal(size=size_out).astype(np.float32)


@given(st.integers(1, 200), st.sampled_from([np.float32, np.float64]), st.integers(0, 99))
def test_sums_are_those_of_the_definition(size_in, dtype, seed):
    x, columns, bias = arrays(size_in, dtype, seed)
    expected = [[by_definition(row, column, b) for column, b in zip(columns, bias, strict=True)] for row in x]
    assert exact_layer(x, columns, bias).tolist() == expected
    rows, numbers = np.array([2, 0, 0]), np.array([1, 3, 1])
    assert exact_sums(x, columns, bias, rows, numbers).tolist() == [expected[2][1], expected[0][3], expected[0][1]]


def test_products_are_rounded_before_they_are_added():
    """Fused, the second would leave what it is rounded by."""
    x, columns = np.zeros((1, 33)), np.zeros((1, 33), np.float32)
    x[0, [0, 32]] = -1, 1 + 2.0**-52
    columns[0, [0, 32]] = 1, 1 + 2.0**-23
    rounded = np.float64(x[0, 32]) * np.float64(columns[0, 32])
    assert exact_layer(x, columns, np.zeros(1, np.float32))[0, 0] == rounded - 1 == 2.0**-23 + 2.0**-52
    exact = fractions.Fraction(x[0, 32]) * fractions.Fraction(float(columns[0, 32])) - 1
    assert exact != rounded - 1


def test_nan_stays_and_there_is_no_negative_zero():
    columns, bias = np.full((1, 2), -1, np.float32), np.zeros(1, np.float32)
    x = np.array([[np.nan, 1], [0, 0], [np.inf, -np.inf], [2, 3]], np.float32)
    z = exact_layer(x, columns, bias)[:, 0]
    assert np.isnan(z).tolist() == [True, False, True, False]
    assert not np.signbit(z[[1, 3]]).any()


DIGEST = """
import hashlib, numpy as np
from test_exact_sums import arrays, exact_layer

sums = [exact_layer(*arrays(size, dtype)) for size in (7, 700) for dtype in (np.float32, np.float64)]
print(hashlib.sha256(b"".join(array.tobytes() for array in sums)).hexdigest())
"""


@pytest.mark.parametrize("processor", ["generic", "nehalem", "haswell"])
def test_other_processors_give_the_same_bits(processor, tmp_path):
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    result = subprocess.run(
        [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode < 0 or "LLVM" in result.stderr:
        pytest.skip(f"this processor cannot run what is compiled for {processor}: {result.stderr[-200:]}")
    sums = [exact_layer(*arrays(size, dtype)) for size in (7, 700) for dtype in (np.float32, np.float64)]
    assert result.stdout.strip() == hashlib.sha256(b"".join(array.tobytes() for array in sums)).hexdigest()
