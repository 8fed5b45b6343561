"""The command: `main(argv)` from TFRecords to results, what it does not do twice, and what it refuses in one line."""

import csv
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.synthetic import write_shards
from vidpress.pipeline import evaluate, train
from vidpress.pipeline.evaluation import plan as evaluation_plan
from vidpress.pipeline.training import jobs

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
pytest.importorskip("faiss", reason="needs the extra vidpress[report]")
pytest.importorskip("jinja2", reason="needs the extra vidpress[report]")

from conftest import SPEC

from vidpress.model import metrics
from vidpress.model.tables.bits import bits_by_dim, bits_by_row
from vidpress.model.training import freezing, task_heads, training_data
from vidpress.pipeline.evaluation.points import Context
from vidpress.pipeline.evaluation.rivals import codecs, registry
from vidpress.pipeline.evaluation.videos.kind import VideoKind

NUM_CLASSES = 6
NETWORK = [
    *("--features", str(SPEC), "--classes", str(NUM_CLASSES), "--batch_size", "32", "--learning_rate", "0.01"),
    *("--steps", "20", "--banks", "4", "--prior_banks", "1", "--rounding_lmbda", "0"),
]
SWEEP = [
    *("--hidden", "12", "--lmbda", "0.001", "0.01", "--seeds", "2", "--headline_lmbda", "0.001"),
    # Tables of a prior take seconds: one point will do.
    *("--method", "vidpress:", "--method", "paper: --tables prior --banks 1 --lmbda 0.01"),
]
# Those that take long to train are tested by themselves.
RIVALS = ["--rivals", *(name for name in registry.RIVALS if name not in ("opq", "rq", "lsq"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Options that name training and validation data."""
    folder = tmp_path_factory.mktemp("videos")
    files = write_shards(folder, 3, 150, spec=SPEC, num_classes=NUM_CLASSES, frames=(2, 4))
    files[2].rename(folder / "validation.tfrecord")
    return ["--input", f"{folder}/synthetic*", "--validation", f"{folder}/validation*"]


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate.main([*data, "--output", str(output), *NETWORK, *SWEEP, *RIVALS])
    return output


@pytest.fixture(scope="module")
def baseline(evaluated):
    """The frozen baseline of the 2-layer network."""
    (path,) = evaluated.with_name("out.work").glob("models/baseline-12-lmbda0-seed0-*.safetensors")
    return path


def load(output):
    results = json.loads((output / "results.json").read_text())
    return results["about"], results["records"]


def records_of(output, **wanted):
    return [r for r in load(output)[1] if all(r.get(name) == value for name, value in wanted.items())]


def validation_videos(data):
    return training_data.load_videos(training_data.match_files([data[-1]]), SPEC, NUM_CLASSES)


def test_every_method_is_measured(evaluated, data):
    about, records = load(evaluated)
    assert about["points"] == len(records)
    assert about["command"].startswith("vidpress evaluate --input ")
    found = {(r["method"], r["source"], r["head"]) for r in records}
    activations, features = "activations", "features"
    assert found == {
        ("baseline", None, "own"),
        ("vidpress", None, "own"),
        ("paper", None, "own"),
        *(((method, activations, "baseline")) for method in ("float16", "quantized", "pca")),
        ("answers", activations, "none"),
        *((m, activations, h) for m in ("float16 parquet", "int8", "pq", "pca+pq") for h in ("baseline", "logistic")),
        *((m, features, "logistic") for m in ("float32", "float16 parquet", "int8", "pq", "pca+pq")),
        *((m, features, "network") for m in ("pq", "pca+pq")),
    }
    seeds = {(r["lmbda"], r["seed"]) for r in records_of(evaluated, method="vidpress")}
    assert seeds == {(0.001, 0), (0.001, 1), (0.01, 0)}
    assert {r["seed"] for r in records_of(evaluated, method="baseline")} == {0, 1}
    pca = records_of(evaluated, method="pca")
    assert [(r["size"], r["bytes_per_video"]) for r in pca] == [(k, 4 * k) for k in (1, 2, 4, 8)]
    assert {r["size"] for r in records_of(evaluated, method="quantized")} == {65536, 256, 16, 4}
    assert {r["size"] for r in records_of(evaluated, method="pca+pq", source="features")} == {8, 16, 32}
    for name in ("results.csv", "index.html", "rate_accuracy.svg", "rate_accuracy.png", "bits_by_dimension.png"):
        assert (evaluated / name).stat().st_size > 500


def test_a_models_record_is_what_its_codes_give(evaluated, data):
    videos = validation_videos(data)
    (record,) = records_of(evaluated, method="vidpress", lmbda=0.01)
    model = FrozenModel.load(evaluated.with_name("out.work") / "models" / f"{record['name']}.safetensors")
    assert record["model_id"] == model.model_id
    codes, bank = model.compress(np.asarray(videos.x))
    assert record["bytes_per_video"] == pytest.approx(np.mean([len(code) for code in codes]) + 2 / 8)
    assert record["stored_bytes_per_video"] > record["bytes_per_video"]
    all_in = record["all_in_bytes_per_video"]
    assert list(all_in) == ["5000", "50000", "500000"]
    assert min(all_in.values()) > record["bytes_per_video"] - 2 / 8
    # Tables that a shard carries take at most a hundredth of its codes, and the rest is that of row groups of 4096.
    assert max(all_in.values()) < 1.01 * record["bytes_per_video"] + 5
    assert f"{all_in['50000']:,.1f}" in (evaluated / "index.html").read_text()
    (row,) = [row for row in csv.DictReader((evaluated / "results.csv").open()) if row["name"] == record["name"]]
    assert float(row["all_in_bytes_per_video_500000"]) == pytest.approx(all_in["500000"], rel=1e-5)
    z_hat = model.decompress(codes, bank)
    expected = metrics.evaluate(model.logits(z_hat), videos.multi_hot(np.arange(len(videos)), NUM_CLASSES))
    assert record["validation"]["gap"] == pytest.approx(expected.gap, abs=1e-6)
    assert record["validation"]["mean_ap"] == pytest.approx(expected.mean_ap, abs=1e-6)
    by_dim = np.sort(bits_by_dim(model.tables, z_hat, bank))[::-1]
    assert record["bits_per_video"] == pytest.approx(bits_by_row(model.tables, z_hat, bank).mean())
    np.testing.assert_allclose(record["bits_by_rank"], list(enumerate(by_dim, 1)), rtol=1e-3)
    assert record["validation"] == pytest.approx(
        {k: v for k, v in freezing.measure(model, videos).items() if k in record["validation"]}, abs=1e-6
    )
    assert record["training"]["num_videos"] == 300


def test_the_papers_method_is_the_same_network_with_one_trained_table(evaluated):
    (ours,) = records_of(evaluated, method="vidpress", lmbda=0.01)
    (paper,) = records_of(evaluated, method="paper")
    assert (paper["options"]["tables"], paper["options"]["banks"]) == ("prior", 1)
    assert paper["validation"] == ours["validation"]
    assert paper["bytes_per_video"] != ours["bytes_per_video"]
    assert paper["seconds"]["train"] == ours["seconds"]["train"]


def test_the_papers_method_is_there_unless_others_are_asked_for():
    plan = parse("--lmbda", "0.1")
    ours, paper = (dict(model.options) for model in plan.models)
    assert [model.method for model in plan.models] == ["vidpress", "paper"]
    assert paper == {**ours, "prior_banks": 1, "tables": "prior", "banks": 1, "rounding_lmbda": 0}


def test_a_codecs_record_is_what_is_read_back(evaluated, data, baseline):
    videos = validation_videos(data)
    model = FrozenModel.load(baseline)
    train_files = training_data.match_files([data[1]])
    z = model.bottleneck(np.asarray(training_data.load_videos(train_files, SPEC, NUM_CLASSES).x))
    codec = codecs.fit_quantized(z, 16)
    codes = codec.encode(model.bottleneck(np.asarray(videos.x)))
    (record,) = records_of(evaluated, method="quantized", size=16)
    expected = metrics.evaluate(
        model.logits(codec.decode(codes)), videos.multi_hot(np.arange(len(videos)), NUM_CLASSES)
    )
    assert record["bytes_per_video"] == pytest.approx(codec.num_bytes(codes) / len(videos))
    assert record["validation"]["gap"] == pytest.approx(expected.gap, abs=1e-6)
    (lossless,) = records_of(evaluated, method="baseline", seed=0)
    assert lossless["bytes_per_video"] == pytest.approx(freezing.measure_unrounded(model, videos)["bytes_per_video"])
    assert lossless["rounded"]["bytes_per_video"] < lossless["bytes_per_video"]


def test_what_is_finished_is_not_done_again(evaluated, data, monkeypatch, capsys):
    points = {path.name: path.stat().st_mtime_ns for path in (evaluated / "points").iterdir()}
    lost = next(name for name in sorted(points) if name.startswith("vidpress"))
    before = json.loads((evaluated / "points" / lost).read_text())
    (evaluated / "points" / lost).unlink()
    monkeypatch.setattr(jobs, "train_model", None)  # every network is trained
    evaluate.main([*data, "--output", str(evaluated), *NETWORK, *SWEEP, *RIVALS])
    progress = [line for line in capsys.readouterr().out.splitlines() if "bytes a video (" in line and ":" in line[:3]]
    assert len(progress) == 1
    after = json.loads((evaluated / "points" / lost).read_text())
    assert {**after, "seconds": None} == {**before, "seconds": None}
    unchanged = {path.name: path.stat().st_mtime_ns for path in (evaluated / "points").iterdir() if path.name != lost}
    assert unchanged == {name: time for name, time in points.items() if name != lost}


def test_points_of_a_network_for_many_rates_share_its_training(data, tmp_path):
    output = tmp_path / "out"
    argv = [*data, "--output", str(output), *NETWORK, "--steps", "60", "--rivals", "none", "--hidden", "12"]
    argv += ["--lmbda", "0.001", "0.01", "--method", "one model: --lmbda_range 0.001 0.01", "--jobs", "2"]
    evaluate.main([*argv, "--method", "few banks: --lmbda_range 0.001 0.01 --lmbda 0.002 --banks 2"])
    trainings = [path.name for path in (tmp_path / "out.work" / "trainings").iterdir()]
    assert sorted(name.rpartition("-")[0] for name in trainings) == ["12-lmbda0-seed0", "12-lmbda0.001to0.01-seed0"]
    first, second = sorted(records_of(output, method="one model"), key=lambda record: record["lmbda"])
    assert (first["lmbda"], second["lmbda"]) == (0.001, 0.01)
    assert first["bytes_per_video"] > second["bytes_per_video"]
    (third,) = records_of(output, method="few banks")
    assert third["seconds"]["train"] == first["seconds"]["train"] == second["seconds"]["train"]


def test_points_that_share_a_training_are_one_task():
    plan = parse(
        *("--rivals", "none", "--hidden", "20", "--lmbda", "0.002", "0.004", "--seeds", "2"),
        *("--method", "one: --lmbda_range 0.001 0.006", "--method", "banks: --lmbda 0.002 --banks 2", "--method", "a:"),
        *("--top_k", "3", "--method", "all: --lmbda 0.002 --top_k 0"),
    )
    tasks = [[(p.method, dict(p.options)["lmbda"], dict(p.options)["seed"]) for p in task] for task in plan.tasks()]
    assert tasks[:4] == [
        *([("one", 0.002, seed), ("one", 0.004, seed)] for seed in (0, 1)),
        *([("banks", 0.002, seed), ("a", 0.002, seed), ("all", 0.002, seed)] for seed in (0, 1)),
    ]
    assert dict(plan.baselines[0].options)["lmbda_range"] is None
    assert [dict(plan.baselines[0].options)[name] for name in ("banks", "top_k")] == [1, 0]
    with pytest.raises(ValueError, match=r"lmbda=0\.002 must lie in lmbda_range"):
        parse("--hidden", "20", "--lmbda", "0.002", "--lmbda_range", "0.003", "0.006")


def test_an_evaluation_that_was_stopped_shows_what_it_has_and_goes_on(data, tmp_path, monkeypatch, capsys):
    argv = [*data, "--output", str(tmp_path / "out"), *NETWORK, "--hidden", "12", "--lmbda", "0.01", "--rivals", "none"]
    argv += ["--method", "one:", "--method", "two: --banks 2"]
    real, calls = jobs.train_model, []

    def train_once(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(jobs, "train_model", train_once)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(argv)
    assert "1 of 3 points are finished" in capsys.readouterr().out
    assert "1 of 3 points are finished" in (tmp_path / "out" / "index.html").read_text()
    monkeypatch.undo()
    evaluate.main(argv)
    printed = capsys.readouterr()
    assert "3 of 3 points are finished" in printed.out
    assert "2 of 3 points, about " in printed.err
    assert "\n3 of 3 points\n" in printed.err
    (tmp_path / "out" / "index.html").unlink()
    evaluate.main(["--output", str(tmp_path / "out"), "--report_only"])
    assert "3 of 3 points are finished" in (tmp_path / "out" / "index.html").read_text()


def test_a_given_baseline_is_taken_and_processes_share_the_work(data, baseline, tmp_path):
    output = tmp_path / "out"
    argv = [*data, "--output", str(output), *NETWORK, "--hidden", "12", "--hidden", "16,12", "--rivals", "none"]
    argv += ["--lmbda", "0.01", "--method", "one: --weight_decay 1e-3"]
    evaluate.main([*argv, "--baseline", str(baseline), "--jobs", "2"])
    assert len(load(output)[1]) == 4
    (found,) = records_of(output, method="baseline", hidden=[12])
    assert found["model_id"] == FrozenModel.load(baseline).model_id
    assert {r["options"]["weight_decay"] for r in records_of(output, method="one")} == {1e-3}
    assert len(list((tmp_path / "out.work" / "models").glob("baseline*"))) == 1
    assert "3-layer network" in (output / "index.html").read_text()


def parse(*argv):
    kind = VideoKind()
    return evaluation_plan.make_plan(kind, evaluate.parser(kind).parse_args(["--output", "out", *argv]))


def test_a_method_has_options_and_a_sweep_of_its_own():
    plan = parse(
        *("--hidden", "20", "--lmbda", "0.1", "--steps", "50", "--method", "a:"),
        *("--method", "b: --hidden 30,20 --lmbda 0.2 0.3 --banks 2 --weight_decay 0.5"),
        *("--baseline_options", "--weight_decay 0.25", "--seeds", "2", "--headline_lmbda", "0.1", "0.3"),
    )
    names = ("hidden", "lmbda", "seed", "banks", "steps")
    found = [(model.method, *(dict(model.options)[name] for name in names)) for model in plan.models]
    assert found == [
        ("a", (20,), 0.1, 0, 16, 50),
        ("a", (20,), 0.1, 1, 16, 50),
        ("b", (30, 20), 0.2, 0, 2, 50),
        ("b", (30, 20), 0.3, 0, 2, 50),
        ("b", (30, 20), 0.3, 1, 2, 50),
    ]
    assert [dict(m.options)["weight_decay"] for m in plan.models] == [1e-6, 1e-6, 0.5, 0.5, 0.5]
    assert [(dict(b.options)["hidden"], dict(b.options)["seed"]) for b in plan.baselines] == [
        *(((20,), 0), ((20,), 1), ((30, 20), 0), ((30, 20), 1)),
    ]
    assert {dict(b.options)["weight_decay"] for b in plan.baselines} == {0.25}


def test_every_option_of_training_is_passed_through():
    names = vars(train.parser().parse_args(["--input", "x", "--output", "y.safetensors"])).keys()
    passed = {name for name, _ in parse().models[0].options}
    records = {"features", "id_key", "labels_key"}
    assert names - passed - records == {"input", "validation", "output", "work_dir", "no_head", "paper"}


def test_a_record_depends_on_what_is_trained_and_not_on_how_it_is_watched(data, tmp_path):
    def names(*argv, sha256="1"):
        context = Context(("i",), ("v",), SPEC, 6, str(tmp_path), str(tmp_path), sha256, "2")
        return [model.name(context) for model in parse("--lmbda", "0.1", "--method", "a:", *argv).models]

    assert names() == names("--validate_every", "7", "--checkpoint_every", "9", "--seeds", "1")
    for other in (["--steps", "9"], ["--weight_decay", "0.1"], ["--seed", "3"], ["--banks", "2"]):
        assert not set(names(*other)) & set(names())
    assert not set(names(sha256="3")) & set(names())


def test_an_option_that_a_later_version_adds_changes_no_name(tmp_path):
    context = Context(("i",), ("v",), SPEC, 6, str(tmp_path), str(tmp_path), "1", "2")
    plan = parse("--lmbda", "0.1", "--method", "a:", "--rivals", "pq")
    reader = plan.rivals[-1][-1]
    assert reader.head == "network"
    for point in (plan.models[0], reader):
        options = dict(point.options)
        assert options.pop("score_bottleneck") is False
        earlier = dataclasses.replace(point, options=tuple(options.items()))
        assert earlier.name(context) == point.name(context)
        other = dataclasses.replace(point, options=(*options.items(), ("score_bottleneck", True)))
        assert other.name(context) != point.name(context)


def test_teachers_are_the_baselines_of_the_architecture(tmp_path):
    context = Context(("i",), ("v",), SPEC, 6, str(tmp_path), str(tmp_path), "1", "2")
    common = ["--hidden", "20", "--hidden", "30", "--lmbda", "0.1", "--seeds", "2"]
    plan = parse(*common, "--method", "a: --teacher {baseline}")
    for model, expected in zip(plan.models, plan.baselines, strict=True):
        assert model.teachers == (expected,)
        assert model.resolved_options(context)["teacher"] == [expected.model_path(context)]
        assert os.path.basename(expected.model_path(context)).startswith(
            f"baseline-{dict(model.options)['hidden'][0]}-lmbda0-seed{dict(model.options)['seed']}"
        )
    plan = parse(*common, "--method", "a: --teacher {baselines} x")
    first, second, *_ = (baseline.model_path(context) for baseline in plan.baselines)
    assert plan.models[0].resolved_options(context)["teacher"] == [first, second, "x"]
    assert plan.models[1].resolved_options(context)["teacher"] == [second, first, "x"]
    assert parse(*common, "--method", "a:").models[0].teachers == ()
    assert all(not baseline.teachers for baseline in plan.baselines)
    with pytest.raises(ValueError, match="cannot be in the options that baselines are trained with"):
        parse("--baseline_options", "--teacher {baseline}")


def test_rivals_are_measured_on_the_activations_of_as_many_baselines_as_asked_for():
    common = ["--hidden", "20", "--seeds", "3", "--seed", "5", "--no_network_heads"]

    def seeds(*argv, rivals=("int8", "answers")):
        points = [point for task in parse(*common, "--rivals", *rivals, *argv).rivals for point in task]
        of_input = [point for point in points if point.source is None]
        assert len(of_input) == len(set(of_input)) > 0
        return sorted({dict(point.source.options)["seed"] for point in points if point.source})

    assert seeds() == [5]
    assert seeds("--rival_seeds", "2") == [5, 6]
    assert seeds("--rival_seeds", "4") == [5, 6, 7]
    assert seeds("--rival_seeds", "4", rivals=["opq", "rq", "lsq"]) == [5]  # which take long


@pytest.fixture(scope="module")
def short_heads():
    """Let heads be trained for few rounds, in one way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_heads, "_TRIED", task_heads._TRIED[:1])
        patch.setattr(task_heads, "_MAX_ROUNDS", 5)
        yield


@pytest.fixture(scope="module")
def on_new_tasks(data, tmp_path_factory, short_heads):
    """An evaluation that hides the classes 1 and 4."""
    output = tmp_path_factory.mktemp("new tasks") / "out"
    (output.parent / "classes").write_text("4\n1\n")
    argv = [*data, "--output", str(output), *NETWORK, "--hidden", "12", "--lmbda", "0.01", "--method", "vidpress:"]
    argv += ["--rivals", "float32", "int8", "answers", "--no_network_heads"]
    evaluate.main([*argv, "--new_tasks", str(output.parent / "classes"), "--new_task_input", data[1]])
    return output


def test_networks_see_no_label_of_a_new_class(on_new_tasks, data):
    about, _ = load(on_new_tasks)
    assert about["new_tasks"] == {"classes": 2, "held_out": [1, 4], "num_classes": 6}
    training = training_data.load_videos(training_data.match_files([data[1]]), SPEC, NUM_CLASSES)
    without = training.relabelled(np.array([0, -1, 2, 3, -1, 5]), "without [1, 4]")
    assert set(np.unique(without.labels)) == {0, 2, 3, 5}
    assert about["data"]["training"]["sha256"] == without.fingerprint["sha256"] != training.fingerprint["sha256"]
    for path in on_new_tasks.with_name("out.work").glob("models/*.safetensors"):
        assert FrozenModel.load(path).metadata["training_data"]["sha256"] == without.fingerprint["sha256"]
    videos = validation_videos(data).relabelled(np.array([0, -1, 2, 3, -1, 5]), "")
    assert {r["validation"]["num_videos"] for r in load(on_new_tasks)[1]} == {len(videos)}


def test_heads_for_new_tasks_read_what_is_stored(on_new_tasks, data, short_heads):
    """Each row's heads are those that the same training gives on features computed here."""
    (record,) = records_of(on_new_tasks, method="vidpress")
    (lossless,) = records_of(on_new_tasks, method="baseline")
    models = on_new_tasks.with_name("out.work") / "models"
    model, network = (FrozenModel.load(models / f"{each['name']}.safetensors") for each in (record, lossless))
    classes = np.array([-1, 0, -1, -1, 1, -1])
    everything = training_data.load_videos(training_data.match_files([data[1]]), SPEC, NUM_CLASSES)
    training, videos = (each.relabelled(classes, "") for each in (everything, validation_videos(data)))
    old = everything.relabelled(np.array([0, -1, 2, 3, -1, 5]), "")
    int8 = codecs.fit_int8(network.bottleneck(np.asarray(old.x)))
    rows = {
        "vidpress": (record, lambda x: model.quantize(x).astype(np.float32)),
        "baseline": (lossless, network.bottleneck),
        "int8": (
            records_of(on_new_tasks, method="int8", source="activations", head="baseline")[0],
            lambda x: int8.decode(int8.encode(network.bottleneck(x))),
        ),
        "float32": (records_of(on_new_tasks, method="float32")[0], lambda x: x),
    }
    for name, (found, features) in rows.items():
        head = task_heads.train_head(features(np.asarray(training.x)), training, 2)
        expected = metrics.evaluate(
            head.logits(features(np.asarray(videos.x))), videos.multi_hot(np.arange(len(videos)), 2)
        )
        linear = found["new_tasks"]["linear"]
        assert linear["num_videos"] == len(videos), name
        for metric in ("gap", "hit_at_1", "perr", "mean_ap"):
            assert linear[metric] == pytest.approx(getattr(expected, metric), abs=2e-3), name
            low, high = linear["intervals"][metric]
            assert low <= linear[metric] <= high, name
        assert len(linear["mean_ap_of_quartiles"]) == len(linear["intervals"]["mean_ap_of_quartiles"]) == 2
    assert all(set(r["new_tasks"]) == {"linear", "hidden"} for r in load(on_new_tasks)[1])


def test_new_tasks_are_on_the_page(on_new_tasks):
    page = (on_new_tasks / "index.html").read_text()
    assert "New tasks" in page
    assert "The answers: best classes and scores" in page
    for name in ("new_tasks.svg", "new_tasks.png"):
        assert (on_new_tasks / name).stat().st_size > 500
    (record,) = records_of(on_new_tasks, method="vidpress")
    assert f"{record['new_tasks']['linear']['gap']:.4f}" in page


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("8", "--new_tasks lists class 8, but there are 8 classes"),
        ("7", "No video to train on has one of the new classes"),
        ("0 1 2 3 4 5", "No video to train on has one of the old classes"),
        ("0 1 2 3 4 5 6 7", "--new_tasks makes 8 of 8 classes new: leave some on each side"),
    ],
)
def test_new_tasks_that_cannot_be_measured_are_refused_before_any_training(data, tmp_path, capsys, classes, message):
    (tmp_path / "classes").write_text(classes)
    argv = [*data, "--output", str(tmp_path / "out"), *NETWORK, "--classes", "8", "--hidden", "12", "--lmbda", "0.01"]
    assert message in refusal([*argv, "--new_tasks", str(tmp_path / "classes"), "--rivals", "none"], capsys)
    assert not (tmp_path / "out.work").exists()


def test_another_vocabulary_is_a_new_task(data, tmp_path, short_heads):
    folder = tmp_path / "other"
    folder.mkdir()
    other = write_shards(folder, 2, 60, spec=SPEC, num_classes=9, frames=(2, 3))
    argv = [*data, "--output", str(tmp_path / "out"), *NETWORK, "--hidden", "12", "--lmbda", "0.01", "--rivals", "none"]
    argv += ["--new_task_input", str(other[0]), "--new_task_validation", str(other[1]), "--new_task_classes", "9"]
    evaluate.main([*argv, "--method", "vidpress:"])
    about, records = load(tmp_path / "out")
    assert about["new_tasks"] == {"classes": 9, "held_out": None, "num_classes": 9}
    assert about["data"]["training"]["labelled_videos"] == 300
    assert {r["new_tasks"]["linear"]["num_videos"] for r in records} == {60}


def refusal(argv, capsys):
    with pytest.raises(SystemExit) as info:
        evaluate.main(argv)
    assert info.value.code in (1, 2)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("vidpress evaluate: error: ")
    return last


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "steps=0"),
        (["--lmbda", "0"], "must be above 0"),
        (["--method", "ours"], "a colon"),
        (["--method", "baseline:"], "a colon"),
        (["--method", "a: --nonsense 1"], "cannot have --nonsense 1"),
        (["--method", "a: --seed 1"], "cannot have --seed"),
        (["--method", "a: --banks x"], "invalid int value"),
        (["--method", "a: --banks 3"], "3 banks"),
        (["--baseline_options", "--lmbda 1"], "--baseline_options cannot have lmbda"),
        (["--baseline", "none.safetensors"], "none.safetensors does not exist"),
        (["--labels_key", ""], "A key needs a name"),
        (["--new_tasks", "1.5"], "is not a share of the classes"),
        (["--new_task_classes", "9"], "--new_task_classes needs --new_tasks or"),
        (["--rivals", "zip"], "invalid choice"),
        (["--tables", "prior", "--baseline_options", "--tables prior"], "tables=prior needs lmbda above 0"),
    ],
)
def test_unusable_options_are_refused(argv, message, tmp_path, capsys):
    output = tmp_path / "out"
    assert message in refusal(["--input", "x", "--validation", "y", "--output", str(output), *argv], capsys)
    assert not output.exists()


def test_missing_data_are_refused(data, tmp_path, capsys):
    assert "--input and --validation must be given" in refusal(["--output", str(tmp_path / "out")], capsys)
    argv = ["--input", str(tmp_path / "none*"), "--validation", "y", "--output", str(tmp_path / "out")]
    assert "none* matches no file" in refusal(argv, capsys)
    assert "results.json does not exist" in refusal(["--output", str(tmp_path / "no"), "--report_only"], capsys)


def test_keys_of_records_are_named(data, tmp_path, capsys):
    argv = [*data, *NETWORK, *SWEEP, "--labels_key", "topics", "--output", str(tmp_path / "out")]
    assert "topics" in refusal(argv, capsys)


@pytest.mark.parametrize("text", ["", "[", "5", "{}"])
def test_damaged_records_and_results_are_named(evaluated, data, tmp_path, capsys, text):
    output = tmp_path / "out"
    shutil.copytree(evaluated, output)
    shutil.copytree(evaluated.with_name("out.work"), tmp_path / "out.work")
    point = min((output / "points").iterdir())
    for path, argv in (
        (output / "results.json", ["--report_only"]),
        (point, [*data, *NETWORK, *SWEEP]),
    ):
        path.write_text(text)
        line = refusal([*argv, "--output", str(output)], capsys)
        assert f"vidpress evaluate: error: {path} is damaged: " in line
        assert "Remove it, and run the same evaluation again" in line
        path.unlink()


def test_a_baseline_for_another_task_is_refused(data, baseline, tmp_path, capsys):
    argv = [*data, "--output", str(tmp_path / "out"), *NETWORK, "--hidden", "12", "--baseline", str(baseline)]
    swapped = ",".join(reversed(str(SPEC).split(",")))
    for other in (["--classes", "7"], ["--features", swapped]):
        message = f"--baseline {baseline} takes {SPEC} and has {NUM_CLASSES} classes: it must be for"
        assert message in refusal([*argv, *other], capsys)


def test_a_model_that_has_seen_the_new_classes_is_refused(data, baseline, tmp_path, capsys):
    argv = [*data, "--output", str(tmp_path / "out"), *NETWORK, "--hidden", "12", "--lmbda", "0.01", "--rivals", "none"]
    argv += ["--new_tasks", "0.3"]
    for given in (["--baseline", str(baseline)], ["--method", f"taught: --teacher {baseline}"]):
        message = f"{baseline} was not trained on --input without the new classes, which it must not have seen"
        assert message in refusal([*argv, *given], capsys)
        assert not list(tmp_path.glob("out.work/trainings/*"))


def test_a_model_with_a_rate_is_no_baseline(data, evaluated, tmp_path, capsys):
    path = next(iter(evaluated.with_name("out.work").glob("models/vidpress-12-*.safetensors")))
    argv = [*data, "--output", str(tmp_path / "out"), *NETWORK, "--hidden", "12", "--baseline", str(path)]
    assert "trained with --lmbda 0" in refusal(argv, capsys)
