import concurrent.futures
import fractions
import itertools
import json
import math
import pathlib
import pickle
import random

import hypothesis
import numpy as np
import plain_coder
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from random_tables import damaged_variants, random_tables, random_z_hat, seeds, shapes

from vidpress.model.coding import coder_loops, range_coder
from vidpress.model.coding.range_coder import DamagedCodeError
from vidpress.model.tables.bits import bits_by_row
from vidpress.model.tables.limits import MAX_ESCAPE_BITS
from vidpress.model.tables.range_coding_tables import RangeCodingTables

GOLDEN = pathlib.Path(__file__).parent / "golden" / "range_coder.json"
TABLES = RangeCodingTables.from_pmf([np.array([0.9, 0.06]), np.array([0.3, 0.3, 0.2]), np.array([0.5])], [0, -1, 7])


@pytest.fixture(autouse=True, scope="module", params=["LANES", "ROW_BY_ROW"])
def _loops(request):
    """Each test is of both kinds of loops, whichever this processor would choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder_loops, "chosen", lambda: getattr(coder_loops, request.param))
        yield


def plain_decode(tables, codes, broadcast_shape=()):
    """What the plain coder decodes of those codes that it sees no damage in, and the rows of the others."""
    num_symbols = math.prod(broadcast_shape) * tables.num_dims
    rows = [plain_coder.decode(tables, code, num_symbols) for code in codes]
    fine = [row for row in rows if row is not None]
    return np.reshape(np.array(fine, np.int32), (len(fine), *broadcast_shape, tables.num_dims)), {
        row for row, values in enumerate(rows) if values is None
    }


def damaged_rows(tables, codes, broadcast_shape=()):
    try:
        range_coder.decompress(tables, codes, broadcast_shape)
    except DamagedCodeError as error:
        return set(error.rows)
    return set()


@hypothesis.given(seeds, shapes)
def test_round_trip(rng, shape):
    tables = random_tables(rng)
    z_hat = random_z_hat(rng, tables, shape)
    codes = range_coder.compress(tables, z_hat)
    np.testing.assert_array_equal(range_coder.decompress(tables, codes, shape[1:]), z_hat, strict=True)


@hypothesis.given(seeds, shapes)
def test_codes_are_the_plain_coders(rng, shape):
    tables = random_tables(rng)
    z_hat = random_z_hat(rng, tables, shape)
    codes = [plain_coder.encode(tables, row.ravel()) for row in z_hat]
    assert range_coder.compress(tables, z_hat) == codes
    decoded, damaged = plain_decode(tables, codes, shape[1:])
    assert not damaged
    np.testing.assert_array_equal(decoded, z_hat)
    np.testing.assert_array_equal(range_coder.decompress(tables, codes, shape[1:]), z_hat, strict=True)


@pytest.mark.parametrize("precision", [1, 8, 12, 16])
def test_long_rows_are_the_plain_coders(precision):
    rng = np.random.default_rng(precision)
    tables = random_tables(rng, num_dims=500, precision=precision, max_values=1000)
    # Steps of probability 2^-16 and long carries: most values are rare ones.
    z_hat = rng.integers(-40, 1000, (2, 10, 500), np.int32)
    codes = [plain_coder.encode(tables, row.ravel()) for row in z_hat]
    assert range_coder.compress(tables, z_hat) == codes
    np.testing.assert_array_equal(range_coder.decompress(tables, codes, [10]), z_hat)


@hypothesis.given(seeds)
def test_bits_are_those_of_the_exact_interval(rng):
    """Against arithmetic coding in fractions."""
    tables = random_tables(rng, precision=int(rng.integers(4, 17)), max_values=8)
    z_hat = np.stack([rng.integers(0, np.diff(tables.cdf_start) - 2) + tables.cdf_offset for _ in range(6)])[None]
    size = fractions.Fraction(1)
    for position in z_hat[0]:
        for dim, value in enumerate(position):
            interval = tables.cdf_start[dim] + value - tables.cdf_offset[dim]
            size *= fractions.Fraction(int(tables.cdf[interval + 1] - tables.cdf[interval]), 1 << tables.precision)
    bits = bits_by_row(tables, z_hat)[0]
    assert bits == pytest.approx(math.log2(size.denominator) - math.log2(size.numerator), abs=1e-6)
    assert len(range_coder.compress(tables, z_hat)[0]) <= bits / 8 * 1.005 + 2


def test_bits_bound_the_length():
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(-3.5, 1.7, 500))
    z_hat = rng.poisson(np.minimum(rate, 2), (2000, 500)).astype(np.int32)
    tables = RangeCodingTables.fit(z_hat[:1000])
    length = np.array([len(code) for code in range_coder.compress(tables, z_hat[1000:])])
    shannon = bits_by_row(tables, z_hat[1000:]) / 8
    assert (length <= shannon * 1.005 + 2).all()
    # A string may lose its last zeros by luck, the strings of many videos may not.
    assert length.mean() >= shannon.mean() * 0.999


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.uint64, np.float32, np.float64, ">i4"])
def test_whole_numbers_of_any_type(dtype):
    z_hat = np.array([[0, 1, 7], [1, 0, 9]])
    assert range_coder.compress(TABLES, z_hat.astype(dtype)) == range_coder.compress(TABLES, z_hat.astype(np.int32))


def test_memory_layout_does_not_matter():
    rng = np.random.default_rng(0)
    z_hat = rng.integers(-3, 9, (50, 3)).astype(np.int32)
    codes = range_coder.compress(TABLES, z_hat)
    assert range_coder.compress(TABLES, np.asfortranarray(z_hat)) == codes
    assert range_coder.compress(TABLES, np.repeat(z_hat, 2, axis=0)[::2]) == codes


def test_a_code_does_not_depend_on_its_companions():
    rng = np.random.default_rng(0)
    z_hat = rng.integers(-3, 9, (51, 3)).astype(np.int32)
    codes = range_coder.compress(TABLES, z_hat)
    assert codes == [code for row in z_hat for code in range_coder.compress(TABLES, row[None])]
    order = rng.permutation(51)
    shuffled = [codes[row] for row in order]
    assert range_coder.compress(TABLES, z_hat[order]) == shuffled
    np.testing.assert_array_equal(range_coder.decompress(TABLES, shuffled), z_hat[order])


def test_the_strings_array_grows():
    z_hat = np.full((300, 3), 2**29, np.int32)
    codes = range_coder.compress(TABLES, z_hat)
    assert sum(map(len, codes)) > 300 * 20
    np.testing.assert_array_equal(range_coder.decompress(TABLES, codes), z_hat)


def test_decode_takes_a_slice_of_arrow_strings():
    z_hat = np.arange(30, dtype=np.int32).reshape(10, 3)
    data, offsets = range_coder.encode(TABLES, z_hat)
    assert (data.dtype, offsets.dtype) == (np.uint8, np.int64)
    assert offsets[0] == 0
    assert offsets[-1] == len(data)
    np.testing.assert_array_equal(range_coder.decode(TABLES, data, offsets[3:8]), z_hat[3:7])


@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 3)])
def test_empty_batch(shape):
    data, offsets = range_coder.encode(TABLES, np.empty(shape, np.int32))
    assert (len(data), offsets.tolist()) == (0, [0])
    assert range_coder.compress(TABLES, np.empty(shape, np.int32)) == []
    assert range_coder.decompress(TABLES, [], shape[1:-1]).shape == shape


def test_farthest_values():
    far = 2**MAX_ESCAPE_BITS
    # The tables' values: 0, 1; -1, 0, 1; 7. Each escape's distance is 2^30 - 1.
    z_hat = np.array([[1 + far - 1, 1 + far - 1, 7 + far - 1], [-far + 1, -far, 7 - far + 1]], np.int32)
    codes = range_coder.compress(TABLES, z_hat)
    np.testing.assert_array_equal(range_coder.decompress(TABLES, codes), z_hat)
    for row, dim in itertools.product(range(2), range(3)):
        too_far = z_hat.copy()
        too_far[row, dim] += 1 if row == 0 else -1
        with pytest.raises(ValueError, match=rf"row {row} in dimension {dim} is {too_far[row, dim]}, .* too far"):
            range_coder.encode(TABLES, too_far)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20, 2.0**31, 0.5])
def test_floats_that_cannot_be_coded(bad):
    z_hat = np.zeros((4, 2, 3))
    z_hat[2, 1, 1] = bad
    with pytest.raises(ValueError, match=r"row 2 in dimension 1 is .*, which cannot be coded: round z first"):
        range_coder.encode(TABLES, z_hat)


@pytest.mark.parametrize("bad", [-(2**31), 2**31 - 1])
def test_what_nan_and_infinity_are_cast_to_is_refused(bad):
    z_hat = np.zeros((4, 3), np.int32)
    z_hat[3, 2] = bad
    with pytest.raises(ValueError, match=rf"row 3 in dimension 2 is {bad}, which is too far from its table"):
        range_coder.encode(TABLES, z_hat)


@pytest.mark.parametrize(
    ("z_hat", "message"),
    [
        (np.zeros((2, 4), np.int32), r"shape \(2, 4\); these tables take \[n, \.\.\., 3\]"),
        (np.zeros(3, np.int32), r"shape \(3,\)"),
        (np.zeros((2, 3), bool), "must be integers, not bool"),
        (np.full((1, 3), 2**40), "row 0 in dimension 0 is 1099511627776, which cannot be coded"),
    ],
)
def test_refused_input(z_hat, message):
    with pytest.raises(ValueError, match=message):
        range_coder.encode(TABLES, z_hat)


@pytest.mark.parametrize(
    ("data", "offsets", "message"),
    [
        (np.zeros(4, np.int32), [0, 4], r"uint8\[total\], not int32"),
        (np.zeros(4, np.uint8), [], "no strings have offsets"),
        (np.zeros(4, np.uint8), [0, 5], r"stay in \[0, 4\]"),
        (np.zeros(4, np.uint8), [-1, 4], r"stay in \[0, 4\]"),
        (np.zeros(4, np.uint8), [0, 3, 2], "must not decrease"),
    ],
)
def test_refused_strings(data, offsets, message):
    with pytest.raises(ValueError, match=message):
        range_coder.decode(TABLES, data, np.array(offsets, np.int64))


@hypothesis.given(seeds, st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_any_bytes_decode_as_by_the_plain_coder_or_are_damaged(rng, codes):
    tables = random_tables(rng)
    decoded, damaged = plain_decode(tables, codes)
    assert damaged_rows(tables, codes) == damaged
    fine = [code for row, code in enumerate(codes) if row not in damaged]
    np.testing.assert_array_equal(range_coder.decompress(tables, fine), decoded)


@hypothesis.given(seeds)
def test_damage_that_the_plain_coder_sees_is_seen(rng):
    tables = random_tables(rng, num_dims=30, precision=int(rng.integers(8, 17)))
    code = range_coder.compress(tables, random_z_hat(rng, tables, (1,)))[0]
    variants = damaged_variants(rng, code)
    decoded, damaged = plain_decode(tables, variants)
    assert damaged_rows(tables, variants) == damaged
    fine = [code for row, code in enumerate(variants) if row not in damaged]
    np.testing.assert_array_equal(range_coder.decompress(tables, fine), decoded)
    assert len(variants) - 1 in damaged


def test_damage_names_the_rows():
    codes = range_coder.compress(TABLES, np.zeros((6, 3), np.int32))
    codes[1] += b"\0\0\0\0\0\0"
    codes[4] += b"\1\1\1\1\1\1"
    with pytest.raises(DamagedCodeError, match=r"2 of 6 codes are damaged .* rows 1, 4\.") as caught:
        range_coder.decompress(TABLES, codes)
    assert caught.value.rows == (1, 4)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.rows, str(copy)) == (caught.value.rows, str(caught.value))
    with pytest.raises(DamagedCodeError, match=r"30 of 30 .* rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\."):
        range_coder.decompress(TABLES, [b"\0" * 9] * 30)


def test_an_escape_without_end_is_damage():
    tables = RangeCodingTables([0, 1 << 15, 1 << 16], [0, 3], [0], 16)
    # The first bit chooses the escape; after it only zeros, a distance without end. tensorflow-compression would hang.
    assert damaged_rows(tables, [b"\x80"]) == {0}


def test_golden_codes():
    """A later version must read and write the very same bytes; anything else is a breaking release."""
    for case in json.loads(GOLDEN.read_text()):
        tables = RangeCodingTables(
            *(np.array(case[name]) for name in ("cdf", "cdf_start", "cdf_offset")), case["precision"]
        )
        z_hat = np.array(case["z_hat"], np.int32)
        codes = [bytes.fromhex(code) for code in case["codes"]]
        assert range_coder.compress(tables, z_hat) == codes, case["name"]
        np.testing.assert_array_equal(range_coder.decompress(tables, codes, z_hat.shape[1:-1]), z_hat)
        stored = RangeCodingTables.from_bytes(bytes.fromhex(case["tables"]))
        np.testing.assert_array_equal(stored.lookup, tables.lookup)


def test_memory_is_reused_only_when_nothing_refers_to_it():
    """Whatever is kept of an array keeps its values, in several threads."""
    rng = np.random.default_rng(0)
    z_hat = [rng.integers(-3, 4, (15_000, TABLES.num_dims)).astype(np.int32) for _ in range(6)]
    coded = [range_coder.encode(TABLES, values) for values in z_hat]
    keep = {
        "the array": lambda decoded: decoded,
        "a view of a view": lambda decoded: decoded.view(np.float32)[5:].T[1:].view(np.int32),
        "Arrow": lambda decoded: pa.array(decoded.reshape(-1)),
        "a buffer": memoryview,
        "nothing": lambda decoded: None,
    }

    def run(seed):
        rng = random.Random(seed)
        kept = []
        for _ in range(25):
            which, how = rng.randrange(len(z_hat)), rng.choice(list(keep))
            kept.append((how, which, keep[how](range_coder.decode(TABLES, *coded[which]))))
            if len(kept) > 5:
                kept.pop(rng.randrange(5))
            for how, which, part in kept:
                if part is not None:
                    np.testing.assert_array_equal(np.asarray(part), np.asarray(keep[how](z_hat[which])))
        return True

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert all(pool.map(run, range(3)))


def test_memory_is_reused_when_nothing_refers_to_it():
    coded = range_coder.encode(TABLES, np.zeros((15_000, TABLES.num_dims), np.int32))
    addresses = {range_coder.decode(TABLES, *coded).ctypes.data for _ in range(20)}
    assert len(addresses) == 1
    address = range_coder.decode(TABLES, *coded)[3:].ctypes.data
    held = [range_coder.decode(TABLES, *coded) for _ in range(3)]
    assert len({array.ctypes.data for array in held}) == 3
    assert all(array.ctypes.data % 64 == 0 for array in held)
    assert address - held[0][:3].nbytes in {array.ctypes.data for array in held}
