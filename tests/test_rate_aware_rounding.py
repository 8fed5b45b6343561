"""Rate-aware rounding: which integer is taken, and that every machine takes the same."""

import dataclasses

import numpy as np
import pytest
from conftest import SPEC, inputs, random_model
from emulated_products import KINDS, TooFarOff, Undecided, with_kind

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.dense_layers import Dense
from vidpress.model.frozen.frozen_model import FrozenModel, ModelError
from vidpress.model.tables.banks import choose_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.model.tables.widths import UNITS_PER_BIT

COST = 0.04


@pytest.fixture(scope="module")
def model():
    return dataclasses.replace(random_model(SPEC, hidden=(50, 40)), rounding_lmbda=COST)


def exact_z(model, x):
    z = x.astype(np.float64)
    for kernel, bias in model.hidden:
        z = np.maximum(z @ kernel.astype(np.float64) + bias, 0)
    return z


def bits_of(model, z_hat, bank):
    """The bits of each value in each row's bank, by its definition; infinite where it escapes."""
    arrays = model.tables.coder_arrays
    interval = z_hat - arrays.cdf_offset
    inside = (interval >= 0) & (interval < arrays.escape)
    first = arrays.start[bank] + np.where(inside, interval, 0)
    widths = arrays.cdf[first + 1].astype(np.int64) - arrays.cdf[first]
    return np.where(inside, model.tables.precision - np.log2(widths), np.inf)


def test_the_neighbour_is_taken_where_its_cost_is_less(model):
    x = inputs(500)
    z = exact_z(model, x)
    nearest = np.rint(z).astype(np.int32)
    bank = choose_banks(model.tables, nearest)
    likeliest = model.tables.likeliest_value
    neighbour = nearest + np.sign(likeliest - nearest)
    cost, other = (
        (z_hat - z) ** 2 + COST * np.minimum(bits_of(model, z_hat, bank), 1e9) for z_hat in (nearest, neighbour)
    )
    inside = np.isfinite(bits_of(model, nearest, bank))
    clear = np.abs(cost - other) > 2 * COST / 1024  # bits are counted in units of 1/1024
    expected = np.where(inside & (other < cost), neighbour, nearest)
    found = model.quantize(x)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert 0.005 < (found != nearest).mean() < 0.2
    assert (np.abs(found - likeliest) <= np.abs(nearest - likeliest)).all()
    assert len(set(bank.tolist())) > 1


def test_no_value_becomes_an_escape():
    """Even if the escape is the likeliest."""
    tables = RangeCodingTables(np.array([0, 1000, 2000, 65536]), np.array([0, 4]), np.array([0]), 16)
    layer = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    model = FrozenModel(FeatureSpec.parse("f:1"), (layer,), tables, rounding_lmbda=0.2)
    x = np.array([[0.2], [0.9], [1], [1.4]], np.float32)
    np.testing.assert_array_equal(model.quantize(x), np.rint(x))


def near_thresholds(model, num_videos):
    """Inputs scaled so that one of their z lies within a few float32 steps of where rounding turns."""
    x = inputs(num_videos).astype(np.float64)
    (kernel, bias) = (array.astype(np.float64) for array in model.hidden[0])
    nearest = dataclasses.replace(model, rounding_lmbda=0)
    for row in range(num_videos):
        z = np.maximum(x[row] @ kernel + bias, 0)
        column = np.argmax(z)
        low, high = np.floor(z[column]), np.floor(z[column]) + 1
        for _ in range(60):  # bisection, on the model itself
            middle = (low + high) / 2
            scaled = x[row] * (middle - bias[column]) / (z[column] - bias[column])
            up = model.quantize(scaled[None].astype(np.float32))[0, column] > np.floor(z[column])
            low, high = (low, middle) if up else (middle, high)
        x[row] *= (high - bias[column]) / (z[column] - bias[column])
    x = x.astype(np.float32)
    assert (model.quantize(x) != nearest.quantize(x)).any()
    return x


def test_what_lies_at_a_threshold_does_not_depend_on_its_companions():
    model = dataclasses.replace(random_model(SPEC), rounding_lmbda=COST)
    x = near_thresholds(model, 60)
    together = model.quantize(x)
    order = np.random.default_rng(2).permutation(len(x))
    np.testing.assert_array_equal(model.quantize(x[order]), together[order])
    alone = np.concatenate([model.quantize(x[row : row + 1]) for row in range(len(x))])
    np.testing.assert_array_equal(alone, together)


def test_what_lies_at_a_threshold_does_not_depend_on_the_processors_products():
    model = dataclasses.replace(random_model(SPEC), rounding_lmbda=COST)
    x = near_thresholds(model, 60)
    z_hat = with_kind(model, Undecided).quantize(x)
    for kind in KINDS:
        np.testing.assert_array_equal(with_kind(model, kind).quantize(x), z_hat, err_msg=kind.__name__)
    assert (with_kind(model, TooFarOff).quantize(x) != z_hat).any()


def test_what_lies_at_a_threshold_is_decided_by_the_exact_sum():
    model = dataclasses.replace(random_model(SPEC), rounding_lmbda=COST)
    x = near_thresholds(model, 60)
    z = Dense(*model.hidden[0]).exact(x)
    nearest = np.rint(z).astype(np.int32)
    bank = choose_banks(model.tables, nearest)
    neighbour = nearest + np.sign(model.tables.likeliest_value - nearest)
    units, other = (
        np.rint(np.minimum(bits_of(model, z_hat, bank), 1e9) * UNITS_PER_BIT) for z_hat in (nearest, neighbour)
    )
    threshold = 0.5 * (1.0 - COST / UNITS_PER_BIT * (units - other))
    beyond = (neighbour - nearest) * (z - nearest)
    cheaper = (other < units) & (units < 1e9) & (beyond > threshold)
    assert (np.abs(beyond - threshold)[other < units] < 1e-6).sum() >= 50
    np.testing.assert_array_equal(model.quantize(x), np.where(cheaper, neighbour, nearest))


def test_no_code_length_lies_near_a_half():
    """So that whatever the last bits of a machine's logarithm are, the lengths are the same integers."""
    units = np.log2(np.arange(1, 2**16 + 1)) * UNITS_PER_BIT
    distance = np.abs(np.abs(units - np.rint(units)) - 0.5)
    assert distance.min() > 1e-7  # a last bit is less than 4e-12


def test_codes_round_trip_and_are_shorter(model):
    x = inputs(200)
    codes, bank = model.compress(x)
    np.testing.assert_array_equal(model.decompress(codes, bank), model.quantize(x))
    nearest, _ = dataclasses.replace(model, rounding_lmbda=0).compress(x)
    assert sum(map(len, codes)) < 0.98 * sum(map(len, nearest))


def test_the_cost_is_part_of_the_file(model):
    loaded = FrozenModel.from_bytes(model.to_bytes())
    assert loaded.rounding_lmbda == COST
    assert loaded.model_id == model.model_id != dataclasses.replace(model, rounding_lmbda=0).model_id


@pytest.mark.parametrize("cost", [-0.1, float("nan"), float("inf")])
def test_unusable_costs_are_refused(model, cost):
    with pytest.raises(ModelError, match="must not be negative"):
        dataclasses.replace(model, rounding_lmbda=cost)
