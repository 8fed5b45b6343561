import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vidpress.model.tables.symbol_counts import SymbolCounts, count_symbols


@hypothesis.given(st.integers(0, 2**32 - 1).map(np.random.default_rng), st.sampled_from([(12, 3), (4, 5, 3), (0, 3)]))
def test_counts(rng, shape):
    z_hat = np.rint(rng.standard_cauchy(shape) * 3).clip(-(2**31), 2**31 - 1).astype(np.int64)
    counts = count_symbols(z_hat)
    expected = {
        (dim, value): int(count)
        for dim in range(3)
        for value, count in zip(*np.unique(z_hat[..., dim], return_counts=True), strict=True)
    }
    found = zip(counts.dim.tolist(), counts.value.tolist(), counts.count.tolist(), strict=True)
    assert {(dim, value): count for dim, value, count in found} == expected
    assert (counts.num_dims, counts.num_symbols) == (3, z_hat.size // 3)
    # Counts of parts add up, however the data are cut.
    cut = len(z_hat) // 3
    total = count_symbols(z_hat[:cut]) + count_symbols(z_hat[cut:])
    for name in ("num_symbols", "dim", "value", "count"):
        np.testing.assert_array_equal(getattr(total, name), getattr(counts, name))


def test_entropy_of_counts():
    counts = count_symbols(np.array([[0, 5], [0, 5], [1, 5], [2, 5]]))
    assert counts.bits() == pytest.approx(1.5)


def test_counts_refuse():
    with pytest.raises(ValueError, match=r"integers \[n, \.\.\., num_dims\], not float64"):
        count_symbols(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="beyond int32"):
        count_symbols(np.full((2, 3), 2**40))
    with pytest.raises(ValueError, match="of 3 and of 2 dimensions"):
        count_symbols(np.zeros((2, 3), int)) + count_symbols(np.zeros((2, 2), int))


def test_counts_pickle():
    counts = pickle.loads(pickle.dumps(count_symbols(np.eye(3, dtype=int))))
    assert isinstance(counts, SymbolCounts)
    assert counts.bits() == pytest.approx(3 * (np.log2(3) - 2 / 3))
