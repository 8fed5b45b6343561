"""Small shards share the tables of their data set, large ones carry them; nothing is read with other tables."""

import dataclasses
import io
import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import REPO, frame_level, write_records
from test_listed_shards import check_refused_by_all
from test_shard import make_rows

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.data_set.verification import verify
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError, ShardHeader
from vidpress.model.shards.shard_rows import decode_rows
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.shards.shared_tables import TablesFile, load_tables
from vidpress.pipeline import encode
from vidpress.pipeline.launching import cli
from vidpress.transforms.write_shards import WriteShards


def encoded(folder, model_path, name, *options):
    videos = folder / "videos"
    if not videos.exists():
        write_records(videos, [frame_level(index) for index in range(60)])
    out = folder / name
    arguments = ["--input", str(videos), "--model", model_path, "--output", str(out), "--num_shards", "3"]
    encode.main([*arguments, *options])
    return out


@pytest.fixture(scope="module")
def reference(model_path, tmp_path_factory):
    """Three small shards."""
    return encoded(tmp_path_factory.mktemp("shared"), model_path, "out")


@pytest.fixture
def data_set(reference, tmp_path):
    return pathlib.Path(shutil.copytree(reference, tmp_path / "out"))


def shards_of(folder) -> list[pathlib.Path]:
    return [folder / entry.name for entry in Manifest.load(folder).shards]


def header_of(model) -> ShardHeader:
    file = TablesFile.of(model.tables.to_bytes())
    return ShardHeader(model.model_id, model.spec, model.tables, tables_file=file)


def test_small_shards_share_a_file_of_tables_that_the_manifest_lists(data_set, model_path):
    model = FrozenModel.load(model_path)
    manifest = Manifest.load(data_set)
    assert (data_set / manifest.tables.name).read_bytes() == model.tables.to_bytes()
    for path in shards_of(data_set):
        header = Shard.open(path).header
        assert header.tables_file == TablesFile(manifest.tables.name, manifest.tables.sha256)
        assert header.metadata["vidpress.format_version"] == "4"
        assert header.tables.to_bytes() == model.tables.to_bytes()
    assert verify(data_set).findings == []


def test_with_carry_tables_each_shard_can_be_read_by_itself(data_set, model_path, tmp_path):
    carrying = encoded(tmp_path, model_path, "carrying", "--carry_tables")
    assert Manifest.load(carrying).tables is None
    assert not list(carrying.glob("tables-*"))
    (tmp_path / "alone").mkdir()
    found = []
    for path in shards_of(carrying):
        copy = shutil.copy(path, tmp_path / "alone")
        shard = Shard.open(copy)
        assert shard.header.metadata["vidpress.format_version"] == "2"
        found += [decode_rows(shard.read(index)) for index in range(len(shard.row_group_sizes))]
    carried = pa.Table.from_batches(found).sort_by("id")
    shared = VideoDataset(data_set).to_arrow(["id", "features"]).sort_by("id")
    assert carried["id"].to_pylist() == shared["id"].to_pylist()
    np.testing.assert_array_equal(
        np.stack(carried["z_hat"].to_numpy()), np.stack(shared["features"].to_numpy(zero_copy_only=False))
    )


def test_a_shard_carries_its_tables_where_they_take_at_most_a_hundredth_of_its_codes(model):
    header = header_of(model)
    banks = np.array([0])
    size = len(dataclasses.replace(header.for_rows(banks, 10**9)).metadata["vidpress.range_coding_tables"])
    assert header.for_rows(banks, 100 * size).tables_file is None
    assert header.for_rows(banks, 100 * size - 1) is header
    without = dataclasses.replace(header, tables_file=None)
    assert without.for_rows(banks, 1).tables_file is None


def test_rows_of_a_shard_decode_anywhere(data_set):
    """As those that a Beam job sends from worker to worker: they carry what it takes, whatever their shard does."""
    path = shards_of(data_set)[0]
    batch = Shard.open(path).read(0)
    shutil.rmtree(data_set)
    assert batch.schema.metadata[b"vidpress.format_version"] == b"2"
    assert decode_rows(batch).num_rows == batch.num_rows


def test_a_shard_alone_names_the_file_that_it_needs(data_set, tmp_path):
    name = Manifest.load(data_set).tables.name
    path = shards_of(data_set)[0]
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: small shards share the tables in it"):
        Shard.open(shutil.copy(path, tmp_path))
    with pytest.raises(ShardError, match=f"does not carry its tables: read it in the folder .* which has {name}"):
        Shard(io.BytesIO(path.read_bytes()), "a shard")


def test_missing_tables_are_named_by_all_readers(data_set, tmp_path, capsys):
    path = data_set / Manifest.load(data_set).tables.name
    path.unlink()
    check_refused_by_all(data_set, tmp_path, capsys, f"{path} is missing")


@pytest.mark.parametrize("damage", ["other", "truncated", "link"])
def test_damaged_tables_are_refused_by_all_readers(data_set, tmp_path, capsys, damage):
    path = data_set / Manifest.load(data_set).tables.name
    data = path.read_bytes()
    if damage == "other":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncated":
        path.write_bytes(data[:20])
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    check_refused_by_all(data_set, tmp_path, capsys, f"{path} is")
    if damage != "link":
        assert any(
            "SHA-256 differs" in finding or "bytes, its manifest" in finding for finding in verify(data_set).findings
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out/tables-00001-{}.bin", "is not the name of a file of tables"),
        ("/etc/passwd", "is not the name of a file of tables"),
        ("shard-00001-00000-of-00001-{}.parquet", "is not the name of a file of tables"),
        ("tables-00001-000000000000.bin", "is not the name of a file with the checksum"),
    ],
)
def test_the_name_in_a_shard_leads_nowhere(model, tmp_path, name, message):
    rows, _ = make_rows(model, 5)
    header = header_of(model)
    file = TablesFile(name.format(header.tables_file.sha256[:12]), header.tables_file.sha256)
    path = tmp_path / "shard.parquet"
    with open(path, "wb") as out:
        write_shard(out, rows, dataclasses.replace(header, tables_file=file))
    with pytest.raises(ShardError, match=message):
        Shard.open(path)


def test_verify_finds_a_shard_that_shares_other_tables_than_the_manifest_lists(data_set):
    path = data_set / "manifest.json"
    fields = json.loads(path.read_text())
    tables = (data_set / fields["tables"]["name"]).read_bytes()
    path.write_text(json.dumps(fields | {"tables": None}))
    findings = verify(data_set).findings
    assert len(findings) == 3
    assert all("which no manifest lists" in finding for finding in findings)
    assert tables


def test_tables_that_are_not_those_of_the_header_are_refused(model):
    with pytest.raises(ValueError, match="not those that the header names"):
        WriteShards(
            "out", header=header_of(model), dead_letters=None, inputs=None, tables=model.tables.shared.to_bytes()
        )


def test_adding_to_a_data_set_of_an_earlier_version_brings_the_file(tmp_path):
    data_set = pathlib.Path(shutil.copytree(REPO / "tests" / "golden" / "data-set-v5", tmp_path / "old"))
    model = REPO / "tests" / "golden" / "model-v5.safetensors"
    spec = FrozenModel.load(model).spec
    for day, numbers in ((1, range(100, 110)), (2, range(110, 120))):
        write_records(tmp_path / f"day{day}", [frame_level(number, spec) for number in numbers])
        arguments = ["--input", str(tmp_path / f"day{day}"), "--model", str(model), "--output", str(data_set)]
        cli.main(["encode", "--append", *arguments])
    manifest = Manifest.load(data_set)
    assert Manifest.load(data_set, 4).tables is None
    assert manifest.tables == Manifest.load(data_set, 5).tables
    assert [path.name for path in data_set.glob("tables-*")] == [manifest.tables.name]
    assert verify(data_set).findings == []
    cli.main(["compact", str(data_set)])
    (compacted,) = shards_of(data_set)
    assert Shard.open(compacted).header.tables_file.name == manifest.tables.name
    cli.main(["compact", str(data_set), "--expire", "0"])
    assert (data_set / manifest.tables.name).exists()
    assert verify(data_set).findings == []
    assert sum(len(batch.ids) for batch in VideoDataset(data_set)) == 65


def test_tables_are_unpacked_once_for_all_shards(data_set):
    first, second, _ = (Shard.open(path).header for path in shards_of(data_set))
    assert first.tables is second.tables
    assert load_tables(data_set, first.tables_file).tables is first.tables
