"""`benchmarks/training_ideas.py` trains networks by its ideas, and measures them."""

import json
import math

import numpy as np
import pytest
from conftest import REPO, SPEC, video_level, write_records

keras = pytest.importorskip("keras", reason="needs the extra vidpress[train]")


@pytest.fixture
def training_ideas(monkeypatch):
    monkeypatch.syspath_prepend(REPO / "benchmarks")
    import training_ideas

    return training_ideas


@pytest.fixture
def run(training_ideas, tmp_path, capsys):
    """Returns a function that runs the script on few videos, and returns its table and its records."""
    videos = write_records(tmp_path / "videos.tfrecord", [video_level(index) for index in range(40)])
    output = tmp_path / "ideas.jsonl"

    def run(idea, *arguments):
        data = ["--input", videos, "--validation", videos, "--output", str(output), "--features", str(SPEC)]
        small = ["--classes", "7", "--hidden", "12", "--steps", "3", "--batch_size", "8", "--banks", "2"]
        training_ideas.main([idea, *data, *small, *map(str, arguments)])
        return capsys.readouterr().out, [json.loads(line) for line in output.read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("idea", "stages"),
    [("without-a-rate", [""]), ("high-rate-teaches", [""]), ("soft-then-hard", ["soft", "then hard"])],
)
def test_every_stage_and_rate_is_measured(run, idea, stages):
    _, records = run(idea, "--name", "a name", "--lmbda", 0.001, 0.006, "--seeds", 3)
    lmbdas = [0.0] if idea == "without-a-rate" else [0.001, 0.006]
    assert [(each["name"], each["seed"]) for each in records] == [("a name", 3)] * len(records)
    assert [(each["stage"], each["lmbda"]) for each in records] == [(stage, at) for stage in stages for at in lmbdas]
    assert all(0 < each["gap"] <= 1 and each["bytes_per_video"] > 0 for each in records)


def test_seeds_that_are_there_are_not_trained_again(run):
    _, first = run("without-a-rate", "--name", "narrow", "--seeds", 0)
    table, records = run("without-a-rate", "--name", "narrow", "--seeds", 0, 1)
    assert records[0] == first[0]
    assert [each["seed"] for each in records] == [0, 1]
    gaps = [each["gap"] for each in records]
    low, mean, high = min(gaps), sum(gaps) / 2, max(gaps)
    assert "| narrow, lmbda 0 | 2 |" in table
    assert f"| {mean:.4f} ({low:.4f} to {high:.4f}) |" in table


def test_half_of_a_batch_has_the_lowest_lmbda(training_ideas):
    layer = training_ideas.LowestFirst(0.001, 0.008)
    drawn = keras.ops.convert_to_numpy(layer(np.zeros((8, 3), np.float32), training=True))[:, 0]
    assert (drawn[:4] == 0).all()
    assert (np.floor(drawn[4:] * 4) == np.arange(4)).all()
    layer.select(0.004)
    selected = keras.ops.convert_to_numpy(layer(np.zeros((8, 3), np.float32)))
    np.testing.assert_allclose(selected, math.log(4) / math.log(8), rtol=1e-6)


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
def test_soft_rounding_keeps_integers_and_has_an_inverse(training_ideas, sharpness):
    z = np.linspace(-2, 3, 41, dtype=np.float32)
    softly = np.asarray(training_ideas._soft_round(z, sharpness))
    np.testing.assert_allclose(softly[::8], z[::8], atol=1e-5)
    assert (np.abs(softly - np.rint(z)) <= np.abs(z - np.rint(z)) + 1e-5).all()
    inside = np.abs(z - np.rint(z)) > 0.1
    np.testing.assert_allclose(training_ideas._soft_inverse(softly, sharpness)[inside], z[inside], atol=1e-2)
