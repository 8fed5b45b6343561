"""Operations on lanes, compiled, against NumPy's on arrays."""

import operator

import numba
import numpy as np
import pytest

from vidpress.model.coding.lanes import (
    NUM_LANES,
    compress,
    count,
    gather,
    lane_numbers,
    lanes,
    load,
    load_column,
    multiply,
    reverse_bytes,
    select,
    store,
    to_bits,
)

MODULUS = 1 << 64


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def values(rng):
    """Two vectors; some lanes are equal, and some have their highest bit set."""
    a, b = rng.integers(0, MODULUS, (2, NUM_LANES), np.uint64)
    b[::3] = a[::3]
    return a, b


def integers(array):
    return [int(value) for value in array]


@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.and_, operator.or_])
def test_arithmetic_is_modulo_2_to_the_64(function, values):
    @numba.njit
    def run(a, b, out):
        store(out[0], 0, function(load(a, 0), load(b, 0)))
        store(out[1], 0, function(load(a, 0), b[0]))
        store(out[2], 0, function(np.int32(-7), load(b, 0)))

    a, b = values
    out = np.zeros((3, NUM_LANES), np.uint64)
    run(a, b, out)
    a, b = integers(a), integers(b)
    assert integers(out[0]) == [function(x, y) % MODULUS for x, y in zip(a, b, strict=True)]
    assert integers(out[1]) == [function(x, b[0]) % MODULUS for x in a]
    assert integers(out[2]) == [function(-7, y) % MODULUS for y in b]


def test_shifts(values):
    @numba.njit
    def run(a, by, out):
        store(out[0], 0, load(a, 0) << load(by, 0))
        store(out[1], 0, load(a, 0) >> np.uint64(5))

    a, _ = values
    by = np.arange(NUM_LANES, dtype=np.uint64) * np.uint64(7)
    out = np.zeros((2, NUM_LANES), np.uint64)
    run(a, by, out)
    np.testing.assert_array_equal(out, [a << by, a >> np.uint64(5)])


@pytest.mark.parametrize("function", [operator.lt, operator.ge, operator.eq])
def test_comparisons_are_unsigned(function, values):
    @numba.njit
    def run(a, b):
        return to_bits(function(load(a, 0), load(b, 0)))

    a, b = values
    assert run(a, b) == sum(1 << lane for lane in range(NUM_LANES) if function(a[lane], b[lane]))


def test_masks(values):
    @numba.njit
    def run(a, b, out):
        below = load(a, 0) < load(b, 0)
        either = below | (load(a, 0) == load(b, 0))
        store(out[0], 0, select(below, load(a, 0), load(b, 0)))
        store(out[1], 0, select(below, np.uint64(3), load(b, 0)))
        return count(below), to_bits(either)

    a, b = values
    out = np.zeros((2, NUM_LANES), np.uint64)
    assert run(a, b, out) == ((a < b).sum(), sum(1 << int(lane) for lane in np.flatnonzero(a <= b)))
    np.testing.assert_array_equal(out, [np.minimum(a, b), np.where(a < b, np.uint64(3), b)])


def test_products_are_of_the_lower_32_bits(values):
    @numba.njit
    def run(a, b, out):
        store(out, 0, multiply(load(a, 0), load(b, 0)))

    a, b = values
    out = np.zeros(NUM_LANES, np.uint64)
    run(a, b, out)
    low = np.uint64((1 << 32) - 1)
    np.testing.assert_array_equal(out, (a & low) * (b & low))


def test_constants_and_bytes(values):
    @numba.njit
    def run(a, out):
        store(out[0], 0, lanes(np.int8(-2)))
        store(out[1], 0, lane_numbers())
        store(out[2], 0, reverse_bytes(load(a, 0)))

    a, _ = values
    out = np.zeros((3, NUM_LANES), np.uint64)
    run(a, out)
    assert set(integers(out[0])) == {MODULUS - 2}
    assert integers(out[1]) == list(range(NUM_LANES))
    np.testing.assert_array_equal(out[2], a.byteswap())


def test_narrow_items_are_written_and_nothing_beside_them(values):
    @numba.njit
    def run(a, out):
        store(out, 1, load(a, 0))

    a, _ = values
    out = np.full(NUM_LANES + 2, -1, np.int32)
    run(a, out)
    np.testing.assert_array_equal(out, [-1, *a.astype(np.uint32).view(np.int32), -1])


def test_columns(rng):
    @numba.njit
    def run(table, index, out):
        store(out, 0, load_column(table, index))

    table = rng.integers(0, 1 << 32, (NUM_LANES, 5), np.uint32)
    out = np.zeros(NUM_LANES, np.uint64)
    for index in range(5):
        run(table, index, out)
        np.testing.assert_array_equal(out, table[:, index])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_gathered_are_64_bits_from_an_item_on(rng, dtype):
    @numba.njit
    def run(items, index, out):
        store(out, 0, gather(items, load(index, 0)))

    items = rng.integers(0, 1 << 8, 800, np.uint8).view(dtype)
    index = rng.integers(0, len(items) - 8, NUM_LANES).astype(np.uint64)
    out = np.zeros(NUM_LANES, np.uint64)
    run(items, index, out)
    np.testing.assert_array_equal(out, [items[start:].view(np.uint8)[:8].view(np.uint64)[0] for start in index])


@pytest.mark.parametrize("kept", [0, 1, NUM_LANES // 2, NUM_LANES])
def test_compressed_lanes_stand_side_by_side(rng, values, kept):
    @numba.njit
    def run(a, is_kept, out):
        store(out, 0, compress(load(a, 0), load(is_kept, 0) == np.uint64(1)))

    a, _ = values
    is_kept = np.zeros(NUM_LANES, np.uint64)
    is_kept[rng.choice(NUM_LANES, kept, replace=False)] = 1
    out = np.zeros(NUM_LANES, np.uint64)
    run(a, is_kept, out)
    np.testing.assert_array_equal(out[:kept], a[is_kept == 1].astype(np.uint32))
