"""The README's commands and examples do what it says."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.synthetic import make_videos
from vidpress.model.records.tfrecord import write_tfrecords

README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where the README's commands were run, with fewer steps and a smaller network."""
    pytest.importorskip("tensorflow")
    path = tmp_path_factory.mktemp("readme")
    (path / "yt8m").mkdir()
    for index, name in enumerate(("train0", "train1", "validate0")):
        with (path / "yt8m" / f"{name}.tfrecord").open("wb") as file:
            write_tfrecords(file, make_videos(150, num_classes=20, frames=(3, 5), start=150 * index))
    commands = "".join(block for block in blocks("sh") if "pip install" not in block)
    assert commands.count("vidpress ") == 14
    commands = re.sub(r"--steps [1-9]\d*", "--steps 8", commands)
    commands = commands.replace("--hidden 2000", "--hidden 64").replace("--hidden 6000,2000", "--hidden 96,64")
    commands = commands.replace("--linear_bottleneck 600", "--linear_bottleneck 32")
    commands = commands.replace("--output evaluation", "--output evaluation --rivals none")  # they take minutes
    commands = commands.replace("--lmbda 0.001 0.002", "--lmbda 0.002")
    commands = commands.replace("--bytes 60", "--lmbda 0.004")  # so few steps do not reach 60 bytes
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-euc", commands], cwd=path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (path / "stdout").write_text(result.stdout)
    return path


def test_commands(folder):
    printed = (folder / "stdout").read_text()
    assert "Encoded 450 videos" in printed
    assert "compact is whole: 450 videos" in printed
    assert "compact was encoded from all 3 files of --input already." in printed
    assert (folder / "model.safetensors").exists()
    assert FrozenModel.load(folder / "sixty.safetensors").metadata["lmbda"] == 0.004
    assert FrozenModel.load(folder / "scores.safetensors").num_dims == 3862
    assert FrozenModel.load(folder / "components.safetensors").num_dims == 32
    assert list((folder / "features").glob("features-*.tfrecord"))
    assert list((folder / "videos").glob("videos-*.tfrecord"))
    assert (folder / "evaluation" / "index.html").exists()
    assert len(list((folder / "compact").glob("shard-*.parquet"))) == 4
    files = {path.name: path.read_bytes() for path in (folder / "compact").glob("shard-*")}
    # Another number of shards is asked for the second time: the same videos, in one file.
    assert files
    assert len(list((folder / "compact2").glob("shard-*.parquet"))) == 1


def test_gap_of_decoded_shards_is_that_before_encoding(folder):
    """The model's own metrics were measured on the validation videos as the network saw them."""
    from vidpress.model.metrics import MetricsAccumulator
    from vidpress.model.reading.video_dataset import VideoDataset

    model = FrozenModel.load(folder / "model.safetensors")
    accumulator = MetricsAccumulator(3862)
    for batch in VideoDataset(folder / "compact", num_classes=3862):
        rows = [row for row, key in enumerate(batch.ids) if int(key.decode().split("-")[-1]) >= 300]
        accumulator.update(model.logits(batch.features[rows]), np.asarray(batch.labels)[rows])
    result = accumulator.result()
    assert result.num_videos == 150
    for name in ("gap", "hit_at_1", "perr", "mean_ap"):
        assert getattr(result, name) == pytest.approx(model.metadata["metrics"][name], abs=1e-9)


def test_python_examples(folder, monkeypatch):
    reading, model, layer = blocks("python")
    monkeypatch.chdir(folder)
    if not importable("torch"):
        reading = re.sub(r"^dataset\.to_torch.*\n", "", reading, flags=re.MULTILINE)
    exec(reading, {})
    names = {"x": np.random.default_rng(0).normal(size=(3, 1152)).astype(np.float32)}
    exec(model, names)
    np.testing.assert_array_equal(names["z_hat"], names["model"].quantize(names["x"]))
    assert names["scores"].shape == (3, 3862)
    names = {"y": np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)}
    exec(layer, names)
    assert names["y"].shape == (3, 20)


def importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_links_lead_somewhere():
    for path in (
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *map(str, (REPO / "docs").glob("*.md")),
    ):
        text = (REPO / path).read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in link:
                assert ((REPO / path).parent / link).exists(), f"{path}: {link}"


def test_the_first_lines_are_the_two_commands():
    lines = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    make")]
    assert lines == ["make demo", "make test"]
