"""The command: `main(argv)` from TFRecords to a model that loads, and what it refuses in one line."""

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.synthetic import write_shards
from vidpress.pipeline import freeze, train

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC, random_model

from vidpress.model.training import freezing, training_data
from vidpress.model.training.options import PAPER, FreezingOptions, TrainingOptions
from vidpress.pipeline.training.options import ModelOptions

SMALL = [
    *("--features", str(SPEC), "--classes", "6", "--hidden", "12", "--lmbda", "0.005"),
    *("--steps", "30", "--batch_size", "32", "--learning_rate", "0.01", "--validate_every", "20"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Globs of training and validation data."""
    folder = tmp_path_factory.mktemp("videos")
    files = write_shards(folder, 3, 100, spec=SPEC, num_classes=6, frames=(2, 4))
    files[2].rename(folder / "validation.tfrecord")
    return f"{folder}/synthetic*", f"{folder}/validation*"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "model.safetensors"
    train.main(["--input", data[0], "--validation", data[1], "--output", str(output), *SMALL])
    return output


def test_the_model_says_where_it_comes_from(trained, data):
    model = FrozenModel.load(trained)
    metadata = model.metadata
    assert [layer[0].shape for layer in model.hidden] == [(SPEC.input_size, 12)]
    assert model.spec == SPEC
    assert (metadata["lmbda"], metadata["steps"], metadata["seed"]) == (0.005, 30, 0)
    assert metadata["training"]["hidden"] == [12]
    assert metadata["training_data"]["labelled_videos"] == 200
    assert metadata["training_data"]["files"] == 2
    validation = training_data.load_videos(training_data.match_files([data[1]]), SPEC, 6)
    assert metadata["validation_data"] == validation.fingerprint
    assert metadata["metrics"] == freezing.measure(model, validation)
    codes, _ = model.compress(validation.x)
    assert metadata["metrics"]["bytes_per_video"] == np.mean([len(code) for code in codes]) + 4 / 8
    assert (trained.with_name("model.training") / "tensorboard").is_dir()


def test_the_papers_method_is_had_by_one_option(data, tmp_path):
    """One prior for all videos, whose tables are taken, and the nearest integers, whatever the order of the options."""
    output = tmp_path / "paper.safetensors"
    train.main(["--paper", "--input", data[0], "--output", str(output), *SMALL, "--rounding_lmbda", "0.01"])
    model = FrozenModel.load(output)
    assert model.metadata["training"]["prior_banks"] == 1
    assert (model.metadata["tables"], model.tables.num_banks) == ("prior", 1)
    assert model.rounding_lmbda == 0.01
    options = [*("--input", "x", "--output", "y.safetensors")]
    given = {**vars(train.parse([*options, "--banks", "16", "--paper"])), "paper": False}
    assert given == {**vars(train.parse(options)), **PAPER, "banks": 16}


def test_the_defaults_are_those_of_the_typed_options():
    args = train.parse(["--input", "x", "--output", "y.safetensors"])
    assert ModelOptions.of(vars(args)) == ModelOptions(TrainingOptions(), FreezingOptions())


def test_a_network_without_rate_teaches(trained, data, tmp_path, capsys):
    baseline, taught = tmp_path / "baseline.safetensors", tmp_path / "taught.safetensors"
    argv = ["--input", data[0], *SMALL]
    train.main([*argv, "--output", str(baseline), "--lmbda", "0"])
    train.main([*argv, "--output", str(taught), "--teacher", str(baseline)])
    untaught, taught = FrozenModel.load(trained), FrozenModel.load(taught)
    assert taught.metadata["teachers"] == [FrozenModel.load(baseline).model_id]
    assert untaught.metadata["teachers"] == []
    assert taught.hidden[0][0].tobytes() != untaught.hidden[0][0].tobytes()
    scores = tmp_path / "scores.safetensors"
    train.main([*argv, "--output", str(scores), "--teacher", str(baseline), "--score_bottleneck"])
    assert "Starting as the scores of" in capsys.readouterr().err
    assert FrozenModel.load(scores).num_dims == 6


def test_the_summary_says_what_came_of_it(data, tmp_path, capsys, monkeypatch):
    # The checkpoint of a training that was stopped before the model was written.
    output = tmp_path / "model.safetensors"
    argv = ["--input", data[0], "--validation", data[1], "--output", str(output), "--lmbda", "0", *SMALL[:-6]]
    argv = [*argv[: argv.index("--hidden")], "--hidden", "12", "--lmbda", "0", "--steps", "3", "--no_head"]
    monkeypatch.setattr(FrozenModel, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.main(argv)
    assert not output.exists()
    monkeypatch.undo()
    train.main(argv)
    captured = capsys.readouterr()
    assert "Resuming from step 3" in captured.err
    model = FrozenModel.load(output)
    assert model.head is None
    assert f"Model {model.model_id} in {output}" in captured.out
    for text in ("Trained to step 3", "on 200 videos", "GAP", "bytes a video", "not rounded", "tensorboard --logdir"):
        assert text in captured.out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_training_is_stopped_and_goes_on_to_the_same_model(trained, data, tmp_path, signum):
    output, work_dir = tmp_path / "model.safetensors", tmp_path / "model.training"
    argv = ["train", "--input", data[0], "--validation", data[1], "--output", str(output), *SMALL, "--decay_steps", "1"]
    argv += ["--checkpoint_every", "1"]
    command = [sys.executable, "-m", "vidpress.pipeline.launching.cli", *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(work_dir.glob("checkpoints/step-*")):
            time.sleep(0.001)
        process.send_signal(signum)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 128 + signum, lines
    *_, last = lines
    assert re.fullmatch(r"vidpress train: stopped at step \d+: run the same command again to resume\.", last), lines
    assert not output.exists()
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Resuming from step" in result.stderr
    whole, resumed = FrozenModel.load(trained), FrozenModel.load(output)
    assert [layer[0].tobytes() for layer in resumed.hidden] == [layer[0].tobytes() for layer in whole.hidden]
    assert resumed.tables.to_bytes() == whole.tables.to_bytes()


def test_a_full_temporary_folder_is_named(data, tmp_path):
    # The nearest to a full disk that anyone may make: no file may grow beyond 1 KiB.
    script = f'ulimit -f 1; exec "{sys.executable}" -m vidpress.pipeline.launching.cli "$@"'
    argv = ["train", "--input", data[0], "--output", str(tmp_path / "m.safetensors"), *SMALL]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(["bash", "-c", script, "-", *argv], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"vidpress train: error: the temporary folder {tmp_path} is full")
    assert "Traceback" not in result.stderr


def interrupt(*args):
    raise KeyboardInterrupt


def refusal(argv, capsys):
    with pytest.raises(SystemExit) as info:
        train.main(argv)
    assert info.value.code in (1, 2)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("vidpress train: error: ")
    return last


def test_an_empty_glob_is_refused(tmp_path, capsys):
    argv = ["--input", str(tmp_path / "none*"), "--output", str(tmp_path / "m.safetensors"), *SMALL]
    assert "none* matches no file" in refusal(argv, capsys)
    assert not list(tmp_path.iterdir())


def test_an_empty_validation_glob_is_refused(data, tmp_path, capsys):
    argv = ["--input", data[0], "--validation", "none*", "--output", str(tmp_path / "m.safetensors"), *SMALL]
    assert "none* matches no file" in refusal(argv, capsys)


def test_an_output_that_exists_is_refused(trained, data, capsys):
    before = trained.read_bytes()
    assert "exists already" in refusal(["--input", data[0], "--output", str(trained), *SMALL], capsys)
    assert trained.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused(data, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    argv = ["--input", data[0], "--output", str(file / "m.safetensors"), *SMALL]
    assert f"cannot be written: {file} is a file, not a folder: name another --output." in refusal(argv, capsys)


def test_a_corrupt_file_is_named(data, tmp_path, capsys):
    (tmp_path / "bad.tfrecord").write_bytes(pathlib.Path(data[1].replace("*", ".tfrecord")).read_bytes()[:-1])
    argv = ["--input", str(tmp_path / "bad*"), "--output", str(tmp_path / "m.safetensors"), *SMALL]
    assert "bad.tfrecord, byte" in refusal(argv, capsys)


def test_a_teacher_that_is_none_is_refused(data, tmp_path, capsys):
    argv = ["--input", data[0], "--output", str(tmp_path / "m.safetensors"), *SMALL]
    assert "no.safetensors" in refusal([*argv, "--teacher", str(tmp_path / "no.safetensors")], capsys)
    (tmp_path / "text.safetensors").write_text("no model")
    assert "text.safetensors" in refusal([*argv, "--teacher", str(tmp_path / "text.safetensors")], capsys)
    random_model(SPEC, num_classes=9).save(tmp_path / "nine.safetensors")
    assert "has 9 classes, not 6" in refusal([*argv, "--teacher", str(tmp_path / "nine.safetensors")], capsys)
    assert not (tmp_path / "m.safetensors").exists()


def test_another_training_in_the_work_folder_is_refused(trained, data, capsys):
    argv = [
        "--input",
        data[0],
        "--output",
        f"{trained}.2.safetensors",
        "--work_dir",
        str(trained.with_name("model.training")),
    ]
    assert "contains a training run with seed 0, not 1" in refusal([*argv, *SMALL, "--seed", "1"], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hidden", "2000x"], "is not a list of sizes"),
        (["--hidden", "0"], "hidden="),
        (["--steps", "0"], "steps=0"),
        (["--seed", "99999999999999999999"], "seed=99999999999999999999 must be below"),
        (["--lmbda", "-1"], "lmbda=-1"),
        (["--lmbda", "0", "--tables", "prior"], "tables=prior needs lmbda above 0"),
        (["--score_bottleneck", "--linear_bottleneck", "8"], "score_bottleneck=True: give one of the two"),
        (["--top_k", "3", "--linear_bottleneck", "8"], "top_k cannot be used with linear_bottleneck"),
        (["--top_k", "21", "--hidden", "20"], "top_k=21 must be at most 20"),
        (["--score_bottleneck", "--classes", "9000"], "num_classes=9000 is too wide to code"),
        (["--hidden", "12,8193"], "hidden=8193 is too wide to code: the last layer may have 8,192 units"),
        (["--lmbda_range", "0.003", "0.006"], "lmbda=0.002 must lie in lmbda_range=0.003 0.006"),
        (["--lmbda_range", "0.001", "0.006", "--tables", "prior"], "tables=prior cannot be used with lmbda_range"),
        (["--features", "rgb"], "--features"),
        (["--learn", "0.1"], "unknown option --learn"),
    ],
)
def test_unusable_options_are_refused(argv, message, tmp_path, capsys):
    output = tmp_path / "m.safetensors"
    assert message in refusal(["--input", "x", "--output", str(output), *argv], capsys)
    assert not output.exists()


def run(code, *argv, **environment):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment)


# Hides modules as where they are not installed: from find_spec, too.
HIDE = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"
MAIN = "import sys; from vidpress.pipeline.launching.cli import main; main(sys.argv[1:])"


@pytest.fixture(params=["train", "freeze", "demo", "evaluate"])
def command(request, tmp_path):
    """A command that needs the training's libraries, what it says it does, and its arguments."""
    return {
        "train": ("train", "training", ["--input", "x", "--output", "y.safetensors"]),
        "freeze": ("freeze", "freezing", ["--training", "t", "--input", "x", "--output", "y.safetensors"]),
        "demo": ("demo", "the demo", ["--output", str(tmp_path / "demo")]),
        "evaluate": (
            "evaluate",
            "evaluating",
            ["--input", "x", "--validation", "x", "--output", str(tmp_path / "evaluation")],
        ),
    }[request.param]


def refused_before_any_work(command, message, tmp_path, names=(), **environment):
    name, doing, arguments = command
    result = run(HIDE.format(names=names) + MAIN, name, *arguments, **environment)
    assert result.returncode == 1, result.stderr
    assert result.stderr == f"vidpress {name}: error: {message.format(doing=doing)}\n"
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_missing_modules_are_named_before_any_work(command, tmp_path):
    names = ("keras", "tensorboard", "PIL", "tensorflow", "jinja2")
    report = command[0] == "evaluate"
    missing = "keras, tensorboard, PIL and jinja2" if report else "keras, tensorboard and PIL"
    extras = "train,report" if report else "train"
    refused_before_any_work(command, f"{{doing}} needs {missing}: pip install 'vidpress[{extras}]'.", tmp_path, names)


@pytest.mark.parametrize(
    ("backend", "extra"), [(None, "train"), ("tensorflow", "train"), ("jax", "jax"), ("torch", "torch")]
)
def test_a_missing_backend_is_named_before_any_work(command, backend, extra, tmp_path):
    environment = {} if backend is None else {"KERAS_BACKEND": backend}
    backend = backend or "tensorflow"
    message = f"{{doing}} needs {backend}, the backend of Keras: pip install 'vidpress[{extra}]'."
    refused_before_any_work(command, message, tmp_path, (backend,), **environment)


@pytest.mark.parametrize("backend", ["nonsense", "", "Tensorflow", "openvino"])
def test_a_backend_that_does_not_train_is_one_line(command, backend, tmp_path):
    message = f"KERAS_BACKEND={backend} is not a backend that can train: use tensorflow, jax or torch."
    refused_before_any_work(command, message, tmp_path, KERAS_BACKEND=backend)


def test_a_backend_of_the_home_folder_is_not_taken(tmp_path):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"backend": "torch"}')
    code = (
        "from vidpress.pipeline.launching import libraries; libraries.load_keras('vidpress train', 'training')\n"
        "import keras; print(keras.backend.backend())"
    )
    result = run(code, HOME=str(tmp_path), KERAS_HOME=str(tmp_path / ".keras"))
    assert result.stdout == "tensorflow\n", result.stderr


def test_nothing_is_said_while_libraries_are_loaded(tmp_path):
    """TensorFlow has no setting for that; what is no log comes through, of whatever wrote it."""
    argv = ["train", "--input", str(tmp_path / "none*"), "--output", str(tmp_path / "m.safetensors")]
    (line,) = run(MAIN, *argv).stderr.splitlines()
    assert line.startswith("vidpress train: error: ")
    assert "none* matches no file" in line
    code = (
        "import os, sys\n"
        "from vidpress.pipeline.launching import libraries\n"
        "with libraries.loading_quietly():\n"
        "    os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called are here\\n')\n"
        "    os.write(2, b'I0000 00:00:1795761541.259108   17740 cudart_stub.cc:31] No GPU.\\n')\n"
        "    print('of Python', file=sys.stderr)\n"
        "    os.write(2, b'E0000 00:00:1.2   3 cuda.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)\\n')\n"
        "    os.write(2, b'E0000 00:00:1795761541.259108   17740 gpu.cc:31] It burns.\\n')\n"
        "print('afterwards', file=sys.stderr)\n"
    )
    said = run(code).stderr.splitlines()
    assert said == ["of Python", "E0000 00:00:1795761541.259108   17740 gpu.cc:31] It burns.", "afterwards"]
    cut_off = code.replace(" It burns.\\n'", " It b'")
    assert cut_off != code
    assert run(cut_off).stderr.splitlines() == [said[0], said[1].removesuffix("urns."), said[2]]
    closed = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "$0" 2>&-', code], capture_output=True, check=False)
    assert (closed.returncode, closed.stdout) == (1, b"")  # of os.write


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("libtensorflow_cc.so.2: failed to map segment from shared object", "there is too little memory for it"),
        ("/lib/libc.so.6: version `GLIBC_9' not found", "install vidpress[train] again"),
    ],
)
@pytest.mark.parametrize("command", ["train", "freeze"])
def test_libraries_that_cannot_be_loaded_are_one_line(command, reason, fix, monkeypatch, capsys, tmp_path):
    def refuse(name):
        raise ImportError(f"{reason}\nand more")

    monkeypatch.setattr(importlib, "import_module", refuse)
    arguments = ["--training", "t"] if command == "freeze" else []
    main = {"train": train, "freeze": freeze}[command].main
    with pytest.raises(SystemExit, match="1"):
        main([*arguments, "--input", "x", "--output", str(tmp_path / "y.safetensors")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vidpress {command}: error: Keras could not be loaded ({reason}): {fix}")


def test_help_does_not_wait_for_keras():
    code = "import sys; from vidpress.pipeline import train\ntry: train.main(['--help'])\nfinally: print(*sys.modules)"
    result = run(code)
    assert "--lmbda" in result.stdout
    assert not {"tensorflow", "keras", "jax", "torch"} & set(result.stdout.split())
