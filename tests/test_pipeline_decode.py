"""The decode job: to integers or to the input. What a job that died leaves is not taken for whole, and completed."""

import dataclasses
import json
import os
import re
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SPEC, forked, frame_level, random_model, write_records

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.frozen.input_decoder import DecoderError
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.examples import parse_record
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
    assert marker == {
        "format_version": 2,
        "model_id": manifest.model_id,
        "generation": 1,
        "format": output_format,
        "features": "z_hat",
    }
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


def test_the_input_is_restored_in_its_own_schema(compact, model, tmp_path):
    """Read by the parsing spec of the starter code of YouTube-8M (readers.py there), and by vidpress itself."""
    tf = pytest.importorskip("tensorflow")
    decode.main([*arguments(compact, tmp_path / "t", "tfrecord"), "--as", "input"])
    decode.main([*arguments(compact, tmp_path / "p", "parquet"), "--as", "input"])
    stored = {
        video_id: (values.tolist(), features)
        for batch in VideoDataset(compact)
        for video_id, values, features in zip(*batch, strict=True)
    }
    restored = {video_id: model.restore(z_hat[None].astype(np.int32))[0] for video_id, (_, z_hat) in stored.items()}
    parsing = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
        "mean_rgb": tf.io.FixedLenFeature([24], tf.float32),
        "mean_audio": tf.io.FixedLenFeature([8], tf.float32),
    }
    files = sorted(map(str, (tmp_path / "t").glob("videos-*.tfrecord")))
    assert len(files) == 3
    payloads = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    parsed = tf.io.parse_example(payloads, parsing)
    labels = tf.sparse.to_dense(parsed["labels"], default_value=-1).numpy()
    x = np.concatenate([parsed["mean_rgb"], parsed["mean_audio"]], axis=1)
    ids = parsed["id"].numpy().tolist()
    assert sorted(ids) == sorted(stored)
    np.testing.assert_array_equal(x, [restored[video_id] for video_id in ids])
    assert [[label for label in row if label >= 0] for row in labels.tolist()] == [stored[each][0] for each in ids]
    training_data = pytest.importorskip("vidpress.model.training.training_data")
    videos = training_data.load_videos(files, SPEC, 7)
    assert len(videos) == sum(bool(values) for values, _ in stored.values())
    table = pq.read_table(tmp_path / "p")
    assert table.schema.names == ["id", "labels", "num_frames", "mean_rgb", "mean_audio"]
    means = [np.stack(table[name].to_numpy()) for name in ("mean_rgb", "mean_audio")]
    np.testing.assert_array_equal(np.concatenate(means, axis=1), [restored[each] for each in table["id"].to_pylist()])
    assert None not in table["num_frames"].to_pylist()
    assert json.loads((tmp_path / "t" / "_SUCCESS").read_text())["features"] == "input"
    for ids, _, features in VideoDataset(compact, features="input"):
        np.testing.assert_array_equal(features, [restored[video_id] for video_id in ids])


def test_another_data_set_in_the_same_folder_has_its_own_decoder(compact, tmp_path):
    """In one process, as a scheduler may run one job after the other."""
    other = random_model(SPEC, seed=1)
    other.save(tmp_path / "other.safetensors")
    folder = tmp_path / "compact"
    shutil.copytree(compact, folder)
    decode.main([*arguments(folder, tmp_path / "first", "parquet"), "--as", "input"])
    shutil.rmtree(folder)
    write_records(tmp_path / "videos", [frame_level(3)])
    model_path = str(tmp_path / "other.safetensors")
    encode.main(["--input", str(tmp_path / "videos"), "--model", model_path, "--output", str(folder)])
    decode.main([*arguments(folder, tmp_path / "second", "parquet"), "--as", "input"])
    table = pq.read_table(tmp_path / "second")
    (z_hat,) = next(iter(VideoDataset(folder))).features
    expected = other.restore(z_hat[None].astype(np.int32))[0]
    found = [np.stack(table[name].to_numpy())[0] for name in ("mean_rgb", "mean_audio")]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_the_keys_of_restored_records_can_be_named(compact, tmp_path, capsys):
    keys = ["--id_key", "video_id", "--labels_key", "classes"]
    decode.main([*arguments(compact, tmp_path / "f", "tfrecord"), "--as", "input", *keys])
    path = max((tmp_path / "f").glob("videos-*"), key=lambda path: path.stat().st_size)
    context, _ = parse_record(next(payload for _, payload in read_tfrecords(path.open("rb"))))
    assert set(context) == {"video_id", "classes", "mean_rgb", "mean_audio"}
    with pytest.raises(SystemExit):
        decode.main([*arguments(compact, tmp_path / "g", "tfrecord"), *keys])
    assert "--id_key and --labels_key are for --as input" in capsys.readouterr().err


@pytest.mark.parametrize("output_format", ["tfrecord", "parquet"])
def test_files_with_other_keys_are_written_again(compact, tmp_path, output_format):
    """A job that died had written them; the next one is told to use other keys."""
    named = [*arguments(compact, tmp_path / "f", output_format), "--as", "input", "--labels_key", "classes"]
    decode.main(named)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    (tmp_path / "f" / "_SUCCESS").unlink()
    decode.main(named[:-2])
    (tmp_path / "f" / "_SUCCESS").unlink()
    others = {path.name: path.read_bytes() for path in (tmp_path / "f").glob("videos-*")}
    assert all(others[name] != expected[name] for name in others)
    decode.main(named)
    assert {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()} == expected


@pytest.mark.parametrize("damage", ["none", "missing", "changed"])
def test_a_data_set_without_its_decoder_is_refused(compact, model, tmp_path, capsys, damage):
    data_set = tmp_path / "compact"
    shutil.copytree(compact, data_set)
    (path,) = data_set.glob("decoder-*")
    match damage:
        case "none":
            manifest = dataclasses.replace(Manifest.load(data_set), decoder=None)
            (data_set / "manifest.json").write_text(manifest.to_json())
            message = f"{data_set} has no decoder of its input: model {model.model_id} was frozen without one"
        case "missing":
            path.unlink()
            message = f"{path} is missing: fetch it again"
        case _:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
            message = f"{path} is not the file that its manifest lists"
    with pytest.raises(SystemExit) as stop:
        decode.main([*arguments(data_set, tmp_path / "f", "tfrecord"), "--as", "input"])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    with pytest.raises((DecoderError, FileNotFoundError), match=re.escape(message)):
        VideoDataset(data_set, features="input")
    assert VideoDataset(data_set).num_dims == model.num_dims  # what is stored can be read


def test_what_a_data_set_cannot_give_is_refused(compact):
    with pytest.raises(ValueError, match="features='x' must be 'z_hat' or 'input'"):
        VideoDataset(compact, features="x")
    with pytest.raises(ValueError, match="is a shard: open its data set, which has the decoder"):
        VideoDataset(min(compact.glob("shard-*")), features="input")
    dataset = VideoDataset(compact, features="input")
    assert (dataset.spec, dataset.num_dims) == (SPEC, 32)
    assert VideoDataset(compact).spec is None


@pytest.mark.parametrize(
    "there", ["complete", "another format", "the input", "another data set", "of an earlier version"]
)
def test_other_features_are_refused(compact, tmp_path, model_path, capsys, there):
    output = tmp_path / "f"
    message = "holds other features already"
    if there == "of an earlier version":
        output.mkdir()
        (output / "features-00000-of-00001.tfrecord").touch()
    elif there == "the input":
        decode.main([*arguments(compact, output, "tfrecord"), "--as", "input"])
        (output / "_SUCCESS").unlink()
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
