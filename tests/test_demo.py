"""The demo: what its last table says is what lies in its folder, and what is said of it follows from the numbers."""

import contextlib
import dataclasses
import io
import re
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.metrics import MetricsAccumulator
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.pipeline import demo
from vidpress.pipeline.demonstration import comparison as demo_comparison
from vidpress.pipeline.demonstration.comparison import Comparison, Row

NAMES = [
    "input features x, float32 + zlib",
    "activations without a rate, float32 + zlib",
    "  the same, int8 in Parquet",
    "  the same, rounded to integers, codes alone",
    "vidpress, codes alone",
    "vidpress, the Parquet file and its tables",
]


def comparison(**changes) -> Comparison:
    """One in which vidpress takes a twentieth of the activations' bytes and half of rounding's, at the same GAP."""
    sizes, gaps = (4000, 1000, 400, 100, 50, 60), (0.6, 0.7, 0.7, 0.7, 0.7, 0.7)
    rows = [Row(*values) for values in zip(NAMES, sizes, gaps, strict=True)]
    return dataclasses.replace(Comparison(*rows, num_videos=1000, table_bytes=4000), **changes)


def codes(num_bytes: float, gap: float) -> dict[str, Row]:
    return {"codes": Row(NAMES[4], num_bytes, gap), "file": Row(NAMES[5], num_bytes + 10, gap)}


class TestFindings:
    def test_kept(self):
        activations, rounding, file = demo_comparison.findings(comparison())
        assert "5.0% of the activations' bytes" in activations
        assert "the same (0.7000 and 0.7000" in activations
        assert "50% less" in rounding
        assert "the same (0.7000 and 0.7000" in rounding
        assert "4.0 of their 60.0 bytes a video are tables, 4,000 bytes that 1,000 videos share" in file

    def test_lost(self):
        activations, rounding, _ = demo_comparison.findings(comparison(**codes(125, 0.68)))
        assert "12.5% of the activations' bytes" in activations
        assert "LOWER by 0.0200" in activations
        assert "25% more" in rounding
        assert "LOWER by 0.0200" in rounding

    def test_won(self):
        activations, rounding, _ = demo_comparison.findings(comparison(**codes(20, 0.72)))
        assert "2.0% of the activations' bytes" in activations
        assert "higher by 0.0200" in activations
        assert "80% less" in rounding
        assert "higher by 0.0200" in rounding

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_only_what_is_more_than_seeds_differ_by_is_a_difference(self, sign):
        small, large = 0.9 * demo_comparison.SAME_GAP, 1.1 * demo_comparison.SAME_GAP
        assert "the same" in demo_comparison.findings(comparison(**codes(50, 0.7 + sign * small)))[0]
        assert "the same" not in demo_comparison.findings(comparison(**codes(50, 0.7 + sign * large)))[0]


class TestFindData:
    def test_real(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VIDPRESS_DATA", str(tmp_path))
        folder = tmp_path / "yt8m_v2_video"
        folder.mkdir()
        for name in ("validate0000", "validate0099", "validate0100"):
            (folder / f"{name}.tfrecord").touch()
        data = demo.find_data(tmp_path / "output")
        assert data.num_classes == 3862
        assert data.train == f"{folder}/validate00[0-9][0-9].tfrecord"
        assert data.validation == f"{folder}/validate01[0-9][0-9].tfrecord"
        assert not (tmp_path / "output").exists()

    def test_beside_the_checkout(self, tmp_path, monkeypatch):
        monkeypatch.delenv("VIDPRESS_DATA", raising=False)
        folder = tmp_path / "shared" / "data" / "yt8m_v2_video"
        folder.mkdir(parents=True)
        (tmp_path / "checkout").mkdir()
        for name in ("validate0000", "validate0100"):
            (folder / f"{name}.tfrecord").touch()
        monkeypatch.chdir(tmp_path / "checkout")
        assert demo.find_data(tmp_path / "output").num_classes == 3862

    @pytest.mark.parametrize("files", [[], ["validate0000"], ["validate0100"]])
    def test_without_files_to_train_on_and_to_measure_on_videos_are_made_up(self, files, tmp_path, monkeypatch):
        few_videos(monkeypatch)
        monkeypatch.setenv("VIDPRESS_DATA", str(tmp_path))
        (tmp_path / "yt8m_v2_video").mkdir()
        for name in files:
            (tmp_path / "yt8m_v2_video" / f"{name}.tfrecord").touch()
        data = demo.find_data(tmp_path / "output")
        assert "SYNTHETIC" in data.description
        assert str(tmp_path / "output") in data.train


def few_videos(monkeypatch):
    monkeypatch.setattr(demo, "_NUM_SHARDS", 3)
    monkeypatch.setattr(demo, "_VIDEOS_PER_SHARD", 60)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a demo of few videos and few steps, and what it printed."""
    pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
    output = tmp_path_factory.mktemp("demo") / "it's a demo"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        few_videos(monkeypatch)
        monkeypatch.setenv("VIDPRESS_DATA", str(output / "none"))
        for _ in range(2):  # the second one replaces what the first one left
            demo.main(["--output", str(output), "--steps", "3"])
    return output, printed.getvalue()


class TestRun:
    @staticmethod
    def rows(printed: str) -> dict[str, tuple[str, str]]:
        """The last table's bytes and GAP by name."""
        last = printed[printed.rindex("what is stored for each video") :]
        found = re.findall(r"^  (.*\S) +([\d,]+\.\d) +(\d\.\d{4})$", last, re.MULTILINE)
        return {name: (num_bytes.replace(",", ""), gap) for name, num_bytes, gap in found}

    def test_rows(self, ran):
        assert list(self.rows(ran[1])) == NAMES

    def test_bytes_are_those_of_the_files(self, ran):
        output, printed = ran
        found = {name: num_bytes for name, (num_bytes, _) in self.rows(printed).items()}
        folder = output / "compact-vidpress-validation"
        files = [*folder.glob("shard-*.parquet"), *folder.glob("tables-*.bin")]
        assert len(files) == 2
        assert found[NAMES[5]] == f"{sum(file.stat().st_size for file in files) / 60:.1f}"
        for name, data_set in ((NAMES[3], "without-rate"), (NAMES[4], "vidpress")):
            tables = [pq.read_table(path) for path in (output / f"compact-{data_set}-validation").glob("*.parquet")]
            codes = [code for table in tables for code in table["code"].to_pylist()]
            assert len(codes) == 60
            # A byte or so says the bank of 16.
            assert found[name] == f"{sum(map(len, codes)) / 60 + 0.5:.1f}"

    def test_bytes_of_what_is_not_in_files(self, ran):
        from vidpress.model.training import training_data

        output, printed = ran
        found = {name: num_bytes for name, (num_bytes, _) in self.rows(printed).items()}
        files = training_data.match_files([str(output / "synthetic" / "synthetic-*.tfrecord")])
        x = np.asarray(training_data.load_videos(files, FeatureSpec(), 100).x)
        z = FrozenModel.load(output / "model-without-rate.safetensors").bottleneck(x)
        assert found[NAMES[0]] == f"{sum(len(zlib.compress(row.tobytes(), 9)) for row in x) / 60:.1f}"
        assert found[NAMES[1]] == f"{sum(len(zlib.compress(row.tobytes(), 9)) for row in z) / 60:.1f}"
        assert float(found[NAMES[2]]) < z.shape[1] + 10

    def test_gap_is_that_of_the_classifier_on_what_a_reader_gets(self, ran):
        output, printed = ran
        found = {name: value for name, (_, value) in self.rows(printed).items()}
        for name, data_set in ((NAMES[3], "without-rate"), (NAMES[4], "vidpress"), (NAMES[5], "vidpress")):
            scores, labels = [], []
            model = FrozenModel.load(output / f"model-{data_set}.safetensors")
            for batch in VideoDataset(output / f"compact-{data_set}-validation", num_classes=100):
                keep = batch.labels.any(axis=1)
                scores.append(model.logits(batch.features)[keep])
                labels.append(batch.labels[keep].astype(bool))
            metrics = MetricsAccumulator(100)
            metrics.update(np.concatenate(scores), np.concatenate(labels))
            assert found[name] == f"{metrics.result().gap:.4f}"

    def test_it_ends_with_what_was_seen(self, ran):
        output, printed = ran
        found = {name: (float(num_bytes), float(gap)) for name, (num_bytes, gap) in self.rows(printed).items()}
        said = [line for line in printed.splitlines() if line.startswith("- ")][-3:]
        share = found[NAMES[4]][0] / found[NAMES[1]][0]
        assert float(re.search(r"([\d.]+)% of the activations", said[0]).group(1)) == pytest.approx(
            100 * share, abs=0.1
        )
        assert ("less" if found[NAMES[4]][0] < found[NAMES[3]][0] else "more") in said[1]
        tables = int(re.search(r"tables, ([\d,]+) bytes", said[2]).group(1).replace(",", ""))
        (file,) = (output / "compact-vidpress-validation").glob("tables-*.bin")
        assert tables == file.stat().st_size

    def test_it_leaves_models_data_sets_and_features(self, ran):
        output, printed = ran
        assert {path.name for path in output.glob("*.safetensors")} == {
            "model-without-rate.safetensors",
            "model-vidpress.safetensors",
        }
        for name in ("vidpress", "without-rate"):
            assert Manifest.load(output / f"compact-{name}-validation").counts.videos == 60
        assert list((output / "features-validation").glob("features-*.tfrecord"))
        assert "is whole: 60 videos" in (output / "log.txt").read_text()
        assert f"vidpress verify '{output}" in printed.replace("""'"'"'""", "'")


@pytest.mark.parametrize(
    ("output", "message"), [("gs://b/x", "must be a local folder"), ("s3://b/x", "is not supported"), ("link", "link")]
)
def test_an_output_that_is_no_local_folder_is_refused(tmp_path, monkeypatch, capsys, output, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SystemExit) as stop:
        demo.main(["--output", output])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--output", str(tmp_path)])
    assert "exists and was not written by a demo: name another folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_steps_are_a_positive_number(steps, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--output", str(tmp_path / "new"), "--steps", steps])
    assert "--steps" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
