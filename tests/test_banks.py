import hypothesis
import numpy as np
import plain_coder
import pytest
from hypothesis import strategies as st

from vidpress.model.coding import range_coder
from vidpress.model.tables.banks import choose_banks, fit_banks
from vidpress.model.tables.bits import bits_by_dim, bits_by_row
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.model.tables.widths import MAX_TILT, round_to_widths, tilt_widths

NUM_DIMS = 60


def clustered_z_hat(num_rows, seed, num_kinds=4):
    """Rows of several kinds, each of which switches on dimensions of its own."""
    rng = np.random.default_rng(seed)
    rate = np.where(np.arange(NUM_DIMS) % num_kinds == np.arange(num_kinds)[:, None], 0.9, 0.03)
    kind = rng.integers(0, num_kinds, num_rows)
    z_hat = rng.poisson(rate[kind]).astype(np.int32)
    return np.where(np.arange(NUM_DIMS) % 7 == 0, -z_hat, z_hat), kind


def single_bank(tables, bank):
    """The tables of one bank alone."""
    arrays = tables.coder_arrays
    sizes = arrays.escape + 2
    parts = [arrays.cdf[first : first + size] for first, size in zip(arrays.start[bank], sizes, strict=True)]
    start = np.append(0, np.cumsum(sizes))
    return RangeCodingTables(np.concatenate(parts), start, tables.cdf_offset, tables.precision)


@pytest.fixture(scope="module")
def tables():
    z_hat, _ = clustered_z_hat(2000, seed=0)
    return fit_banks(RangeCodingTables.fit(z_hat), z_hat, 8)


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(4, 16))
def test_tilted_widths_are_a_distribution_whose_odds_are_multiplied(seed, precision):
    rng = np.random.default_rng(seed)
    start = np.append(0, np.cumsum(rng.integers(2, 7, 30)))
    widths = round_to_widths(rng.exponential(size=start[-1]) ** 4, start, precision)
    tilt = rng.integers(-MAX_TILT, MAX_TILT + 1, 30)
    tilted = tilt_widths(widths, start, tilt, precision)
    assert tilted.min() >= 1
    np.testing.assert_array_equal(np.add.reduceat(tilted, start[:-1]), 1 << precision)
    for dim in range(30):
        before, after = widths[start[dim] : start[dim + 1]], tilted[start[dim] : start[dim + 1]]
        likeliest = np.argmax(before)
        if tilt[dim] == 0:
            np.testing.assert_array_equal(after, before)
        weights = before * np.where(np.arange(len(before)) == likeliest, 1.0, 2.0 ** (tilt[dim] / 2))
        np.testing.assert_allclose(after, weights / weights.sum() * (1 << precision), atol=len(before) + 1)


def test_banks_find_the_kinds_and_save_bits(tables):
    z_hat, kind = clustered_z_hat(1000, seed=1)
    bank = choose_banks(tables, z_hat)
    first = bits_by_row(tables.with_banks([0]), z_hat, np.zeros(1000, int))
    assert bits_by_row(tables, z_hat, bank).mean() + 3 < 0.9 * first.mean()
    shared = RangeCodingTables.fit(clustered_z_hat(2000, seed=0)[0])
    assert bits_by_row(tables, z_hat, bank).mean() + 3 < 0.9 * bits_by_row(shared, z_hat).mean()
    of_kind = [np.bincount(kind[bank == index], minlength=4) for index in range(8)]
    assert sum(counts.max() for counts in of_kind) > 950


def test_the_chosen_bank_is_the_cheapest(tables):
    z_hat, _ = clustered_z_hat(300, seed=2)
    bits = np.stack([bits_by_row(tables, z_hat, np.full(300, bank)) for bank in range(8)])
    np.testing.assert_allclose(bits_by_row(tables, z_hat, choose_banks(tables, z_hat)), bits.min(axis=0), atol=0.1)


def test_choice_does_not_depend_on_the_last_bit_of_a_logarithm():
    units = np.log2(np.arange(1, 2**16 + 1)) * 1024
    assert np.abs(units - np.floor(units) - 0.5).min() > 1e-6


def test_a_bank_is_coded_like_its_tables_alone(tables):
    z_hat, _ = clustered_z_hat(400, seed=3)
    z_hat[::9, 5] = 1000  # escapes
    bank = choose_banks(tables, z_hat)
    codes = range_coder.compress(tables, z_hat, bank)
    np.testing.assert_array_equal(range_coder.decompress(tables, codes, bank=bank), z_hat)
    assert len(np.unique(bank)) > 3
    for index in np.unique(bank):
        rows = np.flatnonzero(bank == index)
        alone = single_bank(tables, index)
        assert [codes[row] for row in rows[:20]] == [plain_coder.encode(alone, z_hat[row]) for row in rows[:20]]
        np.testing.assert_allclose(bits_by_row(tables, z_hat[rows], bank[rows]), bits_by_row(alone, z_hat[rows]))
    by_dim = bits_by_dim(tables, z_hat, bank)
    np.testing.assert_allclose(by_dim.sum(), bits_by_row(tables, z_hat, bank).mean())


def test_positions_of_a_row_share_its_bank(tables):
    z_hat = np.stack([clustered_z_hat(6, seed=seed)[0] for seed in range(40)]).reshape(40, 2, 3, NUM_DIMS)
    fitted = fit_banks(RangeCodingTables.fit(z_hat), z_hat, 4)
    bank = choose_banks(fitted, z_hat)
    assert bank.shape == (40,)
    codes = range_coder.compress(fitted, z_hat, bank)
    np.testing.assert_array_equal(range_coder.decompress(fitted, codes, (2, 3), bank), z_hat)
    every = np.stack([bits_by_row(fitted, z_hat, np.full(40, index)) for index in range(4)])
    np.testing.assert_allclose(bits_by_row(fitted, z_hat, bank), every.min(axis=0), atol=0.3)


def test_one_bank_is_the_tables_as_they_are():
    z_hat, _ = clustered_z_hat(500, seed=4)
    shared = RangeCodingTables.fit(z_hat)
    single = fit_banks(shared, z_hat, 1)
    assert single.to_bytes() == shared.to_bytes()
    assert range_coder.compress(single, z_hat) == range_coder.compress(shared, z_hat, choose_banks(shared, z_hat))


def test_equal_data_give_equal_banks(tables):
    z_hat, _ = clustered_z_hat(2000, seed=0)
    again = fit_banks(tables, z_hat, 8)
    assert again.to_bytes() == tables.to_bytes()
    assert fit_banks(tables, z_hat, 8, seed=1).to_bytes() != tables.to_bytes()


def test_bytes_round_trip(tables):
    for some in (tables, tables.with_banks([3]), tables.with_banks([])):
        again = RangeCodingTables.from_bytes(some.to_bytes())
        np.testing.assert_array_equal(again.bank_tilt, some.bank_tilt)
        np.testing.assert_array_equal(again.cdf, some.cdf)
        assert again.num_banks == 8
    assert len(tables.with_banks([3]).to_bytes()) < len(tables.to_bytes())


def test_parts_unite(tables):
    z_hat, _ = clustered_z_hat(100, seed=5)
    bank = choose_banks(tables, z_hat)
    some, others = tables.with_banks([0, 1, 2]), tables.with_banks([2, 3, 4, 5, 6, 7])
    assert some.has_bank.tolist() == [True] * 3 + [False] * 5
    assert some.union(others).to_bytes() == tables.to_bytes()
    assert some.union(some) is some
    codes = range_coder.compress(tables, z_hat, bank)
    np.testing.assert_array_equal(range_coder.decompress(some.union(others), codes, bank=bank), z_hat)
    assert set(choose_banks(some, z_hat)) <= {0, 1, 2}


def test_parts_of_other_tables_do_not_unite(tables):
    z_hat, _ = clustered_z_hat(2000, seed=9)
    others = [fit_banks(RangeCodingTables.fit(z_hat), z_hat, 8), fit_banks(tables, z_hat, 8, seed=1)]
    others.append(RangeCodingTables.fit(z_hat))
    for other in others:
        with pytest.raises(ValueError, match="not parts of the same"):
            tables.union(other)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (None, "These tables have 8 banks: say which one each row has"),
        ([0, 1], r"bank is int64\[2\]; 3 rows take integers \[3\]"),
        ([0.0, 1.0, 2.0], "bank is float64"),
        ([0, 1, 8], "Row 2 has bank 8, which these tables do not have"),
        ([0, -1, 2], "Row 1 has bank -1"),
        ([0, 1, 5], "Row 2 has bank 5"),
    ],
)
def test_wrong_banks_are_refused(tables, bank, message):
    z_hat, _ = clustered_z_hat(3, seed=0)
    some = tables.with_banks([0, 1, 2, 3, 4, 6, 7])
    codes = range_coder.compress(tables, z_hat, np.zeros(3, np.uint8))
    bank = None if bank is None else np.array(bank)
    for call in (
        lambda: range_coder.compress(some, z_hat, bank),
        lambda: range_coder.decompress(some, codes, bank=bank),
        lambda: bits_by_row(some, z_hat, bank),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("num_banks", "message"),
    [
        (0, "There cannot be 0 banks"),
        (3, "power of two from 1 to 256"),
        (512, "512"),
        (8, "8 banks cannot be fitted to 5"),
    ],
)
def test_impossible_numbers_of_banks_are_refused(num_banks, message):
    z_hat, _ = clustered_z_hat(5, seed=0)
    with pytest.raises(ValueError, match=message):
        fit_banks(RangeCodingTables.fit(z_hat), z_hat, num_banks)


@pytest.mark.parametrize(
    ("tilt", "message"),
    [
        (np.zeros((2, NUM_DIMS), int), "bank_tilt must be int8"),
        (np.zeros((2, 3), np.int8), r"bank_tilt must be int8\[num_banks, 60\]"),
        (np.zeros((0, NUM_DIMS), np.int8), "There are 0 banks: 1 to 256"),
        (np.full((1, NUM_DIMS), MAX_TILT + 1, np.int8), "bank_tilt has values beyond 24"),
    ],
)
def test_impossible_tilts_are_refused(tables, tilt, message):
    with pytest.raises(ValueError, match=message):
        RangeCodingTables(tables.cdf, tables.cdf_start, tables.cdf_offset, tables.precision, tilt)
