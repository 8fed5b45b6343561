"""`vidpress verify`: whatever is damaged, it says so and exits with 1."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import frame_level, random_model, write_records

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.data_set.verification import verify
from vidpress.model.features import FeatureSpec
from vidpress.model.files import storage
from vidpress.model.files.file_names import manifest_name
from vidpress.model.frozen.input_decoder import DecoderFile
from vidpress.model.shards import shard_writer
from vidpress.model.shards.shard import Shard, footer_crc32
from vidpress.model.shards.shard_rows import SCHEMA
from vidpress.model.shards.shard_writer import write_shard
from vidpress.pipeline import encode
from vidpress.pipeline.launching import cli


@pytest.fixture(scope="module")
def reference(model_path, tmp_path_factory):
    """Two generations of two shards each, with dead letters."""
    folder = tmp_path_factory.mktemp("verify")
    for number, indices in enumerate((range(60), range(40, 100)), start=1):
        path = write_records(folder / f"day{number}", [*(frame_level(index) for index in indices), b"rubbish"])
        options = ["--append", "--num_shards", "2", "--max_bad_fraction", "0.1"]
        encode.main(["--input", path, "--model", model_path, "--output", str(folder / "out"), *options])
    return folder / "out"


@pytest.fixture
def data_set(reference, tmp_path):
    return pathlib.Path(shutil.copytree(reference, tmp_path / "out"))


def findings(capsys, folder) -> list[str]:
    """Run the command on what is damaged."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", str(folder)])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    findings = "1 finding" if len(lines) == 1 else f"{len(lines)} findings"
    assert printed.err == f"vidpress verify: error: {folder} has {findings}.\n"
    return lines


def test_a_shard_without_permission_is_called_so(data_set, capsys, monkeypatch):
    read_bytes = storage.read_bytes
    shard = min(data_set.glob("shard-*"))

    def refuse(uri, **kwargs):
        if str(uri) == str(shard):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), uri)
        return read_bytes(uri, **kwargs)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    (line,) = findings(capsys, data_set)
    assert line == f"{shard} cannot be read: there is no permission: give it, or run as a user who has it."


def shard(folder, number=0) -> pathlib.Path:
    return folder / Manifest.load(folder).shards[number].name


@pytest.mark.parametrize("damage", ["missing", "cut", "another byte", "of another model"])
def test_a_damaged_decoder_is_named(data_set, capsys, damage):
    (path,) = data_set.glob("decoder-*")
    data = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
            message = f"{path} is missing: fetch or encode it again."
        case "cut":
            path.write_bytes(data[:-1])
            message = f"{path} has {len(data) - 1:,} bytes, its manifest says {len(data):,}."
        case "another byte":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            message = f"{path} is not the file that its manifest lists: its SHA-256 differs."
        case _:
            file = dataclasses.replace(DecoderFile.from_bytes(data), model_id="0" * 16)
            listed = Manifest.load(data_set)
            changed = dataclasses.replace(listed.decoder, sha256=hashlib.sha256(file.to_bytes()).hexdigest())
            path.write_bytes(file.to_bytes())
            for number in (1, 2):
                manifest = dataclasses.replace(Manifest.load(data_set, number), decoder=changed)
                (data_set / manifest_name(number)).write_text(manifest.to_json())
            message = (
                f"{path} is the decoder of model {'0' * 16} with 40 dimensions, not of model {listed.model_id} with"
            )
    (line,) = findings(capsys, data_set)
    assert line.startswith(message)


def test_a_whole_data_set(data_set, capsys):
    cli.main(["verify", str(data_set), "--sample", "10"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{data_set} is whole: 100 videos of model ")
    assert "in 4 shards, generation 2. 10 files as the manifest lists them" in line
    assert "40 sampled codes decode" in line


def test_every_byte_of_every_file_counts(data_set, capsys):
    rng = np.random.default_rng(0)
    for path in sorted(data_set.iterdir()):
        good = path.read_bytes()
        for position in rng.choice(len(good), 5):
            bad = bytearray(good)
            bad[position] ^= 1 << rng.integers(8)
            path.write_bytes(bad)
            with pytest.raises(SystemExit) as stop:
                cli.main(["verify", str(data_set)])
            assert stop.value.code == 1
        path.write_bytes(good)
    assert verify(data_set).findings == []


def test_files_that_are_missing_or_cut(data_set, capsys):
    names = [entry.name for entry in Manifest.load(data_set).generations[0].files]
    for name in names[:2]:
        (data_set / name).unlink()
    cut = data_set / names[2]
    cut.write_bytes(cut.read_bytes()[:-1])
    found = findings(capsys, data_set)
    assert found[:2] == [f"{data_set / name} is missing: fetch or encode it again." for name in names[:2]]
    assert found[2].startswith(f"{cut} has ")


def test_a_changed_value_is_found_by_every_checksum(data_set, capsys):
    path = shard(data_set)
    data = bytearray(path.read_bytes())
    code = Shard.open(path).read(0)["code"][5].as_py()
    data[data.index(code)] ^= 4
    path.write_bytes(data)
    differs, damaged = findings(capsys, data_set)
    assert differs == f"{path} is not the file that its manifest lists: its SHA-256 differs."
    assert damaged.startswith(f"{path}, row group 0, is damaged")


def rewrite(folder: pathlib.Path, number: int, change, *, consistent: bool = True) -> pathlib.Path:
    """Replace a shard by one of other rows, and let the manifests list that: only the rows can give it away."""
    path = shard(folder, number)
    opened = Shard.open(path)
    rows = change(pa.Table.from_batches([opened.read(0)]).cast(SCHEMA))
    buffer = io.BytesIO()
    row_groups = write_shard(buffer, rows, opened.header)
    data = buffer.getvalue()
    path.write_bytes(data)
    manifests = [Manifest.load(folder, generation) for generation in (1, 2)]
    for manifest in manifests:
        replaced = [
            _replace_entry(generation, path.name, rows.num_rows, data, row_groups, consistent)
            for generation in manifest.generations
        ]
        changed = dataclasses.replace(manifest, generations=tuple(replaced))
        (folder / manifest_name(manifest.generation)).write_text(changed.to_json())
    return path


def _replace_entry(generation, name, rows, data, row_groups, consistent):
    shards = tuple(
        dataclasses.replace(
            entry,
            rows=rows,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            row_groups=row_groups,
            footer_crc32=footer_crc32(data),
        )
        if entry.name == name
        else entry
        for entry in generation.shards
    )
    counts = generation.counts
    lost = counts.videos - sum(entry.rows for entry in shards)
    if consistent:
        counts = dataclasses.replace(counts, videos=counts.videos - lost, duplicates=counts.duplicates + lost)
    return dataclasses.replace(generation, shards=shards, counts=counts)


def test_rows_that_are_lost(data_set, capsys):
    rewrite(data_set, 0, lambda rows: rows.slice(1), consistent=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", str(data_set)])
    assert stop.value.code == 1
    assert "is damaged: generation 1 counts 60 videos, its files have 59 rows" in capsys.readouterr().err


def test_rows_out_of_order(data_set, capsys):
    path = rewrite(data_set, 0, lambda rows: rows.take(list(range(rows.num_rows))[::-1]))
    assert findings(capsys, data_set) == [f"{path}, row group 0: its ids are not sorted, or one occurs twice."]


def test_rows_of_another_shard(data_set, capsys):
    other = pa.Table.from_batches([Shard.open(shard(data_set, 1)).read(0)]).cast(SCHEMA)
    path = rewrite(data_set, 0, lambda rows: other.slice(0, rows.num_rows))
    found = findings(capsys, data_set)
    assert f"{path}, row group 0: its ids belong to other shards." in found
    assert any("ids are in" in line for line in found)


def test_an_id_in_two_generations(data_set, capsys):
    first = pa.Table.from_batches([Shard.open(shard(data_set, 0)).read(0)]).cast(SCHEMA)
    path = rewrite(data_set, 2, lambda rows: pa.concat_tables([rows.slice(1), first.slice(3, 1)]).sort_by("id"))
    repeated = first["id"][3].as_py()
    line = f"1 ids are in {shard(data_set, 0)} and in {path}: {repeated!r} ..."
    assert line in findings(capsys, data_set)


def test_an_id_in_two_generations_of_which_one_is_damaged(data_set, capsys, monkeypatch):
    monkeypatch.setattr(shard_writer, "ROW_GROUP_SIZE", 8)
    first = pa.Table.from_batches([Shard.open(shard(data_set, 0)).read(0)]).cast(SCHEMA)
    path = rewrite(data_set, 2, lambda rows: pa.concat_tables([rows.slice(5), first.slice(3, 5)]).sort_by("id"))
    opened = Shard.open(path)
    assert len(opened.row_group_sizes) > 1
    start = opened._row_groups[1].columns[0].start
    data = bytearray(path.read_bytes())
    data[start + 60] ^= 255
    path.write_bytes(data)
    found = findings(capsys, data_set)
    assert any(line.startswith(f"{path}, row group 1, is damaged") for line in found)
    assert any(f"ids are in {shard(data_set, 0)} and in {path}: " in line for line in found)


def test_a_code_that_no_encoder_wrote(data_set, capsys):
    def replace(rows):
        codes = rows["code"].to_pylist()
        codes[4] += b"\x00\x01"
        return rows.set_column(rows.schema.get_field_index("code"), SCHEMA.field("code"), [pa.array(codes)])

    path = rewrite(data_set, 0, replace)
    (line,) = [line for line in findings(capsys, data_set) if "counts" not in line]
    assert line.startswith(f"{path}, row group 0: ")
    assert "damaged" in line or "do not encode to themselves" in line


def test_a_manifest_whose_counts_do_not_add_up(data_set, capsys):
    path = data_set / "manifest-00002.json"
    fields = json.loads(path.read_text())
    fields["generations"][1]["counts"]["records"] += 1
    path.write_text(json.dumps(fields))
    found = findings(capsys, data_set)
    assert found[0].startswith("generation 2: 1 records are unaccounted for")
    assert found[1] == "generation 2: the manifest counts 62 records, its files hold 61."


def test_history_that_was_changed_or_lost(data_set, capsys):
    path = data_set / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"input_bytes": ', '"input_bytes": 1'))
    assert findings(capsys, data_set) == ["generation 1 is not what it was when generation 2 was added to it."]
    path.write_text("{}")
    (line,) = findings(capsys, data_set)
    assert "manifest.json is not a vidpress manifest" in line
    path.unlink()
    (line,) = findings(capsys, data_set)
    assert "holds no manifest.json, which is lost" in line


def test_a_damaged_list_of_inputs(data_set, capsys):
    entry = Manifest.load(data_set).generations[1].inputs
    (data_set / entry.name).write_text("[]\nrubbish\n")
    found = findings(capsys, data_set)
    assert len(found) == 4
    assert any("line 1, is damaged: Expected `object`, got `array`" in line for line in found)
    assert any("line 2, is damaged: JSON is malformed" in line for line in found)


def test_what_is_not_of_the_data_set_is_said_but_no_finding(data_set, capsys):
    (data_set / "shard-00003-00000-of-00001-0123456789ab.parquet").write_text("")
    (data_set / "notes.txt").write_text("")
    cli.main(["verify", str(data_set)])
    assert "has 1 file of a run that is still running or died: " in capsys.readouterr().out


def test_what_is_no_data_set_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", str(tmp_path)])
    assert stop.value.code == 1
    assert "it is not a vidpress data set, or its job did not finish" in capsys.readouterr().err


def test_real_videos(data_dir, tmp_path):
    """A model of YouTube-8M's features, two generations of real records."""
    model_path = str(tmp_path / "model.safetensors")
    random_model(FeatureSpec(), hidden=(64,)).save(model_path)
    for files in ("validate0100", "validate010[0-2]"):
        path = f"{data_dir}/yt8m_v2_video/{files}.tfrecord"
        encode.main(["--input", path, "--model", model_path, "--output", str(tmp_path / "out"), "--append"])
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.generation == 2
    assert manifest.generations[1].inputs.rows == 2
    assert manifest.counts.records == manifest.counts.videos > 700
    assert verify(tmp_path / "out").findings == []
