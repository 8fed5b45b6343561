"""The decode job: what a job that died leaves is not taken for whole, and the same job completes it."""

import json
import os
import signal

import pyarrow.parquet as pq
import pytest
from conftest import forked, frame_level, write_records

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.pipeline import decode, encode


@pytest.fixture(scope="module")
def compact(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decode")
    write_records(folder / "videos", [frame_level(index) for index in range(100)])
    encode.main(
        ["--input", str(folder / "videos"), "--model", model_path, "--output", str(folder / "out"), "--num_shards", "3"]
    )
    return folder / "out"


def arguments(compact, output, output_format):
    return ["--input", str(compact), "--output", str(output), "--format", output_format]


def count(folder, output_format) -> tuple[int, int]:
    """How many videos a reader of the folder finds, and how many different ones."""
    if output_format == "parquet":
        ids = pq.read_table(folder)["id"].to_pylist()
    else:
        paths = folder.glob("*.tfrecord")
        ids = [payload for path in paths for _, payload in read_tfrecords(path.open("rb"))]
    return len(ids), len(set(ids))


@pytest.mark.parametrize("output_format", ["tfrecord", "parquet"])
def test_the_marker_lists_what_was_written(compact, tmp_path, output_format):
    decode.main(arguments(compact, tmp_path / "f", output_format))
    marker = json.loads((tmp_path / "f" / "_SUCCESS").read_text())
    files = {file.pop("name"): file for file in marker.pop("files")}
    manifest = Manifest.load(compact)
    assert marker == {"format_version": 1, "model_id": manifest.model_id, "generation": 1, "format": output_format}
    assert {path.name for path in (tmp_path / "f").iterdir()} == {*files, "_SUCCESS"}
    assert all((tmp_path / "f" / name).stat().st_size == file["bytes"] for name, file in files.items())
    assert sorted(file["rows"] for file in files.values()) == sorted(entry.rows for entry in manifest.shards)
    assert count(tmp_path / "f", output_format) == (100, 100)


@pytest.mark.parametrize("output_format", ["tfrecord", "parquet"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_job_that_is_killed_is_completed_by_the_same_job(compact, tmp_path, output_format, at):
    output = tmp_path / "f"
    replace = os.replace

    def die(*names):
        die.calls += 1
        if die.calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)

    die.calls = 0

    def target():
        os.replace = die
        decode.main(arguments(compact, output, output_format))

    process = forked(target)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (output / "_SUCCESS").exists()
    assert len(list(output.glob("features-*"))) == at - 1
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("features-*")}
    decode.main(arguments(compact, output, output_format))
    assert (output / "_SUCCESS").exists()
    assert count(output, output_format) == (100, 100)
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("output_format", ["tfrecord", "parquet"])
@pytest.mark.parametrize("damage", ["empty", "cut", "shorter", "another byte"])
def test_a_file_that_is_not_what_was_written_is_written_again(compact, tmp_path, output_format, damage, caplog):
    output = tmp_path / "f"
    decode.main(arguments(compact, output, output_format))
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    path = max(output.glob("features-*"), key=lambda path: path.stat().st_size)
    data = whole[path.name]
    (output / "_SUCCESS").unlink()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "shorter" if output_format == "tfrecord":  # by a whole record
            path.write_bytes(data[16 + int.from_bytes(data[:8], "little") :])
        case _:
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    decode.main(arguments(compact, output, output_format))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole
    assert f"{path} is not what was written: it is written again." in caplog.text


@pytest.mark.parametrize("there", ["complete", "another format", "another data set", "of an earlier version"])
def test_other_features_are_refused(compact, tmp_path, model_path, capsys, there):
    output = tmp_path / "f"
    message = "holds other features already"
    if there == "of an earlier version":
        output.mkdir()
        (output / "features-00000-of-00001.tfrecord").touch()
    elif there == "another data set":
        write_records(tmp_path / "videos", [frame_level(7)])
        encode.main(["--input", str(tmp_path / "videos"), "--model", model_path, "--output", str(tmp_path / "out")])
        decode.main(arguments(tmp_path / "out", output, "tfrecord"))
        (output / "_SUCCESS").unlink()
    else:
        decode.main(arguments(compact, output, "parquet" if there == "another format" else "tfrecord"))
        if there == "complete":
            message = "holds features already, complete with _SUCCESS"
        else:
            (output / "_SUCCESS").unlink()
    before = {path.name for path in output.iterdir()}
    with pytest.raises(SystemExit) as stop:
        decode.main(arguments(compact, output, "tfrecord"))
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert "name another folder, or remove them first" in error
    assert {path.name for path in output.iterdir()} == before
