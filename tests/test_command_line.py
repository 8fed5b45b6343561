"""What the commands say to mistyped options, odd paths and odd files: one line, the right exit code, no traceback."""

import dataclasses
import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import SPEC, random_model, video_level, write_records

from vidpress.model.files import local_files
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.pipeline import decode, encode, inspect, verify
from vidpress.pipeline.launching import cli
from vidpress.pipeline.running import runners

TWO_PROCESSES = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `vidpress` as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "vidpress.pipeline.launching.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def refused(capsys, main, *arguments: str, code: int) -> str:
    """Run a command that must end with a code, and return its only line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.fixture(scope="module")
def data_set(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_set")
    path = write_records(folder / "a.tfrecord", [video_level(index) for index in range(30)])
    encode.main(["--input", path, "--model", model_path, "--output", str(folder / "out")])
    return folder / "out"


ENCODE = ("--input", "x", "--model", "m", "--output", "o")
DECODE = ("--input", "x", "--output", "o")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", *ENCODE, "--num-shards", "4"], "unknown option --num-shards: did you mean --num_shards?"),
        (["encode", *ENCODE, "--num-shards=4"], "unknown option --num-shards: did you mean --num_shards?"),
        (["encode", *ENCODE, "--num_shard", "4"], "unknown option --num_shard: did you mean --num_shards?"),
        (["encode", *ENCODE, "--rnuner", "DataflowRunner"], "unknown option --rnuner: did you mean --runner?"),
        (["encode", *ENCODE, "--regoin", "x"], "unknown option --regoin: did you mean --region?"),
        (["encode", *ENCODE, "--Runner", "x"], "unknown option --Runner: did you mean --runner?"),
        (["encode", "--modle", "m"], "unknown option --modle: did you mean --model?"),
        (["encode", *ENCODE, "--xyzzyx"], "unknown option --xyzzyx: `vidpress encode --help` lists the options."),
        (["encode", "stray", *ENCODE], "'stray' belongs to no option: `vidpress encode --help` lists the options."),
        (["decode", *DECODE, "--fromat", "parquet"], "unknown option --fromat: did you mean --format?"),
        (["decode", *DECODE, "--runner", "FnApiRunner", "x"], "'x' belongs to no option"),
        (["decode", *DECODE, "--direct_running_mode", "threads"], "argument --direct_running_mode: invalid choice"),
        (["verify", "--sampel", "3", "x"], "unknown option --sampel: did you mean --sample?"),
        (["inspect", "x", "y"], "'y' belongs to no option"),
        (["train", "--weight-decay", "0"], "unknown option --weight-decay: did you mean --weight_decay?"),
        (["freeze", "--byte", "60"], "unknown option --byte: did you mean --bytes?"),
        (["evaluate", "--report-only"], "unknown option --report-only: did you mean --report_only?"),
    ],
)
def test_a_mistyped_option_is_refused_with_the_nearest_name(arguments, message, capsys):
    line = refused(capsys, cli.main, *arguments, code=2)
    assert line.startswith(f"vidpress {arguments[0]}: error: {message}")


def test_a_mistyped_command_is_refused_with_the_nearest_name(capsys):
    assert refused(capsys, cli.main, "encod", code=2) == "vidpress: error: no command 'encod': did you mean encode?"


@pytest.mark.parametrize(
    "beam_arguments",
    [
        ["--labels=airflow-version=v3-3-2", "--job_name=encode-1", "--runner=DirectRunner"],
        ["--region", "europe-west4", "--experiments=use_runner_v2", "--experiments", "x", "--streaming"],
        ["--template_location", "gs://bucket/t", "--an_option_of_the_launcher=7", "--runner=DataflowRunner"],
        [*TWO_PROCESSES, "--temp_location=/tmp/x", "--save_main_session"],
    ],
)
def test_beams_own_options_are_known(beam_arguments, monkeypatch):
    monkeypatch.setattr(runners, "_check_remote", lambda *_: None)  # of paths that are local here
    args, options = runners.parse_args(encode.parser(), [*ENCODE, "--num_shards", "3", *beam_arguments])
    assert args.num_shards == 3
    given = [argument.split("=")[0].removeprefix("--") for argument in beam_arguments if argument.startswith("--")]
    known = options.get_all_options(drop_default=False)
    for name in set(given) - {"an_option_of_the_launcher"}:
        assert name in known


@pytest.mark.parametrize("name", ["--num-shards", "--Num_Shards", "--num_shard"])
def test_a_templates_launcher_has_options_of_its_own_but_not_such(name, capsys):
    arguments = [*ENCODE, "--template_location", "gs://bucket/t", "--an_option_of_the_launcher=7", name, "4"]
    assert f"unknown option {name}: did you mean --num_shards?" in refused(capsys, encode.main, *arguments, code=2)


def test_what_a_runner_lacks_is_said_in_one_line(tmp_path, model_path, capsys, monkeypatch):
    monkeypatch.setattr(runners, "_check_remote", lambda *_: None)  # of paths that are local here
    write_records(tmp_path / "a", [video_level(0)])
    arguments = ["--input", str(tmp_path / "a"), "--model", model_path, "--output", str(tmp_path / "out")]
    line = refused(capsys, encode.main, *arguments, "--runner", "dataflow", code=1)
    assert line.startswith("vidpress encode: error: --runner dataflow: ")
    assert "Missing required option: region." in line


@pytest.mark.parametrize(
    "uri",
    ["s3://b/x", "s3a://b/x", "hdfs://h/x", "https://example.org/x", "http://x/y", "abfs://a/x", "azfs://a/b/x", ""],
)
@pytest.mark.parametrize(
    ("main", "arguments", "option"),
    [
        (encode.main, {"--input": "a", "--model": "m.safetensors", "--output": "o"}, "--input"),
        (encode.main, {"--input": "a", "--model": "m.safetensors", "--output": "o"}, "--model"),
        (encode.main, {"--input": "a", "--model": "m.safetensors", "--output": "o"}, "--output"),
        (decode.main, {"--input": "a", "--output": "o"}, "--input"),
        (decode.main, {"--input": "a", "--output": "o"}, "--output"),
    ],
)
def test_other_stores_are_refused_in_one_line(main, arguments, option, uri, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [each for pair in {**arguments, option: uri}.items() for each in pair]
    line = refused(capsys, main, *given, code=2)
    assert f"argument {option}: " in line
    assert (f"{uri.partition('://')[0]}:// is not supported" if uri else "An empty path") in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("main", [verify.main, inspect.main])
@pytest.mark.parametrize("uri", ["s3://b/x", ""])
def test_other_stores_are_refused_by_what_reads(main, uri, capsys):
    assert "argument path: " in refused(capsys, main, uri, code=2)


def test_uris_of_local_files_are_paths(data_set, model_path, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--input", f"file://{data_set.parent}/*.tfrecord", "--model", f"file://{model_path}"]
    encode.main([*arguments, "--output", f"file://{output}"])
    assert (output / "manifest.json").exists()
    capsys.readouterr()
    verify.main([f"file://{output}"])
    assert capsys.readouterr().out.startswith(f"{output} is whole: 30 videos of model ")
    decode.main(["--input", f"file://{output}", "--output", f"file://{tmp_path}/features"])
    assert list((tmp_path / "features").iterdir())


@pytest.mark.parametrize("number", ["99999999999999999999", "1000000000000", "100001"])
def test_too_many_shards_are_refused(number, capsys):
    line = refused(capsys, encode.main, *ENCODE, "--num_shards", number, code=2)
    assert "argument --num_shards: " in line


@pytest.mark.parametrize("prog", ["train", "freeze"])
def test_a_model_is_named_as_models_are(prog, capsys):
    extra = [] if prog == "train" else ["--training", "x"]
    line = refused(capsys, cli.main, prog, *extra, "--input", "x", "--output", "foo", code=2)
    assert "argument --output: 'foo' must end in .safetensors" in line


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_model_that_is_no_file(kind, tmp_path, capsys):
    path = pathlib.Path("/dev/zero") if kind == "device" else tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    records = write_records(tmp_path / "a.tfrecord", [video_level(0)])
    output = str(tmp_path / "out")
    line = refused(capsys, encode.main, "--input", records, "--model", str(path), "--output", output, code=1)
    assert line.startswith(f"vidpress encode: error: {path} is a ")
    assert not pathlib.Path(output).exists()


@pytest.mark.parametrize("main", [verify.main, inspect.main])
@pytest.mark.parametrize("name", ["missing", "a.tfrecord", "out/manifest.json", "."])
def test_what_is_no_data_set_is_named(main, name, data_set, capsys):
    path = data_set.parent / name
    line = refused(capsys, main, str(path), code=1)
    assert str(path) in line
    assert any(fix in line for fix in ("check the path", "folder", "is not a vidpress data set"))


@pytest.mark.parametrize("below", ["", "/below/it"])
@pytest.mark.parametrize("job", ["encode", "decode"])
def test_an_output_that_is_a_file_is_named(job, below, data_set, model_path, tmp_path, capsys):
    file = tmp_path / "m.safetensors"
    file.touch()
    records = write_records(tmp_path / "a.tfrecord", [video_level(0)])
    inputs = ["--input", records, "--model", model_path] if job == "encode" else ["--input", str(data_set)]
    main = encode.main if job == "encode" else decode.main
    line = refused(capsys, main, *inputs, "--output", f"{file}{below}", code=1)
    assert line == (
        f"vidpress {job}: error: --output {file}{below} cannot be written: {file} is a file, not a folder: "
        "name another --output."
    )


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "there is no permission: give it, or run as a user who has it."),
        (errno.EROFS, "the file system is read-only: name another folder."),
        (errno.ENOSPC, "the disk is full: make room, and run the same command again."),
    ],
)
def test_an_output_that_cannot_be_written_to_is_named(number, fix, there, data_set, tmp_path, monkeypatch, capsys):
    def refuse(path, *_args, **_kwargs):
        raise OSError(number, os.strerror(number), path)

    output = tmp_path / "out"
    if there:
        output.mkdir()
    monkeypatch.setattr(local_files, "open", refuse, raising=False)
    monkeypatch.setattr(os, "mkdir", refuse)
    line = refused(capsys, decode.main, "--input", str(data_set), "--output", str(output), code=1)
    assert line == f"vidpress decode: error: --output {output} cannot be written: {fix}"


@pytest.mark.parametrize("append", [False, True])
def test_a_folder_in_a_manifests_place_is_refused_before_any_work(append, model_path, tmp_path, capsys):
    records = write_records(tmp_path / "a.tfrecord", [video_level(0)])
    name = "manifest.json"
    (tmp_path / "out" / name).mkdir(parents=True)
    arguments = ["--input", records, "--model", model_path, "--output", str(tmp_path / "out")]
    line = refused(capsys, encode.main, *arguments, *(["--append"] if append else []), code=1)
    assert line.startswith(f"vidpress encode: error: --output {tmp_path / 'out'} cannot be written: ")
    assert f"{tmp_path / 'out' / name} is a folder, where a file has to go: remove it" in line
    assert os.listdir(tmp_path / "out") == [name]


def test_a_folder_in_the_next_manifests_place_is_refused(data_set, model_path, tmp_path, capsys):
    shutil.copytree(data_set, tmp_path / "out")
    (tmp_path / "out" / "manifest-00002.json").mkdir()
    records = write_records(tmp_path / "b.tfrecord", [video_level(99)])
    arguments = ["--input", records, "--model", model_path, "--output", str(tmp_path / "out"), "--append"]
    assert "manifest-00002.json is a folder" in refused(capsys, encode.main, *arguments, code=1)


def test_a_folder_in_the_place_of_features_is_refused(data_set, tmp_path, capsys):
    decode.main(["--input", str(data_set), "--output", str(tmp_path / "out")])
    (name,) = (path.name for path in (tmp_path / "out").glob("features-*"))
    (tmp_path / "again" / name).mkdir(parents=True)
    capsys.readouterr()
    line = refused(capsys, decode.main, "--input", str(data_set), "--output", str(tmp_path / "again"), code=1)
    assert f"{tmp_path / 'again' / name} is a folder" in line


@pytest.mark.parametrize("name", ["d.parquet", "d.safetensors"])
def test_a_data_sets_folder_may_have_any_name(name, data_set, tmp_path, capsys):
    shutil.copytree(data_set, tmp_path / name)
    inspect.main([str(tmp_path / name)])
    assert capsys.readouterr().out.startswith(f"vidpress data set {tmp_path / name}\n")
    assert VideoDataset(tmp_path / name).num_videos == VideoDataset(data_set).num_videos


def test_metadata_of_strangers_is_shown_as_text(tmp_path, capsys):
    note = "\x1b]0;owned\x07\x1b[2J all checks passed"
    model = dataclasses.replace(random_model(SPEC), metadata={"note": note, "list": list(range(1000))})
    model.save(tmp_path / "m.safetensors")
    inspect.main([str(tmp_path / "m.safetensors")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b]0;owned\\x07\\x1b[2J all checks passed" in out
    assert max(map(len, out.splitlines())) < 300
    assert "characters)" in out


def test_a_model_has_a_short_repr():
    text = repr(random_model(SPEC))
    assert text.startswith("<FrozenModel ")
    assert text.endswith(": rgb:24,audio:8, 32 -> 40>")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "demo"])
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["help", name])
    assert stop.value.code == 0
    assert f"  vidpress {name} " in capsys.readouterr().out.partition("example")[2]


def test_help_lists_the_commands(capsys):
    cli.main(["help"])
    assert set(cli.COMMANDS) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "workers", [(), TWO_PROCESSES, ("--direct_num_workers", "2", *TWO_PROCESSES[2:3], "multi_threading")]
)
def test_an_error_of_a_worker_is_one_line(model_path, tmp_path, workers):
    records = write_records(tmp_path / "a.tfrecord", [video_level(index) for index in range(20)] + [b"rubbish"])
    arguments = ["--input", records, "--model", model_path, "--output", str(tmp_path / "out"), *workers]
    result = command("encode", *arguments, "--max_bad_fraction", "0")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "Compiling for this processor" not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(
        "vidpress encode: error: 1 of 21 records are bad, more than --max_bad_fraction=0 allows."
    )
    assert "while running" not in lines[0]


@pytest.mark.parametrize(
    "name", ["train", "freeze", "encode", "decode", "compact", "get", "verify", "evaluate", "demo"]
)
def test_help_says_each_default_once(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: )" not in text
    assert not re.search(r"\(default: [^)]*\) \(default:", text)


@pytest.mark.parametrize("workers", [(), TWO_PROCESSES])
def test_a_job_that_succeeds_says_nothing_else(model_path, tmp_path, workers):
    records = write_records(tmp_path / "a.tfrecord", [video_level(index) for index in range(20)])
    result = command("encode", "--input", records, "--model", model_path, "--output", str(tmp_path / "out"), *workers)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if "Compiling for this processor" not in line] == []
    assert "1 shard by model " in result.stdout


def test_a_system_without_masks_of_cpus(model_path, tmp_path):
    """As macOS."""
    (tmp_path / "sitecustomize.py").write_text("import os\ndel os.sched_getaffinity\n")
    records = write_records(tmp_path / "a.tfrecord", [video_level(0)])
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    arguments = ["--input", records, "--model", model_path, "--output", str(tmp_path / "out")]
    result = command("encode", *arguments, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr


def test_a_full_disk_is_one_line(model_path, tmp_path):
    records = write_records(tmp_path / "a.tfrecord", [video_level(index) for index in range(50)])
    # The nearest to a full disk that anyone may make: no file may grow beyond 1 KiB.
    script = f'ulimit -f 1; exec "{sys.executable}" -m vidpress.pipeline.launching.cli "$@"'
    arguments = ["encode", "--input", records, "--model", model_path, "--output", str(tmp_path / "out")]
    environment = {**os.environ, "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", "")}
    result = subprocess.run(["bash", "-c", script, "-", *arguments], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert "the file grew beyond the limit on a file's size" in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
