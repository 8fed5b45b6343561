"""The rivals' registry: what the committed results name, and what follows from a new entry."""

import dataclasses

import numpy as np
import pytest
from conftest import REPO
from test_evaluation_results import TWO, codec, names_in, results

from vidpress.pipeline.evaluation.report import results as evaluation_results
from vidpress.pipeline.evaluation.rivals import codecs, registry

pytest.importorskip("matplotlib", reason="needs the extra vidpress[report]")

from vidpress.pipeline.evaluation.report import figures
from vidpress.pipeline.evaluation.report import page as evaluation_page

RESULTS = sorted(path.parent for path in (REPO / "docs" / "results").glob("*/results.json"))


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_committed_results_are_read(folder):
    found = evaluation_results.load(folder)
    methods = {(record["method"], record["source"]) for record in found.records if record["source"]}
    assert bool(methods) == ("--rivals none" not in found.about["command"])
    for method, source in methods:
        assert source in registry.RIVALS[method].sources
    rows = [row for row in evaluation_page.table(found, found.architectures[0]) if row.kind in ("paper", "rival")]
    assert {(row.point.method, row.point.source) for row in rows} == methods


def test_names_and_labels_tell_rivals_apart():
    for name in ("title", "label"):
        assert len({getattr(rival, name) for rival in registry.RIVALS.values()}) == len(registry.RIVALS)


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
    assert registry.RIVALS[name].settings(num_dims, small=small) == sizes


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [("pca", 1, "1 component"), ("quantized", 65536, "65,536 bins"), ("pq", 64, "64 bytes"), ("int8", None, "")],
)
def test_settings_are_read_by_people(name, size, text):
    assert registry.RIVALS[name].setting_text(size) == text


def test_groups_of_rivals_have_names():
    def names(*chosen):
        return [rival.name for rival in registry.fitted_to(registry.ACTIVATIONS, chosen)]

    assert names("paper") == ["float16", "quantized", "pca"]
    assert names("paper", "int8") == ["float16", "quantized", "pca", "int8"]
    assert names("all") == [rival.name for rival in registry.fitted_to(registry.ACTIVATIONS)]
    assert names("none") == []
    assert not registry.GROUPS.keys() & registry.RIVALS.keys()


def test_sizes_in_bytes_can_be_chosen():
    assert registry.RIVALS["opq"].settings(100, num_bytes=[64, 4, 128]) == [4, 64]
    assert registry.RIVALS["pca"].settings(100, num_bytes=[64]) == registry.RIVALS["pca"].settings(100)
    assert registry.RIVALS["int8"].settings(100, num_bytes=[64]) == [None]
    with pytest.raises(ValueError, match="lsq has no code of 6 bytes: use multiples of 4"):
        registry.RIVALS["lsq"].settings(100, num_bytes=[64, 6])


@pytest.mark.parametrize("rival", registry.RIVALS.values(), ids=lambda rival: rival.name)
def test_every_rival_is_fitted_and_gives_back_vectors(rival):
    if rival.name in ("pq", "pca+pq", "opq", "rq", "lsq"):
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    z = rng.gamma(1, 1, (300, 36)).astype(np.float32)
    sample = registry.Sample(z, (rng.normal(size=(36, 36)).astype(np.float32), np.zeros(36, np.float32)))
    for size in rival.settings(36, small=True):
        stored = rival.fit(sample, size or 0)
        codes = stored.encode(z)
        assert stored.num_bytes(codes) > 0
        assert stored.decode(codes).shape == z.shape
        if rival.unit == "byte" and size:
            assert stored.num_bytes(codes) == size * len(z)


def test_a_new_entry_is_all_that_the_report_needs(monkeypatch):
    new = dataclasses.replace(
        registry.RIVALS["pca"],
        name="new",
        title="A new rival",
        label="new",
        text="like PCA, but new.",
        fit=lambda sample, size: codecs.Float32(),
        unit="thing",
        sources=(registry.ACTIVATIONS, registry.FEATURES),
        paper=False,
    )
    monkeypatch.setitem(registry.RIVALS, "new", new)
    found = results()
    found.records.append(codec("new", 3, 50, 0.68))
    found.records.append(codec("new", 3, 60, 0.67, head="logistic", source="features"))
    rows = {row.name: row for row in evaluation_page.table(found, TWO)}
    assert rows["A new rival"].point.setting == rows["Input: A new rival"].point.setting == "3 things"
    assert {"new", "new of the input"} <= set(names_in(figures.rate_accuracy(found))[0])
    assert "<b>A new rival</b>: like PCA, but new." in evaluation_page.render(found, {})
