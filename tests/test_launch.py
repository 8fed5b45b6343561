"""What every job does before and after its pipeline."""

import logging
import os
import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import StandardOptions
from conftest import video_level, write_records

from vidpress.model import cpus
from vidpress.pipeline import decode, encode
from vidpress.pipeline.running import beam_jobs


@pytest.mark.parametrize("runner", ["DaskRunner", "daskrunner", "apache_beam.runners.dask.dask_runner.DaskRunner"])
@pytest.mark.parametrize("job", [encode, decode])
def test_refuses_a_runner_that_loses_records(job, runner, tmp_path, capsys):
    arguments = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), f"--runner={runner}"]
    with pytest.raises(SystemExit) as stop:
        job.main([*arguments, "--model", "m"] if job is encode else arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        f"{job.parser().prog}: error: --runner {runner} is refused because it mixes up the outputs of a step and loses "
        "records: use FnApiRunner, PrismRunner, FlinkRunner or DataflowRunner."
    )
    assert not (tmp_path / "out").exists()


def test_local_paths_are_absolute_and_uris_as_they_are(tmp_path, monkeypatch):
    """A worker on another machine, or of a pool, runs in another folder."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--input", "a/*.tfrecord", "gs://bucket/b", "--model", "m.safetensors", "--output", "../out"]
    args = encode.parser().parse_args(arguments)
    assert args.input == [f"{tmp_path}/a/*.tfrecord", "gs://bucket/b"]
    assert (args.model, args.output) == (f"{tmp_path}/m.safetensors", f"{tmp_path.parent}/out")
    args = decode.parser().parse_args(["--input", "out", "--output", "gs://bucket/features"])
    assert (args.input, args.output) == (f"{tmp_path}/out", "gs://bucket/features")


def test_runner_is_the_one_in_memory_unless_named():
    arguments = ["--input", "a", "--model", "m", "--output", "o"]
    assert beam_jobs.runs_in_this_process(beam_jobs.parse_args(encode.parser(), arguments)[1])
    assert not beam_jobs.runs_in_this_process(
        beam_jobs.parse_args(encode.parser(), [*arguments, "--runner=PrismRunner"])[1]
    )


def test_metrics_are_logged_at_the_end(model_path, tmp_path, caplog):
    path = write_records(tmp_path / "a.tfrecord", [video_level(index) for index in range(30)])
    with caplog.at_level(logging.INFO, logger="vidpress"):
        encode.main(["--input", path, "--model", model_path, "--output", str(tmp_path / "out")])
    logged = [record.getMessage() for record in caplog.records if record.name == "vidpress"]
    assert {"records-read: 30", "videos-encoded: 30", "shards-written: 1"} <= set(logged)
    assert any(message.startswith("code-bytes-per-video: 30 values from ") for message in logged)


REFUSED = ("BundleBasedDirectRunner", "InteractiveRunner", "SparkRunner", "NoSuchRunner", "my.FlinkRunner")


@pytest.mark.parametrize("runner", REFUSED)
def test_a_runner_that_nobody_tested_is_refused(runner, tmp_path, capsys):
    arguments = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--runner", runner]
    with pytest.raises(SystemExit) as stop:
        decode.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"vidpress decode: error: --runner {runner} is not tested: use FnApiRunner, PrismRunner, FlinkRunner or "
        "DataflowRunner, or give --allow_untested_runner to try it.\n"
    )


@pytest.mark.parametrize(
    ("runner", "taken"),
    [
        *(("DirectRunner", "FnApiRunner"), ("direct", "FnApiRunner"), ("fnapirunner", "FnApiRunner")),
        ("apache_beam.runners.portability.fn_api_runner.FnApiRunner", "FnApiRunner"),
        *(("prism", "prism"), ("FlinkRunner", "FlinkRunner")),
    ],
)
def test_runners_that_are_tested_are_taken(runner, taken):
    _, options = beam_jobs.parse_args(decode.parser(), ["--input", "a", "--output", "o", "--runner", runner])
    assert options.view_as(StandardOptions).runner == taken


@pytest.mark.parametrize("runner", ["DataflowRunner", "dataflow", "apache_beam.runners.dataflow.DataflowRunner"])
def test_dataflow_takes_no_local_paths(runner, capsys):
    pytest.importorskip("apache_beam.io.gcp.gcsio", reason="needs the extra vidpress[gcp]")
    remote = ["--input", "gs://b/a", "--output", "gs://b/o", "--runner", runner]
    _, options = beam_jobs.parse_args(decode.parser(), remote)
    assert options.view_as(StandardOptions).runner == runner
    for local in (["--input", "a", *remote[2:]], [*remote[:2], "--output", "/tmp/o", *remote[4:]]):
        with pytest.raises(SystemExit):
            beam_jobs.parse_args(decode.parser(), local)
        assert (
            "is on this machine, where Dataflow's workers are not: name gs:// paths alone." in capsys.readouterr().err
        )


def test_a_name_that_is_not_utf_8_is_refused(capsys):
    with pytest.raises(SystemExit):
        decode.main(["--input", "a", "--output", os.fsdecode(b"out\xe9")])
    assert "out\\udce9' is not UTF-8, and Arrow opens no other names: rename it" in capsys.readouterr().err


def test_an_untested_runner_can_be_asked_for(capsys):
    arguments = ["--input", "a", "--output", "o", "--allow_untested_runner", "--runner"]
    _, options = beam_jobs.parse_args(decode.parser(), [*arguments, "BundleBasedDirectRunner"])
    assert options.view_as(StandardOptions).runner == "BundleBasedDirectRunner"
    with pytest.raises(SystemExit):
        beam_jobs.parse_args(decode.parser(), [*arguments, "NoSuchRunner"])
    assert "--runner NoSuchRunner is not available: " in capsys.readouterr().err


def test_a_store_that_needs_an_extra_is_refused_at_once(tmp_path):
    """Beam registers what reads gs:// if the extra is installed."""
    code = (
        "import sys; sys.modules['apache_beam.io.gcp.gcsfilesystem'] = None\n"
        "from vidpress.pipeline import decode; decode.main(sys.argv[1:])"
    )
    arguments = ["--input", "gs://bucket/x", "--output", str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "vidpress decode: error: gs://bucket/x: jobs need vidpress[gcp] for gs:// paths: pip install 'vidpress[gcp]'.\n"
    )


def test_a_container_with_fewer_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "_LIMIT", tmp_path / "cpu.max")
    whole = cpus.num_cpus()
    for limit, number in (("100000 100000", 1), ("max 100000", whole), ("1 100000", 1), ("9900000 100000", whole)):
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
        assert cpus.num_cpus() == number
