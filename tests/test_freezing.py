"""Freezing: the frozen model is the trained network, and its tables fit its symbols."""

import dataclasses
import math

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC  # noqa: E402

from vidpress.model.frozen.frozen_model import FrozenModel  # noqa: E402
from vidpress.model.networks import classifiers  # noqa: E402
from vidpress.model.networks.bottleneck import bottleneck_of  # noqa: E402
from vidpress.model.networks.many_rates import select_lmbda  # noqa: E402
from vidpress.model.records.synthetic import write_shards  # noqa: E402
from vidpress.model.tables.bits import bits_by_row  # noqa: E402
from vidpress.model.tables.range_coding_tables import RangeCodingTables  # noqa: E402
from vidpress.model.tables.symbol_counts import count_symbols  # noqa: E402
from vidpress.model.training import freezing, loop, progress  # noqa: E402
from vidpress.model.training.options import FreezingOptions, TrainingOptions  # noqa: E402
from vidpress.model.training.training_data import load_videos  # noqa: E402

OPTIONS = TrainingOptions(
    hidden=(40, 30), lmbda=0.003, steps=150, num_classes=6, batch_size=32, learning_rate=0.01, prior_banks=1
)
PLAIN = FreezingOptions(banks=1, rounding_lmbda=0.0)
OF_PRIOR = dataclasses.replace(PLAIN, tables="prior")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    files = write_shards(folder, 2, 1200, spec=SPEC, num_classes=OPTIONS.num_classes, frames=(2, 4))
    return [load_videos([str(file)], SPEC, OPTIONS.num_classes) for file in files]


@pytest.fixture(scope="module")
def network(videos, tmp_path_factory):
    return loop.train(OPTIONS, SPEC, videos[0], str(tmp_path_factory.mktemp("training")))


@pytest.fixture(scope="module")
def model(network, videos):
    return freezing.freeze(network, SPEC, videos[0], PLAIN, metadata={"lmbda": OPTIONS.lmbda})


def test_folding_is_exact_but_for_rounding(network, videos):
    hidden, head = freezing.fold_batch_norm(network)
    z = videos[1].x.astype(np.float64)
    for kernel, bias in hidden:
        z = np.maximum(z @ kernel + bias, 0)
    np.testing.assert_allclose(classifiers.activations_model(network)(videos[1].x), z, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(head[0], network.get_layer("logits").kernel)
    assert all(array.dtype == np.float32 for layer in (*hidden, head) for array in layer)


def test_the_frozen_model_agrees_with_keras(network, model, videos):
    z_hat = dataclasses.replace(model, rounds_every_layer=False).quantize(videos[1].x)
    expected = np.rint(classifiers.activations_model(network)(videos[1].x))
    assert (z_hat != expected).mean() <= 1e-5
    assert len(np.unique(z_hat)) > 2


def test_rounding_lower_layers_changes_little(network, model, videos):
    assert model.rounds_every_layer
    z_hat = model.quantize(videos[1].x)
    expected = dataclasses.replace(model, rounds_every_layer=False).quantize(videos[1].x)
    assert 0 < (z_hat != expected).mean() < 0.03
    assert np.abs(z_hat - expected).max() == 1
    gap = freezing.measure(model, videos[1])["gap"]
    assert gap == pytest.approx(progress.evaluate_network(network, videos[1]).gap, abs=5e-3)


def test_empirical_tables_cost_the_empirical_entropy(model, videos):
    z_hat = model.quantize(videos[0].x)
    assert bits_by_row(model.tables, z_hat).mean() < 1.01 * count_symbols(z_hat).bits()


def test_counts_are_those_of_all_videos_at_once(model, videos, monkeypatch):
    monkeypatch.setattr(freezing, "_CHUNK", 100)
    counts = freezing.count_z_hat(model, videos[0])
    expected = count_symbols(model.quantize(videos[0].x))
    for name in ("num_symbols", "dim", "value", "count"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(expected, name))


def test_prior_tables_hold_the_priors_probabilities(network, model, videos):
    frozen = freezing.freeze(network, SPEC, videos[0], OF_PRIOR)
    prior = bottleneck_of(network).prior
    tables = frozen.tables
    for dim in range(tables.num_dims):
        start, end = tables.cdf_start[dim : dim + 2]
        values = tables.cdf_offset[dim] + np.arange(end - start - 2)
        y = np.zeros((len(values), tables.num_dims), np.float32)
        y[:, dim] = values
        widths = np.diff(tables.cdf[start:end])[:-1] / 2**tables.precision
        np.testing.assert_allclose(widths, np.exp(prior.log_prob(y))[:, dim], atol=(end - start) / 2**tables.precision)
    x = videos[1].x[:50]
    np.testing.assert_array_equal(frozen.decompress(*frozen.compress(x)), frozen.quantize(x))
    # Fitted to the data, tables are no worse than the prior's that was trained on them.
    train_z_hat = model.quantize(videos[0].x)
    assert bits_by_row(model.tables, train_z_hat).mean() < bits_by_row(frozen.tables, train_z_hat).mean()


def test_measures_are_those_of_the_codes(model, videos):
    measures = freezing.measure(model, videos[1])
    codes, _ = model.compress(videos[1].x)
    assert measures["bytes_per_video"] == pytest.approx(np.mean([len(code) for code in codes]))
    assert measures["bits_per_video"] <= 8 * measures["bytes_per_video"]
    assert measures["num_videos"] == len(videos[1])
    assert measures["gap"] > 0.5


def test_rate_aware_rounding_saves_bits_and_tables_are_fitted_to_what_it_gives(network, videos):
    plain, aware = (
        freezing.freeze(network, SPEC, videos[0], FreezingOptions(banks=4, rounding_lmbda=cost)) for cost in (0.0, 0.05)
    )
    z_hat = aware.quantize(videos[0].x)
    once = dataclasses.replace(plain, rounding_lmbda=0.05)
    assert (plain.rounding_lmbda, aware.rounding_lmbda) == (0, 0.05)
    counts = count_symbols(once.quantize(videos[0].x))
    np.testing.assert_array_equal(aware.tables.cdf, RangeCodingTables.fit(counts).cdf)
    assert 0 < (z_hat != plain.quantize(videos[0].x)).mean() < 0.1
    before, after = (freezing.measure(model, videos[1]) for model in (plain, aware))
    assert after["bits_per_video"] < 0.97 * before["bits_per_video"]
    assert after["gap"] > before["gap"] - 0.02


def test_a_saved_model_is_the_same(model, tmp_path, videos):
    model.save(tmp_path / "model.safetensors")
    loaded = FrozenModel.load(tmp_path / "model.safetensors")
    assert loaded.metadata == {"lmbda": OPTIONS.lmbda}
    np.testing.assert_array_equal(loaded.quantize(videos[1].x), model.quantize(videos[1].x))


def test_the_baseline_has_no_prior_but_can_be_frozen(videos):
    baseline = classifiers.build_network(SPEC.input_size, (9,), OPTIONS.num_classes, lmbda=0)
    model = freezing.freeze(baseline, SPEC, videos[0], PLAIN)
    measures = freezing.measure_unrounded(model, videos[1])
    keras = progress.evaluate_network(baseline, videos[1])
    assert measures["gap"] == pytest.approx(keras.gap, abs=5e-5)
    assert 9 < measures["bytes_per_video"] < 9 * 4 + 12
    with pytest.raises(ValueError, match="has no prior"):
        freezing.freeze(baseline, SPEC, videos[0], OF_PRIOR)


def test_there_is_nothing_to_measure_without_a_head(model, videos):
    headless = dataclasses.replace(model, head=None)
    for measure in (freezing.measure, freezing.measure_unrounded):
        with pytest.raises(ValueError, match="without its task head"):
            measure(headless, videos[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": "best"}, "tables='best' must be 'empirical' or 'prior'"),
        ({"banks": 3}, "3 banks"),
        ({"rounding_lmbda": -0.1}, "rounding_lmbda=-0.1 must not be negative"),
        ({"rounding_lmbda": math.inf}, "rounding_lmbda=inf must not be negative"),
        ({"top_k": -1}, "top_k=-1 must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FreezingOptions(**options)


@pytest.fixture(scope="module")
def many_rates(videos, tmp_path_factory):
    """A network trained over a range of lmbda."""
    options = dataclasses.replace(OPTIONS, lmbda=0.01, lmbda_range=(0.003, 0.03))
    return loop.train(options, SPEC, videos[0], str(tmp_path_factory.mktemp("many_rates")))


def test_a_network_for_many_rates_is_frozen_at_the_selected_one(many_rates, videos):
    x, num_bytes, models = videos[1].x, [], {}
    for lmbda in (0.003, 0.004, 0.01, 0.03):
        select_lmbda(many_rates, lmbda)
        model = models[lmbda] = freezing.freeze(many_rates, SPEC, videos[0], PLAIN)
        z = classifiers.activations_model(many_rates)(x).numpy()
        unrounded = dataclasses.replace(model, rounds_every_layer=False)
        np.testing.assert_allclose(unrounded.bottleneck(x), z, rtol=1e-4, atol=1e-4)
        assert (unrounded.quantize(x) != np.rint(z)).mean() <= 1e-5
        np.testing.assert_allclose(model.logits(np.rint(z)), many_rates(x), rtol=1e-4, atol=1e-4)
        measures = freezing.measure(model, videos[1])
        assert measures["gap"] == pytest.approx(progress.evaluate_network(many_rates, videos[1]).gap, abs=5e-3)
        assert measures["gap"] > 0.5
        num_bytes.append(measures["bytes_per_video"])
    assert num_bytes == sorted(num_bytes, reverse=True)
    assert num_bytes[-1] < 0.9 * num_bytes[0]
    assert (models[0.003].quantize(x) != models[0.03].quantize(x)).any()
    with pytest.raises(ValueError, match="no tables for its prior"):
        freezing.freeze(many_rates, SPEC, videos[0], OF_PRIOR)


def test_the_lmbda_for_so_many_bytes_is_found():
    tried = []

    def bytes_at(lmbda):
        tried.append(lmbda)
        return 5 + 3 * lmbda**-0.6

    for num_bytes in (90, 150, 190):
        tried.clear()
        lmbda = freezing.find_lmbda(bytes_at, (0.001, 0.006), num_bytes)
        assert 0.99 * num_bytes <= 5 + 3 * lmbda**-0.6 <= num_bytes
        assert len(tried) <= 6
    assert freezing.find_lmbda(bytes_at, (0.001, 0.006), 5 + 3 * 0.006**-0.6) == 0.006
    for num_bytes in (60, 200):
        with pytest.raises(
            ValueError, match=rf"{num_bytes} bytes a video are not possible: .* gives 194.3 down to 69.6"
        ):
            freezing.find_lmbda(bytes_at, (0.001, 0.006), num_bytes)
