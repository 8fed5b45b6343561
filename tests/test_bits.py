import numpy as np
import pytest

from vidpress.model.tables.bits import bits_by_dim, bits_by_row
from vidpress.model.tables.range_coding_tables import RangeCodingTables

TABLES = RangeCodingTables([0, 10, 16, 0, 3, 5, 16], [0, 3, 7], [0, -2], 4)


def test_bits():
    tables = RangeCodingTables([0, 8, 12, 14, 16], [0, 5], [-1], 4)
    # Intervals of 1/2, 1/4, 1/8 for -1, 0, 1, and 1/8 for the escape: 3 bits, 2 floor(log2(distance)) + 1, and a sign.
    values = [-1, 0, 1, 2, 3, 5, -2, -3, -9]
    bits = [1, 2, 3, 3 + 2, 3 + 4, 3 + 6, 3 + 2, 3 + 4, 3 + 8]
    np.testing.assert_array_equal(bits_by_row(tables, np.array(values)[:, None]), bits)
    np.testing.assert_array_equal(bits_by_row(tables, np.array(values)[None, :, None]), [sum(bits)])
    np.testing.assert_allclose(bits_by_dim(tables, np.array(values)[:, None]), [np.mean(bits)])
    assert bits_by_row(tables, np.empty((0, 1), np.int32)).shape == (0,)


def test_bits_agree_in_every_shape():
    rng = np.random.default_rng(0)
    z_hat = rng.integers(-3, 9, (40, 2, 3, 2)).astype(np.int16)
    by_row = bits_by_row(TABLES, z_hat)
    assert by_row.shape == (40,)
    np.testing.assert_allclose(by_row, [bits_by_row(TABLES, row[None]).item() for row in z_hat])
    assert bits_by_dim(TABLES, z_hat).sum() * 6 == pytest.approx(by_row.mean())


@pytest.mark.parametrize("z_hat", [np.zeros((2, 3), np.int32), np.zeros(2, np.int32), np.zeros((2, 2))])
def test_bits_refuse(z_hat):
    with pytest.raises(ValueError, match=r"these tables take integers \[n, \.\.\., 2\]"):
        bits_by_row(TABLES, z_hat)


def test_no_data_have_no_mean():
    with pytest.raises(ValueError, match="at least one row"):
        bits_by_dim(TABLES, np.empty((0, 2), np.int32))
