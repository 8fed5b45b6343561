"""Our bitstream against tensorflow-compression's ops, both ways."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

tfc = pytest.importorskip("tensorflow_compression", reason="needs tensorflow-compression: `make test-tfc`")

import theirs  # noqa: E402
from random_tables import damaged_variants, random_tables, random_z_hat, seeds, shapes  # noqa: E402
from tensorflow_compression.python.ops import gen_ops  # noqa: E402

from vidpress.model.coding import range_coder  # noqa: E402
from vidpress.model.coding.range_coder import DamagedCodeError  # noqa: E402
from vidpress.model.tables.banks import choose_banks, fit_banks  # noqa: E402
from vidpress.model.tables.bits import bits_by_row  # noqa: E402
from vidpress.model.tables.range_coding_tables import RangeCodingTables  # noqa: E402


def damaged_rows(tables, codes):
    try:
        range_coder.decompress(tables, codes)
    except DamagedCodeError as error:
        return set(error.rows)
    return set()


@hypothesis.given(seeds, shapes)
def test_codes_are_theirs(rng, shape):
    tables = random_tables(rng)
    z_hat = random_z_hat(rng, tables, shape)
    codes = theirs.compress(tables, z_hat)
    assert range_coder.compress(tables, z_hat) == codes
    decoded, is_sane = theirs.decompress(tables, codes, shape[1:])
    assert is_sane.all()
    np.testing.assert_array_equal(range_coder.decompress(tables, codes, shape[1:]), decoded, strict=True)


@pytest.mark.parametrize("precision", [1, 8, 12, 16])
def test_long_rows_are_theirs(precision):
    rng = np.random.default_rng(precision)
    tables = random_tables(rng, num_dims=500, precision=precision, max_values=1000)
    # Steps of probability 2^-16 and long carries: most values are rare ones.
    z_hat = rng.integers(-40, 1000, (5, 20, 500), np.int32)
    codes = theirs.compress(tables, z_hat)
    assert range_coder.compress(tables, z_hat) == codes
    np.testing.assert_array_equal(range_coder.decompress(tables, codes, [20]), z_hat)


@hypothesis.given(seeds, st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_any_bytes_decode_as_theirs_or_are_damaged(rng, codes):
    tables = random_tables(rng)
    damaged = damaged_rows(tables, codes)
    # Its op would not come back from some of what is refused here.
    codes = [code for row, code in enumerate(codes) if row not in damaged]
    if codes:
        decoded, is_sane = theirs.decompress(tables, codes)
        assert is_sane.all()
        np.testing.assert_array_equal(range_coder.decompress(tables, codes), decoded)


@hypothesis.given(seeds)
def test_damage_that_they_see_is_seen(rng):
    tables = random_tables(rng, num_dims=30, precision=int(rng.integers(8, 17)))
    code = range_coder.compress(tables, random_z_hat(rng, tables, (1,)))[0]
    variants = damaged_variants(rng, code)
    damaged = damaged_rows(tables, variants)
    fine = [code for row, code in enumerate(variants) if row not in damaged]
    if fine:
        decoded, is_sane = theirs.decompress(tables, fine)
        assert is_sane.all()
        np.testing.assert_array_equal(range_coder.decompress(tables, fine), decoded)


def test_an_entropy_model_takes_our_tables():
    rng = np.random.default_rng(0)
    z_hat = rng.geometric(0.6, (20, 12)).astype(np.int32) - 1
    tables = RangeCodingTables.fit(z_hat)
    model = tfc.ContinuousBatchedEntropyModel(
        prior_shape=[12],
        coding_rank=1,
        compression=True,
        cdf=tables.lookup,
        cdf_offset=tables.cdf_offset,
        offset_heuristic=False,
    )
    codes = list(model.compress(z_hat.astype(np.float32)).numpy())
    assert range_coder.compress(tables, z_hat) == codes
    np.testing.assert_array_equal(model.decompress(codes, []).numpy(), range_coder.decompress(tables, codes))


def test_a_bank_is_coded_like_its_tables_alone():
    rng = np.random.default_rng(3)
    kind = rng.integers(4, size=400)
    z_hat = rng.poisson(np.where(np.arange(60) % 4 == kind[:, None], 0.9, 0.03)).astype(np.int32)
    z_hat[::9, 5] = 1000  # escapes
    tables = fit_banks(RangeCodingTables.fit(z_hat), z_hat, 8)
    bank = choose_banks(tables, z_hat)
    codes = range_coder.compress(tables, z_hat, bank)
    arrays = tables.coder_arrays
    sizes = arrays.escape + 2
    assert len(np.unique(bank)) > 3
    for index in np.unique(bank):
        parts = [arrays.cdf[first : first + size] for first, size in zip(arrays.start[index], sizes, strict=True)]
        alone_start = np.append(0, np.cumsum(sizes))
        alone = RangeCodingTables(np.concatenate(parts), alone_start, tables.cdf_offset, tables.precision)
        rows = np.flatnonzero(bank == index)
        assert [codes[row] for row in rows] == theirs.compress(alone, z_hat[rows])


@hypothesis.given(seeds)
def test_probabilities_are_rounded_to_their_integers(rng):
    precision = int(rng.integers(1, 17))
    size = int(rng.integers(2, min(2**precision, 300) + 1))
    p = (rng.dirichlet(np.full(size, rng.choice([0.05, 0.5, 5]))) * rng.choice([0.5, 1, 1, 2])).astype(np.float32)
    p[-1] = max(0, 1 - np.sum(p[:-1]))
    expected = gen_ops.pmf_to_quantized_cdf(p, precision=precision).numpy()
    tables = RangeCodingTables.from_pmf([p[:-1]], [0], precision)
    np.testing.assert_array_equal(tables.cdf, expected)


def test_fitting_costs_no_more_bits_than_their_rounding():
    rng = np.random.default_rng(0)
    for size, precision in itertools.product((2, 5, 40), (6, 12, 16)):
        z_hat = rng.choice(size, (10_000, 1), p=rng.dirichlet(np.full(size, 0.2))).astype(np.int32)
        z_hat[:size, 0] = np.arange(size)
        p = np.bincount(z_hat[:, 0]) / len(z_hat)
        rounded = RangeCodingTables.from_pmf([p], [0], precision)
        fitted = RangeCodingTables.fit(z_hat, precision)
        assert bits_by_row(fitted, z_hat).mean() <= bits_by_row(rounded, z_hat).mean() * 1.02
