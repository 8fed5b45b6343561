"""The rivals' registry: what the committed results name, and what follows from a new entry."""

import dataclasses

import numpy as np
import pytest
from conftest import REPO
from test_evaluation_results import TWO, codec, results

from vidpress.pipeline.evaluation import codecs, rivals
from vidpress.pipeline.evaluation.report import results as evaluation_results

pytest.importorskip("matplotlib", reason="needs the extra vidpress[report]")

from vidpress.pipeline.evaluation.report import figures
from vidpress.pipeline.evaluation.report import page as evaluation_page

RESULTS = sorted(path.parent for path in (REPO / "docs" / "results").glob("*/results.json"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_committed_results_are_read(folder):
    found = evaluation_results.load(folder)
    methods = {(record["method"], record["source"]) for record in found.records if record["source"]}
    assert methods
    for method, source in methods:
        assert source in rivals.RIVALS[method].sources
    rows = [row for row in evaluation_page.table(found, found.architectures[0]) if row.kind in ("paper", "rival")]
    assert {(row.point.method, row.point.source) for row in rows} == methods


def test_names_and_labels_tell_rivals_apart():
    for name in ("title", "label"):
        assert len({getattr(rival, name) for rival in rivals.RIVALS.values()}) == len(rivals.RIVALS)


@pytest.mark.parametrize(
    ("name", "num_dims", "small", "sizes"),
    [
        ("float16", 5, False, [None]),
        ("quantized", 5, False, [65536, 256, 16, 4]),
        ("pca", 5, False, [1, 2, 4]),
        ("pq", 64, False, [8, 16, 32, 64]),
        ("pq", 5, False, []),
        ("pq", 5, True, [1, 2, 4]),
        ("pca+pq", 2000, True, [1, 2, 4, 8, 16, 32, 64, 128, 256]),
    ],
)
def test_settings_fit_the_dimensions(name, num_dims, small, sizes):
    assert rivals.RIVALS[name].settings(num_dims, small=small) == sizes


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [("pca", 1, "1 component"), ("quantized", 65536, "65,536 bins"), ("pq", 64, "64 bytes"), ("int8", None, "")],
)
def test_settings_are_read_by_people(name, size, text):
    assert rivals.RIVALS[name].setting_text(size) == text


@pytest.mark.parametrize("rival", rivals.RIVALS.values(), ids=lambda rival: rival.name)
def test_every_rival_is_fitted_and_gives_back_vectors(rival):
    if rival.name in ("pq", "pca+pq"):
        pytest.importorskip("faiss")
    z = np.random.default_rng(0).gamma(1, 1, (300, 16)).astype(np.float32)
    sample = rivals.Sample(z)
    for size in rival.settings(16, small=True):
        stored = rival.fit(sample, size or 0)
        codes = stored.encode(z)
        assert stored.num_bytes(codes) > 0
        assert stored.decode(codes).shape == z.shape
        if rival.unit == "byte" and size:
            assert stored.num_bytes(codes) == size * len(z)


def test_a_new_entry_is_all_that_the_report_needs(monkeypatch):
    new = dataclasses.replace(
        rivals.RIVALS["pca"],
        name="new",
        title="A new rival",
        label="new",
        text="like PCA, but new.",
        fit=lambda sample, size: codecs.Float32(),
        unit="thing",
        sources=(rivals.ACTIVATIONS, rivals.FEATURES),
        paper=False,
    )
    monkeypatch.setitem(rivals.RIVALS, "new", new)
    found = results()
    found.records.append(codec("new", 3, 50, 0.68))
    found.records.append(codec("new", 3, 60, 0.67, head="logistic", source="features"))
    rows = {row.name: row for row in evaluation_page.table(found, TWO)}
    assert rows["A new rival"].point.setting == rows["Input: A new rival"].point.setting == "3 things"
    labels = {text.get_text() for text in figures.rate_accuracy(found).axes[0].texts}
    assert {"new", "new of the input"} <= labels
    assert "<b>A new rival</b>: like PCA, but new." in evaluation_page.render(found, {})
