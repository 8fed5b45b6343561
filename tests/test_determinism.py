"""The same bytes whatever the runner, the workers, the bundles, or the order of the input."""

import hashlib
import pathlib
import random

import numpy as np
import pytest
from conftest import frame_level, video_level, write_records

from vidpress.pipeline import encode

NUM_SHARDS = 3


def kept(index):
    """What else is in a record: all, some or none of the keys that are kept."""
    title = {"title": f"title {index}".encode()} if index % 3 else {}
    return {**title, "scores": np.array([index, np.nan], np.float32)} if index % 2 else title


def records():
    """Frame-level and video-level videos, some twice, ids with two contents, and rubbish."""
    payloads = [frame_level(index, **kept(index)) for index in range(250)]
    payloads += [video_level(index, **kept(index)) for index in range(250, 500)]
    payloads += [frame_level(index, **kept(index)) for index in range(20)]
    payloads += [video_level(30), frame_level(31, **kept(33)), video_level(501, title=[5]), b"rubbish"]
    return payloads


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    payloads = records()
    random.Random(0).shuffle(payloads)
    return [
        write_records(folder / f"{index}.tfrecord", payloads[index * 60 : (index + 1) * 60])
        for index in range(-(-len(payloads) // 60))
    ]


def run(files, model_path, output, *options, num_shards=NUM_SHARDS):
    arguments = [
        "--input",
        *files,
        "--model",
        model_path,
        "--output",
        str(output),
        "--num_shards",
        str(num_shards),
        "--keep",
        "title:string,scores:float",
    ]
    encode.main([*arguments, *options])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pathlib.Path(output).iterdir()}


@pytest.fixture(scope="module")
def reference(files, model_path, tmp_path_factory):
    digests = run(files, model_path, tmp_path_factory.mktemp("reference"))
    assert len([name for name in digests if name.endswith(".parquet")]) == NUM_SHARDS
    assert "manifest.json" in digests
    return digests


def test_again(files, model_path, reference, tmp_path):
    assert run(files, model_path, tmp_path) == reference


def test_files_in_another_order(files, model_path, reference, tmp_path):
    assert run(files[::-1], model_path, tmp_path) == reference


def test_two_worker_processes(files, model_path, reference, tmp_path):
    options = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    assert run(files, model_path, tmp_path, *options) == reference


def test_two_worker_threads(files, model_path, reference, tmp_path):
    options = ("--direct_num_workers", "2", "--direct_running_mode", "multi_threading")
    assert run(files, model_path, tmp_path, *options) == reference


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_any_batch_size(files, model_path, reference, tmp_path, batch_size, monkeypatch):
    from vidpress.transforms import encode_videos

    monkeypatch.setattr(encode_videos, "BATCH_SIZE", batch_size)
    assert run(files, model_path, tmp_path) == reference


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_threads(files, model_path, reference, tmp_path, threads, monkeypatch):
    from vidpress.pipeline.running import beam_jobs
    from vidpress.transforms import encode_videos

    monkeypatch.setattr(encode_videos, "BATCH_SIZE", 10)
    monkeypatch.setattr(beam_jobs, "threads_per_worker", lambda options: threads)
    assert run(files, model_path, tmp_path) == reference


def test_any_bundle_size(files, model_path, reference, tmp_path, monkeypatch):
    """Rows that are sent on in many small parts end up in the same files."""
    from vidpress.transforms import write_shards

    monkeypatch.setattr(write_shards, "_MAX_BUFFERED_ROWS", 1)
    assert run(files, model_path, tmp_path) == reference


def test_shards_do_not_depend_on_how_videos_are_dealt_to_files(model_path, tmp_path):
    payloads = [frame_level(index, **kept(index)) for index in range(100)]
    payloads += [video_level(index, **kept(index)) for index in range(100, 200)]
    one = run([write_records(tmp_path / "one.tfrecord", payloads)], model_path, tmp_path / "a")
    random.Random(1).shuffle(payloads)
    many = [write_records(tmp_path / f"many{index}.tfrecord", payloads[index::4]) for index in range(4)]
    again = run(many, model_path, tmp_path / "b")
    shards = {name: digest for name, digest in one.items() if name.startswith("shard-")}
    assert shards == {name: digest for name, digest in again.items() if name.startswith("shard-")}
    assert len(shards) == NUM_SHARDS


def test_another_model_gives_other_shards(files, reference, tmp_path, spec):
    from conftest import random_model

    random_model(spec, seed=9).save(tmp_path / "other.safetensors")
    digests = run(files, str(tmp_path / "other.safetensors"), tmp_path / "out")
    assert not set(digests.values()) & {reference[name] for name in reference if name.endswith(".parquet")}
