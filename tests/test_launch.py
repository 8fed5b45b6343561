"""What every job does before and after its pipeline."""

import logging

import pytest
from conftest import video_level, write_records

from vidpress.pipeline import decode, encode, launch


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
        "records: take FnApiRunner, PrismRunner, FlinkRunner or DataflowRunner."
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
    assert launch.runs_in_this_process(launch.parse_args(encode.parser(), arguments)[1])
    assert not launch.runs_in_this_process(launch.parse_args(encode.parser(), [*arguments, "--runner=PrismRunner"])[1])


def test_metrics_are_logged_at_the_end(model_path, tmp_path, caplog):
    path = write_records(tmp_path / "a.tfrecord", [video_level(index) for index in range(30)])
    with caplog.at_level(logging.INFO, logger="vidpress"):
        encode.main(["--input", path, "--model", model_path, "--output", str(tmp_path / "out")])
    logged = [record.getMessage() for record in caplog.records if record.name == "vidpress"]
    assert {"records-read: 30", "videos-encoded: 30", "shards-written: 1"} <= set(logged)
    assert any(message.startswith("code-bytes-per-video: 30 values from ") for message in logged)
