"""Evaluations of image experiments, through the same command."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from test_image_files import write_mnist

from vidpress.pipeline import evaluate
from vidpress.pipeline.evaluation import plan as evaluation_plan
from vidpress.pipeline.evaluation.report import results as evaluation_results

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
pytest.importorskip("matplotlib", reason="needs the extra vidpress[report]")

from vidpress.model import metrics
from vidpress.model.images import experiments
from vidpress.model.images.files import load_mnist
from vidpress.model.networks import plug_in
from vidpress.pipeline.evaluation import images
from vidpress.pipeline.evaluation.points import Context

NAME = "fashion-mnist-resnetv2-20"
OPTIONS = [
    *("--experiment", NAME, "--epochs", "12", "--batch_size", "50", "--learning_rate", "0.01", "--mixed_precision"),
    *("--banks", "4", "--lmbda", "0.003"),
]


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    """A network that learns in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        narrow = dataclasses.replace(experiments.EXPERIMENTS[NAME], width=4, map_shape=(4, 4, 16))
        patch.setitem(experiments.EXPERIMENTS, NAME, narrow)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("mnist"), 300, 100)


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate.main([*OPTIONS, "--input", str(folder), "--output", str(output)])
    return output


def records_of(output, **wanted):
    records = json.loads((output / "results.json").read_text())["records"]
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def test_every_method_is_measured(evaluated):
    results = evaluation_results.load(evaluated)
    assert results.about["points"] == len(results.records)
    assert (results.about["experiment"], results.about["network"]) == (NAME, "ResNetV2-20")
    found = {(r["method"], r["source"], r["head"]) for r in results.records}
    plain = ("float16", "quantized", "pca", "float16 parquet", "int8", "pq", "pca+pq")
    assert found == {
        *(((name, None, "own")) for name in ("baseline", "vidpress", "paper")),
        *((name, "activations", "baseline") for name in plain),
    }
    assert results.architectures == [(16,)]
    assert [point.num_bytes for point in results.codecs("pca", "activations", (16,))] == [4.0, 8.0, 16.0, 32.0, 64.0]
    assert results.baseline((16,)).validation["accuracy"] > 0.5
    with (evaluated / "results.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["method"] == "vidpress"]
    (record,) = records_of(evaluated, method="vidpress")
    assert float(row["bytes_per_image"]) == pytest.approx(record["bytes_per_image"], rel=1e-5)
    assert float(row["validation_error"]) == pytest.approx(1 - record["validation"]["accuracy"], abs=1e-5)
    page = (evaluated / "index.html").read_text()
    assert "<h1>Fashion-MNIST: how small, how accurate</h1>" in page
    assert "300 training images" in page
    assert "Error, 1 - accuracy, %" in page
    assert "bytes an image" in page
    assert "<h2>ResNetV2-20, 16 activations</h2>" in page
    for word in ("GAP", "video", "Hit@1"):
        assert word not in page.split("<pre>")[0].replace("vidpress", "")


def test_a_models_record_is_what_its_codes_give(evaluated, folder):
    (record,) = records_of(evaluated, method="vidpress")
    training, test = load_mnist(folder)
    plan = parse("--lmbda", "0.003", "--epochs", "12", "--batch_size", "50", "--learning_rate", "0.01", "--banks", "4")
    point = next(model for model in plan.models if model.method == "vidpress")
    options = images.ImageModelOptions.of({**dict(point.options), "mixed_precision": True}).training
    from vidpress.model.images.training import train_on_images

    (work,) = {
        path.parent
        for path in evaluated.with_name("out.work").glob("trainings/*-lmbda0.003-*/options.json")
        if json.loads(path.read_text())["prior_banks"] == 16
    }
    network = train_on_images(experiments.EXPERIMENTS[NAME], options, training, work)  # finished
    x, x_test = (part.images.astype(np.float32) / 127.5 - 1 for part in (training, test))
    codec = plug_in.freeze(network, x, num_banks=4)
    codes = codec.compress(plug_in.quantize(network, x_test))
    assert record["bytes_per_image"] == pytest.approx(np.mean([len(code) - 1 + 2 / 8 for code in codes]))
    logits = plug_in.head_of(network).predict(codec.decompress(codes).astype(np.float32), verbose=0)
    expected = metrics.measure_accuracy(logits, test.labels)
    assert record["validation"] == dataclasses.asdict(expected)
    assert record["bits_per_image"] <= 8 * record["bytes_per_image"]


def test_the_papers_method_has_one_bank_and_the_trained_tables(evaluated):
    (ours,), (paper,) = (records_of(evaluated, method=method) for method in ("vidpress", "paper"))
    names = ("tables", "banks", "prior_banks")
    assert [paper["options"][name] for name in names] == ["prior", 1, 1]
    assert [ours["options"][name] for name in names] == ["empirical", 4, 16]
    assert ours["bytes_per_image"] < paper["bytes_per_image"]


def test_what_is_finished_is_not_done_again(evaluated, folder, monkeypatch, capsys):
    monkeypatch.setattr(images.ImageKind, "measure_model", None)
    monkeypatch.setattr(images, "_train", None)
    evaluate.main([*OPTIONS, "--input", str(folder), "--output", str(evaluated)])
    printed = capsys.readouterr().out
    assert "ResNetV2-20, baseline: accuracy" in printed
    assert "seed 0: accuracy" not in printed
    evaluate.main(["--output", str(evaluated), "--report_only"])
    assert "ResNetV2-20, baseline: accuracy" in capsys.readouterr().out


def parse(*argv):
    argv = ["--experiment", NAME, "--output", "out", *argv]
    kind = evaluate.chosen_kind(argv)
    return evaluation_plan.make_plan(kind, evaluate.parser(kind).parse_args(argv))


def test_options_are_the_experiments():
    own = experiments.EXPERIMENTS[NAME].options
    options = dict(parse().models[0].options)
    assert (options["epochs"], options["steps"], options["spatial"]) == (own.epochs, None, False)
    assert (options["optimizer"], options["decays"]) == (own.optimizer, list(own.decays))
    assert (options["experiment"], options["hidden"]) == (NAME, (16,))
    plan = parse("--bottleneck", "map", "--lmbda", "0.1", "--seeds", "2", "--method", "a: --epochs 9")
    assert [dict(model.options)["seed"] for model in plan.models] == [0, 1]
    assert dict(plan.models[0].options)["epochs"] == 9
    assert dict(plan.models[0].options)["hidden"] == dict(plan.baselines[0].options)["hidden"] == (4, 4, 16)
    assert dict(plan.models[0].options)["spatial"]
    plan = parse("--bottleneck", "map", "vector", "--lmbda", "0.1", "--steps", "30")
    found = [(options["hidden"], options["spatial"]) for options in (dict(point.options) for point in plan.baselines)]
    assert found == [((4, 4, 16), True), ((16,), False)]
    assert {(dict(point.options)["steps"], dict(point.options)["epochs"]) for point in plan.models} == {(30, None)}


def test_a_method_can_have_what_it_codes():
    both, on_map = ("--method", "a:"), ("--method", "b: --bottleneck map --lmbda 0.2")
    plan = parse("--bottleneck", "vector", "map", "--lmbda", "0.1", *both, *on_map)
    found = [(model.method, dict(model.options)["hidden"], dict(model.options)["lmbda"]) for model in plan.models]
    assert found == [("a", (16,), 0.1), ("a", (4, 4, 16), 0.1), ("b", (4, 4, 16), 0.2)]
    assert len(plan.baselines) == 2


def test_held_out_images_are_not_trained_on(folder):
    context = Context((str(folder),), (), "", 10, "", "", held_out=60)
    training, held_out = images.ImageKind(experiments.EXPERIMENTS[NAME]).load_data(context)
    whole, _ = load_mnist(folder)
    assert (len(training), len(held_out)) == (240, 60)
    parts = [image.tobytes() for part in (training, held_out) for image in part.images]
    assert sorted(parts) == sorted(image.tobytes() for image in whole.images)
    assert len({part.fingerprint["sha256"] for part in (training, held_out, whole)}) == 3


def test_images_are_held_out_of_every_class_of_sorted_files(folder):
    whole, test = load_mnist(folder)
    in_order = whole.subset(np.argsort(whole.labels, kind="stable"))
    experiment = dataclasses.replace(experiments.EXPERIMENTS[NAME], load=lambda folder: (in_order, test))
    context = Context((f"{folder}/sorted",), (), "", 10, "", "", held_out=30)
    _, held_out = images.ImageKind(experiment).load_data(context)
    assert set(held_out.labels) == set(whole.labels)


def test_one_network_is_trained_for_a_range_and_one_baseline_for_map_and_vector(folder, tmp_path):
    method = "one: --lmbda_range 0.001 0.004 --lmbda 0.001 0.004 --teacher {baseline} --epochs 1 --learning_rate 0.001"
    options = ["--experiment", NAME, "--epochs", "2", "--batch_size", "50", "--banks", "4", "--rivals", "none"]
    options += ["--bottleneck", "map", "vector", "--method", method]
    evaluate.main([*options, "--input", str(folder), "--output", str(tmp_path / "out")])
    # One baseline, and one network each for map and vector.
    assert len(list((tmp_path / "out.work" / "trainings").iterdir())) == 3
    for hidden in ([4, 4, 16], [16]):
        one = records_of(tmp_path / "out", method="one", hidden=hidden)
        assert [record["lmbda"] for record in one] == [0.001, 0.004]
        assert len({record["bytes_per_image"] for record in one}) == 2
        (baseline,) = records_of(tmp_path / "out", method="baseline", hidden=hidden)
        assert baseline["options"]["lmbda_range"] is baseline["options"]["teacher"] is None
        assert [record["steps"] for record in (baseline, *one)] == [12, 6, 6]
    on_map, on_vector = records_of(tmp_path / "out", method="baseline")
    assert on_map["validation"] == on_vector["validation"]
    assert on_map["bytes_per_image"] > on_vector["bytes_per_image"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--experiment", "mnist"], "invalid choice: 'mnist'"),
        (["--experiment", NAME], "--input must be given"),
        (["--experiment", NAME, "--input", "x", "--hidden", "3"], "unknown option --hidden"),
        (["--experiment", NAME, "--input", "x", "--epochs", "0"], "epochs=0"),
        (["--experiment", NAME, "--input", "x", "--method", "a: --hidden 3"], "cannot have --hidden 3"),
        (["--experiment", NAME, "--input", "x", "--steps", "9", "--epochs", "1"], "not allowed with argument"),
        (["--experiment", NAME, "--input", "x", "--steps", "9", "--method", "a: --epochs 1"], "exactly one of the two"),
        (["--experiment", NAME, "--input", "x", "--method", "a: --bottleneck cube"], "invalid choice: 'cube'"),
        (["--experiment", NAME, "--input", "x", "--baseline_options", "--bottleneck map"], "cannot have bottleneck"),
        (["--experiment", NAME, "--input", "x", "--banks", "3"], "3 banks"),
        (["--experiment", NAME, "--input", "x", "--method", "a: --teacher b"], "invalid choice: 'b'"),
        (
            [
                "--experiment",
                NAME,
                "--input",
                "x",
                "--teacher",
                "{baseline}",
                "--baseline_options",
                "--teacher {baseline}",
            ],
            "{baseline} cannot be in the options that baselines are trained with",
        ),
        (["--experiment", NAME, "--input", "x"], "x has no file train-images-idx3-ubyte"),
    ],
)
def test_unusable_options_are_refused(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([*argv, "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
