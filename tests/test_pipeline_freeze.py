"""The freezing job: another rate, a number of bytes, or other tables of one training."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC, video_level, write_records

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.synthetic import write_shards
from vidpress.model.training import freezing, training_data
from vidpress.pipeline import freeze, train
from vidpress.pipeline.launching import cli

NETWORK = [
    *("--features", str(SPEC), "--classes", "6", "--hidden", "60", "--lmbda", "0.001", "--steps", "150"),
    *("--batch_size", "32", "--learning_rate", "0.01"),
]
TABLES = ["--banks", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Globs of training and validation data."""
    folder = tmp_path_factory.mktemp("videos")
    files = write_shards(folder, 3, 600, spec=SPEC, num_classes=6, frames=(2, 4))
    files[2].rename(folder / "validation.tfrecord")
    return f"{folder}/synthetic*", f"{folder}/validation*"


@pytest.fixture(scope="module")
def many_rates(data, tmp_path_factory):
    """A model at one rate of a training for many; the training's folder is beside it."""
    output = tmp_path_factory.mktemp("many") / "model.safetensors"
    argv = ["--input", data[0], "--output", str(output), "--lmbda_range", "0.0005", "0.01"]
    train.main([*argv, *NETWORK, *TABLES])
    return output


@pytest.fixture(scope="module")
def one_rate(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("one") / "model.safetensors"
    train.main(["--input", data[0], "--output", str(output), *NETWORK, *TABLES])
    return output


def options(model, data, output):
    return ["--training", str(model.with_suffix(".training")), "--input", data[0], "--output", str(output)]


def test_the_same_rate_and_tables_give_the_same_model(many_rates, one_rate, data, tmp_path):
    for index, (model, rate) in enumerate(((many_rates, ["--lmbda", "0.001"]), (one_rate, []))):
        output = tmp_path / f"{index}.safetensors"
        cli.main(["freeze", *options(model, data, output), *rate, *TABLES])
        expected, found = FrozenModel.load(model), FrozenModel.load(output)
        watching = {"checkpoint_every": None, "validate_every": None}
        for each in (expected, found):
            each.metadata["training"] |= watching
        assert found.to_bytes() == expected.to_bytes()


def test_another_rate_gives_other_bytes(many_rates, data, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    freeze.main([*options(many_rates, data, output), "--validation", data[1], "--lmbda", "0.01", *TABLES, "--no_head"])
    found = FrozenModel.load(output)
    assert found.head is None
    assert found.metadata["lmbda"] == found.metadata["training"]["lmbda"] == 0.01
    assert found.metadata["training"]["lmbda_range"] == [0.0005, 0.01]
    assert (found.metadata["steps"], found.metadata["banks"]) == (150, 4)
    validation = training_data.load_videos(training_data.match_files([data[1]]), SPEC, 6)
    dearer = freezing.measure(FrozenModel.load(many_rates), validation)["bytes_per_video"]
    assert found.metadata["metrics"]["bytes_per_video"] < 0.9 * dearer
    printed = capsys.readouterr().out
    assert "Frozen at lmbda 0.01 and step 150, with tables of 1,200 videos." in printed
    assert f"Model {found.model_id} in {output}" in printed
    assert "GAP" in printed


def test_so_many_bytes_are_had(many_rates, data, tmp_path, capsys):
    validation = training_data.load_videos(training_data.match_files([data[1]]), SPEC, 6)
    ends = []
    for lmbda in ("0.0005", "0.01"):
        output = tmp_path / f"{lmbda}.safetensors"
        freeze.main([*options(many_rates, data, output), "--lmbda", lmbda, *TABLES])
        ends.append(freezing.measure(FrozenModel.load(output), validation)["bytes_per_video"])
    wanted = sum(ends) / 2
    output = tmp_path / "wanted.safetensors"
    freeze.main([*options(many_rates, data, output), "--bytes", str(wanted), *TABLES])
    found = FrozenModel.load(output)
    assert 0.0005 < found.metadata["lmbda"] < 0.01
    assert freezing.measure(found, validation)["bytes_per_video"] == pytest.approx(wanted, rel=0.05)
    assert f"bytes a video at lmbda {found.metadata['lmbda']:.4g}" in capsys.readouterr().out


def test_other_tables_of_a_training_at_one_rate(one_rate, data, tmp_path):
    output = tmp_path / "model.safetensors"
    freeze.main([*options(one_rate, data, output), "--banks", "1", "--rounding_lmbda", "0", "--tables", "prior"])
    expected, found = FrozenModel.load(one_rate), FrozenModel.load(output)
    assert found.hidden[0][0].tobytes() == expected.hidden[0][0].tobytes()
    assert (found.tables.num_banks, found.metadata["tables"], found.rounding_lmbda) == (1, "prior", 0)


def test_the_largest_values_alone(one_rate, data, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    freeze.main([*options(one_rate, data, output), "--top_k", "2", *TABLES])
    found = FrozenModel.load(output)
    assert found.top_k == found.metadata["top_k"] == 2
    x = np.random.default_rng(0).normal(size=(50, SPEC.input_size)).astype(np.float32)
    on = (found.quantize(x) > 0).sum(axis=1)
    assert on.max() == 2 < (FrozenModel.load(one_rate).quantize(x) > 0).sum(axis=1).max()
    argv = [*options(one_rate, data, tmp_path / "other.safetensors"), "--top_k", "1000"]
    assert "top_k=1000 must be at most" in refusal(argv, capsys)


def test_tables_fit_the_videos_that_they_are_from(one_rate, many_rates, data, tmp_path, capsys):
    unlabelled = dataclasses.replace(SPEC, labels_key="tags")
    (corpus,) = write_shards(tmp_path / "corpus", 1, 400, spec=unlabelled, num_classes=6, frames=(2, 4), seed=9)
    videos = training_data.load_videos([str(corpus)], SPEC, None)
    assert (len(videos), len(videos.labels), videos.label_start.max()) == (400, 0, 0)
    before = FrozenModel.load(one_rate)
    argv = ["--training", str(one_rate.with_suffix(".training")), "--tables_from", str(corpus)]
    freeze.main([*argv, "--output", str(tmp_path / "m.safetensors"), *TABLES])
    assert "with tables of 400 videos." in capsys.readouterr().out
    found = FrozenModel.load(tmp_path / "m.safetensors")
    size = freezing.measure_size(found, videos)["bytes_per_video"]
    assert size < freezing.measure_size(before, videos)["bytes_per_video"]
    assert found.metadata["training_data"] == {"sha256": before.metadata["training_data"]["sha256"]}
    assert found.metadata["tables_data"] == videos.fingerprint
    assert "tables_data" not in before.metadata
    argv += ["--output", str(tmp_path / "n.safetensors")]
    assert "are not fitted to videos" in refusal([*argv, "--tables", "prior"], capsys)
    argv[1] = str(many_rates.with_suffix(".training"))
    assert "not allowed with argument" in refusal([*argv, "--input", data[0]], capsys)
    freeze.main([*argv, "--bytes", f"{size:.2f}", *TABLES])
    again = FrozenModel.load(tmp_path / "n.safetensors")
    assert freezing.measure_size(again, videos)["bytes_per_video"] == pytest.approx(size, rel=0.1)


def test_labels_of_any_kind_do_not_matter_for_tables(one_rate, tmp_path):
    videos = [video_level(index, labels=b"cat") for index in range(60)]
    corpus = write_records(tmp_path / "corpus.tfrecord", videos)
    argv = ["--training", str(one_rate.with_suffix(".training")), "--tables_from", corpus]
    freeze.main([*argv, "--output", str(tmp_path / "m.safetensors"), *TABLES])


def test_keys_of_records_are_those_of_the_training_or_given(tmp_path, capsys):
    keys = dataclasses.replace(SPEC, id_keys=("video",), labels_key="tags")
    (path,) = write_shards(tmp_path / "videos", 1, 60, spec=keys, num_classes=6, frames=(2, 4))
    (other,) = write_shards(tmp_path / "other", 1, 60, spec=SPEC, num_classes=6, frames=(2, 4))
    model, output = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    argv = ["--input", str(path), "--output", str(model), "--id_key", "video", "--labels_key", "tags"]
    train.main([*argv, *NETWORK, *TABLES, "--steps", "2"])
    freeze.main([*options(model, [str(path)], output), *TABLES])
    assert FrozenModel.load(output).spec == FrozenModel.load(model).spec == keys
    output.unlink()
    argv = ["--training", str(model.with_suffix(".training")), "--tables_from", str(other), "--output", str(output)]
    assert "name the key that holds it with --id_key" in refusal([*argv, *TABLES], capsys)
    freeze.main([*argv, *TABLES, "--id_key", "id"])
    assert FrozenModel.load(output).spec == dataclasses.replace(keys, id_keys=("id",))


@pytest.mark.parametrize("option", ["--tables_from", "--validation"])
def test_a_video_that_cannot_be_rounded_is_named(option, one_rate, data, tmp_path, capsys):
    huge = {"mean_rgb": np.full(24, 1e10, np.float32)}
    videos = [video_level(index, labels=[1], **(huge if index == 7 else {})) for index in range(20)]
    path = write_records(tmp_path / "videos.tfrecord", videos)
    argv = ["--training", str(one_rate.with_suffix(".training")), "--output", str(tmp_path / "m.safetensors")]
    argv += [option, path, *(["--input", data[0]] if option == "--validation" else [])]
    message = "Video 8 of 20 (in order, without unlabelled ones) in videos.tfrecord to videos.tfrecord has features so"
    assert f"{message} large that the network's activations cannot be rounded: one is 1e+10." in refusal(
        [*argv, *TABLES], capsys
    )


def test_one_video_is_too_few_for_a_search(many_rates, tmp_path, capsys):
    path = write_records(tmp_path / "video.tfrecord", [video_level(0)])
    argv = ["--training", str(many_rates.with_suffix(".training")), "--output", str(tmp_path / "m.safetensors")]
    assert "--bytes needs at least two videos" in refusal(
        [*argv, "--tables_from", path, "--bytes", "9", "--banks", "1"], capsys
    )


def refusal(argv, capsys):
    with pytest.raises(SystemExit) as info:
        freeze.main(argv)
    assert info.value.code in (1, 2)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("vidpress freeze: error: ")
    return last


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "was trained for lmbda from 0.0005 to 0.01: give --lmbda or --bytes"),
        (["--lmbda", "0.03"], "lmbda=0.03 must lie in lmbda_range=0.0005 0.01"),
        (["--lmbda", "0.003", "--tables", "prior"], "tables=prior cannot be used with lmbda_range"),
        (["--lmbda", "0.003", "--banks", "3"], "3 banks"),
        (["--lmbda", "0.003", "--bytes", "9"], "not allowed with argument"),
        (["--bytes", "1000"], "--bytes: 1000 bytes a video are not possible: lmbda from 0.0005 to 0.01 gives "),
        (["--bytes", "0.5"], "--bytes: 0.5 bytes a video are not possible: lmbda from 0.0005 to 0.01 gives "),
    ],
)
def test_unusable_options_are_refused(argv, message, many_rates, data, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    assert message in refusal([*options(many_rates, data, output), *TABLES, *argv], capsys)
    assert not output.exists()


def test_a_training_at_one_rate_has_no_other(one_rate, data, tmp_path, capsys):
    for rate in (["--lmbda", "0.01"], ["--bytes", "10"]):
        argv = [*options(one_rate, data, tmp_path / "m.safetensors"), *rate]
        assert "was trained at lmbda=0.001 only: leave out --lmbda and --bytes" in refusal(argv, capsys)


def test_what_is_not_there_is_refused(one_rate, data, tmp_path, capsys):
    output = str(tmp_path / "m.safetensors")
    argv = ["--training", str(tmp_path), "--input", data[0], "--output", output]
    assert "does not contain a training run" in refusal(argv, capsys)
    argv = ["--training", str(one_rate.with_suffix(".training")), "--output", output, "--input"]
    assert "none* matches no file" in refusal([*argv, str(tmp_path / "none*")], capsys)
    assert "is not the data that" in refusal([*argv, data[1]], capsys)
    assert "exists already" in refusal(options(one_rate, data, one_rate), capsys)
