import copy
import dataclasses
import itertools
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vidpress.model.tables.bits import bits_by_row
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.model.tables.symbol_counts import count_symbols

TABLES = {"cdf": [0, 10, 16, 0, 3, 5, 16], "cdf_start": [0, 3, 7], "cdf_offset": [0, -2], "precision": 4}

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def sparse_z_hat(num_videos, num_dims, seed):
    """Like the z_hat of a trained bottleneck: over 90 % zeros, most dimensions within 0 to 3, some far beyond."""
    per_dim = np.random.default_rng(1)
    rate = np.minimum(np.exp(per_dim.normal(-3.9, 1.9, num_dims)), 1.5)
    tail = per_dim.uniform(0.05, 0.5, num_dims)
    rng = np.random.default_rng(seed)
    z_hat = rng.geometric(1 - tail, (num_videos, num_dims)).astype(np.int32)
    z_hat[rng.random((num_videos, num_dims)) >= 1 - np.exp(-rate)] = 0
    return z_hat


def widths_of(tables, dim):
    return np.diff(tables.cdf[tables.cdf_start[dim] : tables.cdf_start[dim + 1]])


def assert_same(tables, other):
    np.testing.assert_array_equal(tables.lookup, other.lookup)
    np.testing.assert_array_equal(tables.cdf_offset, other.cdf_offset)
    assert tables.precision == other.precision


def test_arrays_are_read_only_copies():
    cdf = np.array(TABLES["cdf"])
    tables = RangeCodingTables(**{**TABLES, "cdf": cdf})
    cdf[1] = 15
    assert tables.cdf[1] == 10
    assert {array.dtype for array in (tables.cdf, tables.cdf_start, tables.cdf_offset)} == {np.dtype(np.int32)}
    with pytest.raises(ValueError, match="read-only"):
        tables.cdf[1] = 15
    assert tables.num_dims == 2
    tables.coder_arrays  # noqa: B018
    for again in (pickle.loads(pickle.dumps(tables)), copy.deepcopy(tables)):
        assert_same(again, tables)
        assert not any(array.flags.writeable for array in (again.cdf, again.bank_tilt, *again.coder_arrays))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": 0}, "precision is 0: the range coder takes 1 to 16"),
        ({"precision": 17}, "precision is 17"),
        ({"precision": 4.0}, "precision must be an integer, not 4.0"),
        ({"cdf": np.array(TABLES["cdf"], float)}, r"cdf must be a vector of integers, not float64\[7\]"),
        ({"cdf_offset": [0, 2**40]}, "cdf_offset has values beyond int32"),
        ({"cdf_offset": [0, 2**30]}, "Dimension 1 has cdf_offset 1073741824, beyond"),
        ({"cdf_offset": [0]}, "cdf_start has 3 and cdf_offset 1 entries"),
        ({"cdf_start": [0, 3, 8]}, "cdf_start goes from 0 to 8: it must go from 0 to 7"),
        ({"cdf_start": [0, 5, 7]}, "Dimension 1 has a cdf of 2 entries; it needs at least 3"),
        ({"cdf_start": [0, 9, 7]}, "Dimension 1 has a cdf of -2 entries"),
        ({"cdf": [0, 10, 16, 1, 3, 5, 16]}, "Dimension 1 has a cdf that starts with 1 instead of 0"),
        ({"cdf": [0, 10, 15, 0, 3, 5, 16]}, "Dimension 0 has a cdf that ends with 15 instead of 16"),
        ({"cdf": [0, 10, 16, 0, 5, 5, 16]}, "Dimension 1 has a cdf that does not increase strictly"),
        ({"cdf": [0, 16, 16, 0, 3, 5, 16]}, "Dimension 0 has a cdf that does not increase strictly"),
    ],
)
def test_refused_tables(changes, message):
    with pytest.raises(ValueError, match=message):
        RangeCodingTables(**{**TABLES, **changes})


def test_lookup_is_tensorflow_compressions_layout():
    tables = RangeCodingTables(**TABLES)
    assert tables.lookup.tolist() == [-4, 0, 10, 16, -4, 0, 3, 5, 16]
    assert_same(RangeCodingTables.from_lookup(tables.lookup, tables.cdf_offset), tables)


@pytest.mark.parametrize(
    ("lookup", "message"),
    [
        ([], "must be a vector that begins with -precision"),
        ([4, 0, 10, 16], "must be a vector that begins with -precision"),
        ([-4, 0, 10, 16, -3, 0, 4, 8], r"mixes the precisions \[3 4\]"),
        ([-4, 0, 10, 15], "ends with 15"),
    ],
)
def test_refused_lookup(lookup, message):
    with pytest.raises(ValueError, match=message):
        RangeCodingTables.from_lookup(np.array(lookup, np.int32), np.zeros(1, np.int32))


def expected_bits(p, widths):
    return float((p * -np.log2(widths / widths.sum())).sum())


# Each probability is rounded to the nearest width, as tensorflow-compression does. That is dearest where all lie at
# halves: 0.47 % here, by all corners of the probabilities that round to the same widths. At least 0.04 from halves, it
# is below 0.1 %.
AT_HALVES = np.array([1.5, 1.5, 2.5, 2.5]) / 8
DEAREST = expected_bits(AT_HALVES, np.array([1, 1, 3, 3])) / expected_bits(AT_HALVES, np.array([2, 2, 2, 2]))


def test_from_pmf_is_dearest_where_probabilities_are_close_to_halves():
    p = AT_HALVES + np.array([-1, -1, 1, 1]) / 10_000
    widths = widths_of(RangeCodingTables.from_pmf([p[:3]], [0], 3), 0)
    assert widths.tolist() == [1, 1, 3, 3]
    assert 1.004 < expected_bits(p, widths) / expected_bits(p, np.full(4, 2)) <= DEAREST


@hypothesis.given(seeds)
@hypothesis.example(np.random.default_rng(7878))
def test_from_pmf_is_nearly_optimal(rng):
    precision = int(rng.integers(2, 6))
    p = rng.dirichlet(np.full(4, rng.choice([0.05, 0.5, 5])))
    widths = widths_of(RangeCodingTables.from_pmf([p[:3]], [0], precision), 0)
    total = 1 << precision
    everything = (
        (*three, total - sum(three)) for three in itertools.product(range(1, total), repeat=3) if sum(three) < total
    )
    best = min(expected_bits(p, np.array(each)) for each in everything)
    at_a_half = np.abs(p * total % 1 - 0.5).min() < 0.04
    assert expected_bits(p, widths) <= best * (DEAREST if at_a_half else 1.001) + 1e-9


@hypothesis.given(seeds)
def test_from_pmf_fills_every_precision(rng):
    precision = int(rng.integers(1, 17))
    sizes = rng.integers(1, min(2**precision, 200), 6)
    pmf = [rng.dirichlet(np.full(size + 1, 0.1))[:size] for size in sizes]
    pmf[0][:] = 0
    tables = RangeCodingTables.from_pmf(pmf, np.arange(6), precision)
    assert [len(widths_of(tables, dim)) - 1 for dim in range(6)] == sizes.tolist()


@pytest.mark.parametrize(
    ("pmf", "message"),
    [
        ([[0.5], [0.5, -0.1]], "pmf of dimension 1 has a probability that is negative or not finite"),
        ([[np.nan]], "pmf of dimension 0"),
        ([[0.01] * 16], "Dimension 0 has 16 values, which do not fit precision 4: use 15 or fewer"),
    ],
)
def test_from_pmf_refuses(pmf, message):
    with pytest.raises(ValueError, match=message):
        RangeCodingTables.from_pmf([np.array(p) for p in pmf], np.zeros(len(pmf), np.int32), precision=4)


def test_fit_comes_within_1_percent_of_the_held_out_entropy():
    num_dims = 400
    tables = RangeCodingTables.fit(sparse_z_hat(20000, num_dims, seed=2))
    held_out = sparse_z_hat(10000, num_dims, seed=3)
    assert np.mean(held_out == 0) > 0.9
    entropy = count_symbols(held_out).bits()
    assert entropy <= bits_by_row(tables, held_out).mean() * 1.0001
    assert bits_by_row(tables, held_out).mean() <= entropy * 1.01
    assert len(tables.to_bytes()) < num_dims * 7


def test_fit_to_little_data():
    tables = RangeCodingTables.fit(sparse_z_hat(1000, 400, seed=2))
    held_out = sparse_z_hat(10000, 400, seed=3)
    assert bits_by_row(tables, held_out).mean() <= count_symbols(held_out).bits() * 1.04


def test_dimensions_that_are_always_zero_cost_next_to_nothing():
    tables = RangeCodingTables.fit(np.zeros((29000, 2000), np.uint8))
    zeros = np.zeros((1, 2000), np.uint8)
    assert bits_by_row(tables, zeros)[0] < 0.1
    assert len(tables.cdf) == 3 * 2000
    assert len(tables.to_bytes()) < 200


def test_far_outliers_are_left_to_the_escape():
    z_hat = np.zeros((29000, 2), np.int32)
    z_hat[::3] = 1
    z_hat[::100] = 4
    z_hat[17, 0] = 10**6
    z_hat[18, 1] = -5000
    tables = RangeCodingTables.fit(z_hat)
    assert tables.cdf_offset.tolist() == [0, 0]
    assert np.diff(tables.cdf_start).tolist() == [7, 7]


@hypothesis.given(seeds, st.integers(1, 16))
def test_fit_takes_any_data(rng, precision):
    scale = rng.choice([0.1, 1, 100, 1e5])
    z_hat = np.rint(rng.standard_cauchy((int(rng.integers(1, 40)), 5)) * scale).clip(-(2**28), 2**28).astype(np.int32)
    tables = RangeCodingTables.fit(z_hat, precision)
    assert tables.precision == precision
    assert np.isfinite(bits_by_row(tables, z_hat)).all()
    assert_same(RangeCodingTables.from_bytes(tables.to_bytes()), tables)
    assert_same(RangeCodingTables.fit(count_symbols(z_hat), precision), tables)


def test_fit_refuses():
    with pytest.raises(ValueError, match="at least one row"):
        RangeCodingTables.fit(np.empty((0, 3), np.int32))
    with pytest.raises(ValueError, match="precision is 20"):
        RangeCodingTables.fit(np.zeros((1, 3), np.int32), precision=20)
    with pytest.raises(ValueError, match="Dimension 2 has cdf_offset 1073741824"):
        RangeCodingTables.fit(np.full((3, 3), [0, 0, 2**30]))


@hypothesis.given(seeds)
def test_bytes_round_trip(rng):
    precision = int(rng.integers(1, 17))
    cdf = []
    for _ in range(int(rng.integers(1, 9))):
        inner = rng.choice(np.arange(1, 2**precision), rng.integers(1, min(2**precision - 1, 60) + 1), replace=False)
        cdf.append(np.concatenate([[0], np.sort(inner), [2**precision]]))
    start = np.cumsum([0, *map(len, cdf)])
    tables = RangeCodingTables(np.concatenate(cdf), start, rng.integers(-(2**29), 2**29, len(cdf)), precision)
    data = tables.to_bytes()
    assert_same(RangeCodingTables.from_bytes(data), tables)
    assert RangeCodingTables.from_bytes(data).to_bytes() == data


def test_damaged_bytes_are_refused():
    data = RangeCodingTables(**TABLES).to_bytes()
    variants = [data[:length] for length in range(len(data))] + [data + b"\0", b"", b"\0" * 100]
    for place, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        variants.append(bytes(flipped))
    for variant in variants:
        with pytest.raises(ValueError, match=r"not range coding tables|format version|damaged"):
            RangeCodingTables.from_bytes(variant)


def test_a_later_version_is_named():
    data = bytearray(RangeCodingTables(**TABLES).to_bytes())
    data[4] = 3
    with pytest.raises(ValueError, match="format version 3; this vidpress reads"):
        RangeCodingTables.from_bytes(bytes(data))


def test_tables_have_limits():
    with pytest.raises(ValueError, match=r"There are 8,193 dimensions .*: at most 8,192 and 2,097,152 are possible"):
        RangeCodingTables(np.tile([0, 1, 2], 8193), np.arange(8194) * 3, np.zeros(8193, np.int32), 1)
    size = 2**16 + 1
    flat = RangeCodingTables(np.tile(np.arange(size), 6), np.arange(7) * size, np.zeros(6, np.int32), 16)
    tilt = np.repeat((np.arange(49) - 24).astype(np.int8)[:, None], 6, axis=1)
    with pytest.raises(ValueError, match=r"entries in all: at most 16,777,216 are possible\. Use fewer banks"):
        dataclasses.replace(flat, bank_tilt=tilt)
    with pytest.raises(ValueError, match="did training diverge"):
        RangeCodingTables(np.tile(np.arange(size), 32), np.arange(33) * size, np.zeros(32, np.int32), 16)
