"""Every reader holds a shard against what the manifest says of it, before a row of it is given."""

import json
import os
import pathlib
import shutil

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from conftest import REPO, frame_level, write_records

from vidpress.model.data_set.id_hash import shard_of
from vidpress.model.data_set.listed_shards import open_shard
from vidpress.model.data_set.manifest import Manifest
from vidpress.model.files.file_names import manifest_name
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard_header import ShardError
from vidpress.pipeline import encode
from vidpress.pipeline.launching import cli
from vidpress.transforms.read_shards import ReadShards

GOLDEN = REPO / "tests" / "golden"


@pytest.fixture(scope="module")
def reference(model_path, tmp_path_factory):
    """Two shards of 20 videos each."""
    folder = tmp_path_factory.mktemp("listed")
    counts = [0, 0]
    payloads = []
    for index in range(200):
        number = shard_of(f"video{index:05d}".encode(), 2)
        if counts[number] < 20:
            counts[number] += 1
            payloads.append(frame_level(index))
    write_records(folder / "videos", payloads)
    encode.main(
        ["--input", str(folder / "videos"), "--model", model_path, "--output", str(folder / "out"), "--num_shards", "2"]
    )
    return folder / "out"


@pytest.fixture
def data_set(reference, tmp_path):
    return pathlib.Path(shutil.copytree(reference, tmp_path / "out"))


def shards(folder) -> list[pathlib.Path]:
    return [folder / entry.name for entry in Manifest.load(folder).shards]


def readers(folder, tmp_path):
    """Everything that reads a data set, as functions."""

    def read_with_beam():
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            _ = pipeline | ReadShards(str(folder)) | beam.Map(lambda batch: batch.num_rows)

    return {
        "VideoDataset": lambda: list(VideoDataset(folder)),
        "VideoDataset, shuffled": lambda: list(VideoDataset(folder, shuffle=True)),
        "ReadShards": read_with_beam,
        "decode": lambda: cli.main(["decode", "--input", str(folder), "--output", str(tmp_path / "features")]),
        "inspect": lambda: cli.main(["inspect", str(folder)]),
        "verify": lambda: cli.main(["verify", str(folder)]),
    }


def check_refused_by_all(folder, tmp_path, capsys, message):
    for name, read in readers(folder, tmp_path).items():
        capsys.readouterr()
        with pytest.raises((Exception, SystemExit)) as failure:
            read()
        printed = capsys.readouterr()
        text = printed.out + printed.err + str(failure.value)
        assert message in text, (name, text)
        assert not list((tmp_path / "features").glob("features-*")) or "Traceback" not in text
        assert not (tmp_path / "features" / "_SUCCESS").exists()


@pytest.mark.parametrize("version", [2, 3])
def test_a_shard_under_anothers_name_is_refused(data_set, tmp_path, capsys, version):
    """As after a copy that went wrong: equal numbers of rows, but some videos twice and others never."""
    if version == 2:  # which knows no checksum of the footer
        path = data_set / "manifest.json"
        fields = json.loads(path.read_text()) | {"format_version": 2}
        for entry in fields["generations"][0]["shards"]:
            del entry["footer_crc32"]
        path.write_text(json.dumps(fields))
    first, second = shards(data_set)
    assert pq.ParquetFile(first).metadata.num_rows == pq.ParquetFile(second).metadata.num_rows
    shutil.copy(first, second)
    check_refused_by_all(data_set, tmp_path, capsys, str(second))


def test_a_link_in_a_data_set_is_refused(data_set, tmp_path, capsys):
    """It may lead anywhere; and what is copied or uploaded with it may lack what it leads to."""
    first, _ = shards(data_set)
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    check_refused_by_all(data_set, tmp_path, capsys, f"{first} is a symbolic link")


def test_a_pipe_in_a_data_set_is_refused(data_set, tmp_path, capsys):
    first, _ = shards(data_set)
    first.unlink()
    os.mkfifo(first)
    check_refused_by_all(data_set, tmp_path, capsys, f"{first} is a pipe, socket or device")


def test_a_missing_shard_is_named(data_set, tmp_path, capsys):
    first, _ = shards(data_set)
    first.unlink()
    check_refused_by_all(data_set, tmp_path, capsys, f"{first} is missing: fetch or encode it again")


@pytest.mark.parametrize("target", ["/dev/zero", "elsewhere", "folder", "itself"])
def test_a_manifest_that_is_no_file_is_refused(data_set, tmp_path, capsys, target):
    path = data_set / "manifest.json"
    path.rename(tmp_path / "elsewhere")
    if target == "folder":
        path.mkdir()
        (path / "x").touch()
        message = "holds no manifest.json"
    else:
        path.symlink_to({"elsewhere": tmp_path / "elsewhere", "itself": path.name}.get(target, target))
        message = "is a symbolic link"
    check_refused_by_all(data_set, tmp_path, capsys, message)


def test_a_data_set_may_be_named_by_a_link(data_set, tmp_path):
    (tmp_path / "link").symlink_to(data_set)
    assert sum(len(batch.ids) for batch in VideoDataset(tmp_path / "link")) == 40


@pytest.mark.parametrize(
    "name", ["../other/{}", "{}/", "/etc/passwd{}", "gs://bucket/{}", "file:///etc/{}", "manifest.json{}"]
)
def test_names_in_a_manifest_lead_nowhere(data_set, tmp_path, capsys, name):
    shutil.copytree(data_set, tmp_path / "other")
    path = data_set / "manifest.json"
    fields = json.loads(path.read_text())
    for entry in fields["generations"][0]["shards"]:
        entry["name"] = name.format(entry["name"])
    path.write_text(json.dumps(fields))
    check_refused_by_all(data_set, tmp_path, capsys, "is not the name of one of a data set's shard files")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_each_version_is_tied_to_its_shards(tmp_path, version):
    folder = pathlib.Path(shutil.copytree(GOLDEN / f"data-set-v{version}", tmp_path / "out"))
    manifest = Manifest.load(folder)
    first, second = manifest.shards[:2]
    open_shard(folder, first, manifest.model_id, manifest.columns)
    shutil.copy(folder / first.name, folder / second.name)
    with pytest.raises(ShardError, match="is not the file that its manifest lists"):
        open_shard(folder, second, manifest.model_id, manifest.columns)


def test_workers_that_open_a_data_set_around_an_append_read_the_same(data_set, model_path, tmp_path):
    """Of what is added in between, one would take half of the row groups and the other none of that half."""
    first = VideoDataset(data_set, worker=0, num_workers=2)
    write_records(tmp_path / "more", [frame_level(index) for index in range(1000, 1040)])
    encode.main(
        [
            "--append",
            "--input",
            str(tmp_path / "more"),
            "--model",
            model_path,
            "--output",
            str(data_set),
            "--num_shards",
            "2",
        ]
    )
    with pytest.raises(ValueError, match=r"has 2 generations, .* give them all generation=2"):
        VideoDataset(data_set, worker=1, num_workers=2)
    second = VideoDataset(data_set, worker=1, num_workers=2, generation=first.generation)
    ids = [video_id for dataset in (first, second) for batch in dataset for video_id in batch.ids]
    assert len(ids) == len(set(ids)) == first.num_videos == 40
    assert repr(first).startswith(f"<VideoDataset {data_set}, generation 1: 40 videos of 40 numbers, model ")
    both = [VideoDataset(data_set, worker=worker, num_workers=2, generation=2) for worker in range(2)]
    assert len({video_id for dataset in both for batch in dataset for video_id in batch.ids}) == 80
    # One that was opened goes on with what it has.
    alone = VideoDataset(data_set)
    assert (alone.generation, alone.num_videos) == (2, 80)
    (data_set / manifest_name(2)).unlink()
    assert sum(len(batch.ids) for batch in alone) == 80
