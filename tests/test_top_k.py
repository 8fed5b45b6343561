"""The largest values of each row alone: which these are, and that every machine takes the same."""

import dataclasses

import numpy as np
import pytest
from conftest import SPEC, inputs, random_model
from emulated_products import KINDS, TooFarOff, Undecided, with_kind

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.dense_layers import Dense
from vidpress.model.frozen.frozen_model import FrozenModel, ModelError
from vidpress.model.tables.range_coding_tables import RangeCodingTables

TOP_K = 5


def with_top_k(model, top_k=TOP_K, **changes):
    return dataclasses.replace(model, top_k=top_k, **changes)


class TooFarOffBothWays(TooFarOff):
    """Is off by twice of what it claims, up in every other column and down in the others."""

    def multiply(self, x):
        right, up = Dense.multiply(self, x), super().multiply(x)
        return np.where(np.arange(right.shape[1]) % 2, up, 2 * right - up)


def largest(z, top_k):
    """bool, by definition: each row's `top_k` largest, of equal ones the first."""
    order = np.argsort(-z, axis=1, kind="stable")[:, :top_k]
    kept = np.zeros(z.shape, bool)
    np.put_along_axis(kept, order, True, axis=1)
    return kept


def with_equal_columns(model):
    """The model with dimensions that are equal in pairs, so that values are equal exactly."""
    *lower, (kernel, bias) = model.hidden
    source = np.arange(kernel.shape[1]) // 2 * 2
    return dataclasses.replace(model, hidden=(*lower, (kernel[:, source], bias[source])))


@pytest.fixture(scope="module", params=["different", "equal in pairs"])
def model(request):
    model = random_model(SPEC)
    return model if request.param == "different" else with_equal_columns(model)


@pytest.mark.parametrize("top_k", [1, 4, 5, 40])
def test_the_largest_are_kept(model, top_k):
    x = inputs(300)
    z = Dense(*model.hidden[0]).exact(x)
    all_values = dataclasses.replace(model, rounding_lmbda=0).quantize(x)
    expected = np.where(largest(z, top_k), all_values, 0)
    found = with_top_k(model, top_k, rounding_lmbda=0).quantize(x)
    np.testing.assert_array_equal(found, expected)
    if top_k < 40:
        assert (found != all_values).any(axis=1).mean() > 0.5


def test_rounding_to_cheaper_values_leaves_the_others_at_0(model):
    x = inputs(300)
    aware = with_top_k(model, rounding_lmbda=0.2)
    z = Dense(*model.hidden[0]).exact(x)
    found, nearest = aware.quantize(x), with_top_k(model, rounding_lmbda=0).quantize(x)
    assert (found != nearest).any()
    assert not found[~largest(z, TOP_K)].any()


def test_rounding_to_cheaper_values_lifts_nothing_from_0():
    tables = RangeCodingTables.from_pmf([np.array([0.02, 0.95, 0.02])] * 3, np.zeros(3, np.int32))
    model = FrozenModel(
        FeatureSpec.parse("f:1"),
        ((np.array([[3, 0.45, 0.44]], np.float32), np.zeros(3, np.float32)),),
        tables,
        rounding_lmbda=0.1,
    )
    x = np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(model.quantize(x), [[3, 1, 1]])
    np.testing.assert_array_equal(with_top_k(model, 1).quantize(x), [[3, 0, 0]])


@pytest.mark.parametrize("kind", [Dense, *KINDS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("layers", "x", "largest"),
    [
        ([np.diag([3.4e38, 20])], [1e-37, 1], [34, 0]),
        ([np.diag([1e6, 1]), np.array([[0, 0, 0], [1, 2, 3]])], [1e35, 2], [0, 0, 6]),
    ],
    ids=["a weight", "a lower layer's activation"],
)
def test_numbers_beyond_float32_do_not_decide(layers, x, largest, kind):
    hidden = tuple((kernel.astype(np.float32), np.zeros(kernel.shape[1], np.float32)) for kernel in layers)
    num_dims = len(largest)
    tables = RangeCodingTables.from_pmf([np.array([0.9, 0.05, 0.04])] * num_dims, np.zeros(num_dims, np.int32))
    model = FrozenModel(FeatureSpec.parse("f:2"), hidden, tables, top_k=1)
    np.testing.assert_array_equal(with_kind(model, kind).quantize(np.array([x], np.float32)), [largest])


def test_what_is_nearly_equal_does_not_depend_on_the_processors_products(model):
    """Columns that differ by a float32 step or so: no product in float32 can tell which is larger."""
    rng = np.random.default_rng(3)
    *lower, (kernel, bias) = model.hidden
    kernel = kernel[:, :1] * (1 + rng.integers(-2, 3, kernel.shape) * 2.0**-23)
    near = with_top_k(model, hidden=(*lower, (kernel.astype(np.float32), np.full_like(bias, 3))))
    x = inputs(200)
    z = Dense(*near.hidden[0]).exact(x)
    on = dataclasses.replace(near, top_k=0).quantize(x) > 0
    assert (on.sum(axis=1) > TOP_K).sum() > 50
    z_hat = with_kind(near, Undecided).quantize(x)
    np.testing.assert_array_equal(z_hat > 0, on & largest(z, TOP_K))
    for kind in KINDS:
        np.testing.assert_array_equal(with_kind(near, kind).quantize(x), z_hat, err_msg=kind.__name__)
    assert (with_kind(near, TooFarOffBothWays).quantize(x) != z_hat).any()
    alone = np.concatenate([near.quantize(x[row : row + 1]) for row in range(len(x))])
    np.testing.assert_array_equal(alone, z_hat)


def test_codes_round_trip_and_are_shorter(model):
    x = inputs(200)
    few = with_top_k(model)
    codes, bank = few.compress(x)
    np.testing.assert_array_equal(few.decompress(codes, bank), few.quantize(x))
    assert sum(map(len, codes)) < sum(map(len, model.compress(x)[0]))


def test_it_is_part_of_the_file(model):
    few = with_top_k(model, np.int64(TOP_K), rounding_lmbda=np.float32(0.25))
    loaded = FrozenModel.from_bytes(few.to_bytes())
    assert loaded.top_k == TOP_K
    assert loaded.rounding_lmbda == 0.25
    assert loaded.model_id == few.model_id != model.model_id


@pytest.mark.parametrize("top_k", [-1, 41, 2.5, np.float32(0.5)])
def test_numbers_that_make_no_sense_are_refused(model, top_k):
    with pytest.raises(ModelError, match=f"top_k={top_k} must be from 0 to 40"):
        with_top_k(model, top_k)


def test_a_head_that_is_a_scale_for_each_class_is_kept_as_one(model):
    scale = np.arange(-20, 20).astype(np.float32)
    head = np.diag(scale), np.ones(40, np.float32)
    scaled = dataclasses.replace(model, head=head)
    assert len(scaled.to_bytes()) < len(model.to_bytes())
    loaded = FrozenModel.from_bytes(scaled.to_bytes())
    np.testing.assert_array_equal(loaded.head[0], head[0])
    z_hat = np.random.default_rng(0).integers(0, 5, (3, 40))
    np.testing.assert_array_equal(loaded.logits(z_hat), z_hat * scale + 1)
    head[0][3, 2] = 1
    other = FrozenModel.from_bytes(dataclasses.replace(model, head=head).to_bytes())
    np.testing.assert_array_equal(other.head[0], head[0])
