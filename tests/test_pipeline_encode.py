"""The encode and decode jobs: what comes out is what a direct computation gives."""

import glob
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPO, SPEC, frame_level, random_model, video_level, write_records
from data_sets import write_data_set

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import FeatureSpec
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.examples import float_values, parse_record
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.pipeline import decode, encode, inspect
from vidpress.pipeline.launching import cli


def direct(model, paths):
    """By id: labels, number of frames and z_hat, computed without Beam."""
    videos = []
    for path in paths:
        with open(path, "rb") as file:
            videos += [pool_frames(parse_video(payload, model.spec), model.spec) for _, payload in read_tfrecords(file)]
    z_hat = model.quantize(np.stack([video.x for video in videos]))
    return {
        video.id: (video.labels.tolist(), video.num_frames, row.tolist())
        for video, row in zip(videos, z_hat, strict=True)
    }


def read_back(folder):
    found = {}
    for batch in VideoDataset(folder):
        for video_id, labels, features in zip(*batch, strict=True):
            found[video_id] = (labels.tolist(), features.astype(int).tolist())
    return found


@pytest.fixture
def inputs(tmp_path):
    """Two files, frame level and video level mixed."""
    return [
        write_records(tmp_path / "frames.tfrecord", [frame_level(index) for index in range(150)]),
        write_records(tmp_path / "means.tfrecord", [video_level(index) for index in range(150, 300)]),
    ]


def test_encode_equals_the_direct_computation(model, model_path, inputs, tmp_path, capsys):
    output = tmp_path / "out"
    encode.main(
        [
            "--input",
            str(tmp_path / "*.tfrecord"),
            "--model",
            model_path,
            "--output",
            str(output),
            "--num_shards",
            "3",
        ]
    )
    expected = direct(model, inputs)
    assert read_back(output) == {key: (labels, z_hat) for key, (labels, _, z_hat) in expected.items()}
    rows = pq.read_table(sorted(output.glob("shard-*")), columns=["id", "num_frames"]).to_pylist()
    assert {row["id"]: row["num_frames"] for row in rows} == {key: frames for key, (_, frames, _) in expected.items()}
    manifest = Manifest.load(output)
    assert (manifest.counts.records, manifest.counts.videos, manifest.model_id) == (300, 300, model.model_id)
    assert manifest.counts.input_bytes == sum(
        len(frame_level(i)) if i < 150 else len(video_level(i)) for i in range(300)
    )
    printed = capsys.readouterr().out
    assert re.search(r"Encoded 300 videos in [\d.]+ s", printed)
    assert f"3 shards by model {model.model_id} in {output}" in printed


def test_rows_are_sorted_within_a_shard(model_path, inputs, tmp_path):
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(tmp_path / "out"), "--num_shards", "2"])
    for path in (tmp_path / "out").glob("*.parquet"):
        ids = pq.read_table(path)["id"].to_pylist()
        assert ids == sorted(ids)


def test_gzip_input(model, model_path, inputs, tmp_path):
    packed = []
    for path in inputs:
        packed.append(path + ".gz")
        pathlib.Path(packed[-1]).write_bytes(gzip.compress(pathlib.Path(path).read_bytes()))
    encode.main(["--input", *packed, "--model", model_path, "--output", str(tmp_path / "out")])
    assert read_back(tmp_path / "out") == {k: (labels, z) for k, (labels, _, z) in direct(model, inputs).items()}


def test_encode_as_a_module(model_path, inputs, tmp_path):
    """`python -m vidpress.pipeline.encode`, as Beam users start their jobs, from another folder."""
    command = [sys.executable, "-m", "vidpress.pipeline.encode", "--input", *inputs, "--model", model_path]
    result = subprocess.run(
        [*command, "--output", "out", "--labels=team=video", "--runner=FnApiRunner"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Encoded 300 videos" in result.stdout
    assert Manifest.load(tmp_path / "out").counts.videos == 300


@pytest.mark.parametrize("output_format", ["tfrecord", "parquet"])
def test_decode_gives_the_rounded_activations(model, model_path, inputs, tmp_path, output_format, capsys):
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(tmp_path / "out"), "--num_shards", "2"])
    features = tmp_path / "features"
    decode.main(["--input", str(tmp_path / "out"), "--output", str(features), "--format", output_format])
    expected = direct(model, inputs)
    found = {}
    if output_format == "parquet":
        for row in pq.read_table(features).to_pylist():
            found[row["id"]] = (row["labels"], row["num_frames"], row["z_hat"])
    else:
        for path in features.glob("features-*.tfrecord"):
            with path.open("rb") as file:
                for _, payload in read_tfrecords(file):
                    context, _ = parse_record(payload)
                    video = parse_decoded(context)
                    found[video[0]] = (
                        video[1],
                        expected[video[0]][1],
                        float_values(context["z_hat"]).tolist(),
                    )
    assert found == expected
    assert "Decoded 300 videos" in capsys.readouterr().out


def parse_decoded(context):
    from vidpress.model.records import examples

    labels = list(examples.int64_values(context["labels"])) if "labels" in context else []
    return examples.bytes_values(context["id"])[0], labels


def test_decoded_tfrecords_are_read_by_tf_data(model, model_path, inputs, tmp_path):
    tf = pytest.importorskip("tensorflow")
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(tmp_path / "out")])
    decode.main(["--input", str(tmp_path / "out"), "--output", str(tmp_path / "features")])
    schema = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
        "z_hat": tf.io.FixedLenFeature([model.num_dims], tf.float32),
    }
    files = glob.glob(str(tmp_path / "features" / "*.tfrecord"))
    dataset = tf.data.TFRecordDataset(files).map(lambda record: tf.io.parse_single_example(record, schema))
    found = {row["id"].numpy(): row["z_hat"].numpy().astype(int).tolist() for row in dataset}
    assert found == {key: z_hat for key, (_, _, z_hat) in direct(model, inputs).items()}


def test_decode_refuses_what_is_there_already(model_path, inputs, tmp_path, capsys):
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(tmp_path / "out")])
    arguments = ["--input", str(tmp_path / "out"), "--output", str(tmp_path / "features")]
    decode.main(arguments)
    with pytest.raises(SystemExit) as stop:
        decode.main(arguments)
    assert stop.value.code == 1
    assert "holds features already" in capsys.readouterr().err


def test_inspect(model, model_path, inputs, tmp_path, capsys):
    output = tmp_path / "out"
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(output), "--num_shards", "2"])
    capsys.readouterr()
    for path in (output, model_path, glob.glob(f"{output}/*.parquet")[0]):
        inspect.main([str(path)])
        printed = capsys.readouterr().out
        assert model.model_id in printed
        assert "rgb:24,audio:8" in printed
    inspect.main([str(output)])
    printed = capsys.readouterr().out
    counts = Manifest.load(output).counts
    assert re.search(r"videos +300 in 2 shards", printed)
    assert f"{counts.code_bytes:,} bytes, {counts.code_bytes / 300:,.1f} a video" in printed
    assert "every code decodes" in printed


def test_inspect_opens_one_shard_after_the_other(model, tmp_path):
    write_data_set(tmp_path, model, 400, num_shards=150)
    script = f'ulimit -n 100; exec "{sys.executable}" -m vidpress.pipeline.launching.cli inspect "$1"'
    result = subprocess.run(["bash", "-c", script, "-", str(tmp_path)], capture_output=True, text=True)
    assert "400 in 1" in result.stdout, result.stderr
    assert "every code decodes" in result.stdout


def test_inspect_finds_damage(model_path, inputs, tmp_path, capsys):
    output = tmp_path / "out"
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(output)])
    (path,) = output.glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    for damaged in (output, path):
        with pytest.raises(SystemExit) as stop:
            inspect.main([str(damaged)])
        assert stop.value.code == 1
        assert path.name in capsys.readouterr().err


def test_cli_lists_and_runs_the_commands(model_path, capsys):
    cli.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)
    cli.main(["inspect", model_path])
    assert "vidpress model" in capsys.readouterr().out
    cli.main(["--version"])
    assert re.fullmatch(r"vidpress \d+\.\d+\.\d+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        cli.main(["encoed"])
    assert "no command 'encoed': did you mean encode?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "spec", "count"),
    [
        ("yt8m_v2_video/validate0119.tfrecord", FeatureSpec(), None),
        ("yt8m_v1_video/*.tfrecord", FeatureSpec(), None),
        ("yt8m_frame/*.tfrecord", FeatureSpec(), 1),
        (
            "audioset_vggish_frames/bal_train-00000-of-00008.tfrecord",
            FeatureSpec.parse("audio_embedding:128"),
            None,
        ),
    ],
)
def test_real_records_of_every_kind_are_encoded(data_dir, pattern, spec, count, tmp_path):
    model = random_model(spec, hidden=(60,))
    model.save(tmp_path / "m.safetensors")
    output = str(tmp_path / "out")
    encode.main(["--input", str(data_dir / pattern), "--model", str(tmp_path / "m.safetensors"), "--output", output])
    expected = direct(model, sorted(glob.glob(str(data_dir / pattern))))
    assert len(expected) == (count or len(expected)) > 0
    assert read_back(output) == {key: (labels, z_hat) for key, (labels, _, z_hat) in expected.items()}


def test_works_without_tensorflow_and_with_the_newest_beam(model, model_path, inputs, tmp_path):
    """The light install in a venv of its own, as an encode or decode worker has it; vidpress as a regular wheel."""
    python = os.environ.get("VIDPRESS_LIGHT_PYTHON")
    if python is None:
        pytest.skip("needs the light venv: `make test` builds it and names it with VIDPRESS_LIGHT_PYTHON")
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, json, sys\n"
        "assert importlib.util.find_spec('tensorflow') is None\n"
        "from vidpress.pipeline.launching import cli\n"
        "model, output, *inputs = sys.argv[1:]\n"
        "cli.main(['encode', '--model', model, '--output', output, '--input', *inputs])\n"
        "cli.main(['decode', '--input', output, '--output', output + '-features', '--format', 'parquet'])\n"
        "cli.main(['inspect', output])\n"
        "import vidpress.model\n"
        "print(vidpress.model.__file__)\n"
    )
    output = tmp_path / "light"
    result = subprocess.run(
        [python, str(script), model_path, str(output), *inputs],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr
    assert "site-packages" in result.stdout.splitlines()[-1]
    assert str(REPO / "model") not in result.stdout
    assert read_back(output) == {key: (labels, z_hat) for key, (labels, _, z_hat) in direct(model, inputs).items()}
    rows = pq.read_table(f"{output}-features").to_pylist()
    assert {row["id"]: row["z_hat"] for row in rows} == {k: z_hat for k, (_, _, z_hat) in direct(model, inputs).items()}


def test_manifest_is_valid_json_with_the_counts(model_path, inputs, tmp_path):
    encode.main(["--input", *inputs, "--model", model_path, "--output", str(tmp_path / "out")])
    fields = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (generation,) = fields["generations"]
    assert generation["counts"]["records"] == 300
    assert generation["shards"][0]["rows"] == 300
    assert SPEC.input_size == 32
