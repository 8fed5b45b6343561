"""Adding to a data set: nothing is lost, counted twice or changed, whoever else writes and whenever a run dies."""

import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from conftest import REPO, SPEC, forked, frame_level, random_model, video_level, write_records
from test_manifest import GENERATION

from vidpress.model.data_set.manifest import Manifest, ManifestError
from vidpress.model.data_set.verification import verify
from vidpress.model.files import input_files
from vidpress.model.files.file_names import manifest_name
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.pipeline import decode, encode
from vidpress.pipeline.launching import launch
from vidpress.pipeline.running import beam_jobs
from vidpress.transforms import read_videos, write_shards
from vidpress.transforms.generations import generation_files, known_videos


class Warehouse:
    """A folder of input files and the data set that is encoded from it."""

    def __init__(self, folder: pathlib.Path, model_path: str):
        self.folder = folder
        self.input = folder / "input"
        self.input.mkdir()
        self.output = folder / "out"
        self.model_path = model_path

    def add(self, name: str, payloads: list[bytes]) -> str:
        return write_records(self.input / name, payloads)

    def arguments(self, *options: str, input: tuple[str, ...] = ()) -> list[str]:
        patterns = input or (f"{self.input}/*",)
        return ["--input", *patterns, "--model", self.model_path, "--output", str(self.output), *options]

    def run(self, *options: str) -> Manifest:
        encode.main(self.arguments(*options))
        return Manifest.load(self.output)

    def append(self, *options: str) -> Manifest:
        return self.run("--append", *options)

    def files(self) -> dict[str, tuple[str, int]]:
        """Checksum and time of change of every file."""
        return {
            path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in self.output.iterdir()
        }

    def letters(self, generation: int) -> list[dict]:
        paths = sorted(self.output.glob(f"dead-letters-{generation:05d}-*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def is_whole(self) -> bool:
        report = verify(self.output)
        assert report.findings == []
        return report.unlisted == []


@pytest.fixture
def warehouse(tmp_path, model_path):
    return Warehouse(tmp_path, model_path)


def frames(*indices):
    return [frame_level(index) for index in indices]


def videos(folder, **options):
    """Labels and features by id; an id that occurs twice fails."""
    found = {}
    for batch in VideoDataset(folder, **options):
        for video_id, labels, features in zip(*batch, strict=True):
            assert video_id not in found
            found[video_id] = (labels.tolist(), features.tolist())
    return found


def test_generations_hold_what_one_run_over_everything_holds(warehouse, tmp_path, model_path, capsys):
    warehouse.add("day1", frames(*range(200)))
    warehouse.append("--num_shards", "3")
    before = warehouse.files()
    first = videos(warehouse.output)
    warehouse.add("day2", [video_level(index) for index in range(200, 300)])
    manifest = warehouse.append("--num_shards", "2")
    warehouse.add("day3", frames(*range(300, 310)))
    capsys.readouterr()
    manifest = warehouse.append("--num_shards", "1")
    printed = capsys.readouterr().out
    assert "Encoded 10 videos" in printed
    assert "Generation 3 of a data set that holds 310 videos in 6 shards now." in printed
    assert [generation.counts.videos for generation in manifest.generations] == [200, 100, 10]
    assert (manifest.counts.records, manifest.counts.videos, manifest.counts.unaccounted) == (310, 310, 0)
    assert {name: entry for name, entry in warehouse.files().items() if name in before} == before
    encode.main(["--input", f"{warehouse.input}/*", "--model", model_path, "--output", str(tmp_path / "whole")])
    assert videos(warehouse.output) == videos(tmp_path / "whole")
    assert videos(warehouse.output, generation=1) == first
    assert len(videos(warehouse.output, generation=2)) == 300
    assert warehouse.is_whole()
    decode.main(["--input", str(warehouse.output), "--output", str(tmp_path / "features"), "--format", "parquet"])
    decoded = {row["id"]: (row["labels"], row["z_hat"]) for row in pq.read_table(tmp_path / "features").to_pylist()}
    assert decoded == videos(warehouse.output)


def test_nothing_new_is_no_error_and_does_nothing(warehouse, capsys):
    warehouse.add("day1", frames(0, 1))
    warehouse.append()
    before = warehouse.files()
    capsys.readouterr()
    warehouse.append()
    warehouse.append("--append=true")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"Nothing new: {warehouse.output} was encoded from all 1 files of --input already."] * 2
    assert warehouse.files() == before


def test_without_the_option_a_data_set_is_refused(warehouse, capsys):
    warehouse.add("day1", frames(0))
    warehouse.run()
    warehouse.add("day2", frames(1))
    before = warehouse.files()
    for options in ((), ("--append=false",)):
        with pytest.raises(SystemExit) as stop:
            warehouse.run(*options)
        assert stop.value.code == 1
        assert "holds a data set already: add what is new to it with --append" in capsys.readouterr().err
    assert warehouse.files() == before


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_manifest_hides_nothing_and_destroys_nothing(warehouse, capsys, lost):
    """The newest one holds what is older: it is read, verify says what is gone, and the next run adds to it."""
    for index in range(3):
        warehouse.add(f"day{index}", frames(*range(10 * index, 10 * index + 10)))
        warehouse.append()
    (warehouse.output / manifest_name(lost)).unlink()
    before = warehouse.files()
    for path in warehouse.output.iterdir():
        os.utime(path, (0, 0))  # old enough to be taken for leftovers
    assert VideoDataset(warehouse.output).num_videos == 30
    with pytest.raises(SystemExit) as stop:
        warehouse.run()
    assert stop.value.code == 1
    assert "holds a data set already" in capsys.readouterr().err
    warehouse.add("day3", frames(30))
    assert warehouse.append().generation == 4
    assert len(videos(warehouse.output)) == 31
    after = {name: digest for name, (digest, _) in warehouse.files().items()}
    assert {name: digest for name, (digest, _) in before.items()}.items() <= after.items()
    assert verify(warehouse.output).findings == [
        f"{warehouse.output} holds no {manifest_name(lost)}, which is lost. Its newest generation, 4, holds all that "
        "is older."
    ]


def test_the_newest_manifest_lost(warehouse, caplog):
    """Nobody can tell it from a run that died right before writing it, so readers say it and nothing is removed."""
    for index in range(2):
        warehouse.add(f"day{index}", frames(*range(10 * index, 10 * index + 10)))
        warehouse.append()
    (warehouse.output / manifest_name(2)).unlink()
    before = warehouse.files()
    for path in warehouse.output.iterdir():
        os.utime(path, (0, 0))
    line = (
        f"{warehouse.output} holds the files of generation 2, but no manifest-00002.json: it is lost, or its run died"
    )
    assert VideoDataset(warehouse.output).num_videos == 10
    assert line in caplog.text
    caplog.clear()
    assert verify(warehouse.output).findings == []
    assert line in caplog.text
    (warehouse.input / "day1").unlink()  # what was encoded has gone
    warehouse.add("day2", frames(30))
    assert warehouse.append().generation == 2
    after = {name: digest for name, (digest, _) in warehouse.files().items()}
    assert {name: digest for name, (digest, _) in before.items()}.items() <= after.items()


def test_a_run_that_died_before_its_manifest_is_done_again(warehouse):
    warehouse.add("day0", frames(0, 1))
    warehouse.append()
    warehouse.add("day1", frames(2, 3))
    manifest = warehouse.append()
    (warehouse.output / manifest_name(2)).unlink()
    assert warehouse.append() == manifest
    assert warehouse.is_whole()


def test_what_only_another_manifest_lists_is_not_removed(warehouse):
    """As after a copy that went wrong: whatever any manifest lists may be needed, and one that is damaged lists all."""
    warehouse.add("day1", frames(*range(10)))
    (entry,) = warehouse.append().shards
    newest = Manifest("0123456789abcdef", 40, (GENERATION,))
    other = warehouse.output / "shard-00001-00000-of-00001-0123456789ab.parquet"
    other.write_bytes(b"x")
    os.utime(other, (0, 0))
    for content in (
        (warehouse.output / "manifest.json").read_text().replace(entry.name, other.name),
        '{"format_version": 3',
    ):
        (warehouse.output / "manifest.json").write_text(content)
        generation_files.remove_leftovers(str(warehouse.output), newest)
        assert other.exists()
    (warehouse.output / "manifest.json").unlink()
    generation_files.remove_leftovers(str(warehouse.output), newest)
    assert other.exists()  # the list of input files says that a manifest was about to come, or is lost
    next(warehouse.output.glob("inputs-*")).unlink()
    generation_files.remove_leftovers(str(warehouse.output), newest)
    assert not other.exists()


def test_leftovers_stay_for_a_day_and_temporary_files_go_at_once(warehouse):
    warehouse.add("day1", frames(*range(10)))
    warehouse.output.mkdir()
    digits = "0123456789abcdef" * 2
    shard = "shard-00001-00000-of-00001-0123456789ab.parquet"
    temporary = [f".{shard}.{digits}.tmp", f".manifest.json.{digits}.tmp", f".write-test-{digits}"]
    old = [shard.replace("shard-00001-00000", "shard-00001-00001")]
    kept = [shard, shard.replace("shard-00001", "shard-00002"), "notes.txt", ".hidden", "shard-1.parquet"]
    kept += [f".manifest-00002.json.{digits}.tmp", f".notes.{digits}.tmp", "shard-*"]
    for name in (*temporary, *old, *kept):
        (warehouse.output / name).touch()
        if name != shard:
            os.utime(warehouse.output / name, (0, 0) if name in old or name in kept else None)
    warehouse.append()
    names = {path.name for path in warehouse.output.iterdir()}
    assert not names & {*temporary, *old}
    assert names >= set(kept)


@pytest.mark.parametrize("name", ["*", "?", "[ab]", "{a,b}", "a*"])
def test_an_output_is_a_name_and_no_pattern(warehouse, name, tmp_path):
    """Of data sets beside it, whose folders it would match, nothing is touched."""
    warehouse.add("day1", frames(*range(10)))
    for beside in ("a", "b"):
        warehouse.output = tmp_path / "runs" / beside
        warehouse.run("--num_shards", "2")
        for path in warehouse.output.iterdir():
            os.utime(path, (0, 0))
    warehouse.add("day1", frames(*range(20, 25)))
    warehouse.output = tmp_path / "runs" / name
    warehouse.run()
    assert warehouse.is_whole()
    decode.main(["--input", str(warehouse.output), "--output", str(tmp_path / "features" / name)])
    for beside in ("a", "b"):
        warehouse.output = tmp_path / "runs" / beside
        assert len(videos(warehouse.output)) == 10
        assert warehouse.is_whole()


def test_a_switch_is_true_or_false(warehouse, capsys):
    warehouse.add("day1", frames(0))
    with pytest.raises(SystemExit) as stop:
        warehouse.run("--append=perhaps")
    assert stop.value.code == 2
    assert "'perhaps' must be true or false" in capsys.readouterr().err


def test_files_are_the_same_from_wherever_they_are_named(warehouse, monkeypatch, capsys):
    warehouse.add("day1", frames(0, 1))
    warehouse.append()
    monkeypatch.chdir(warehouse.input)
    encode.main(["--append", "--input", "day1", "./day*", "--model", warehouse.model_path, "--output", "../out"])
    assert "all 1 files" in capsys.readouterr().out
    assert Manifest.load(warehouse.output).generation == 1


def test_a_file_that_two_patterns_match_is_read_once(warehouse):
    path = warehouse.add("day1", frames(0, 1))
    encode.main(warehouse.arguments("--input", path, "--input", path))
    counts = Manifest.load(warehouse.output).counts
    assert (counts.records, counts.videos, counts.duplicates) == (2, 2, 0)


def test_a_file_that_has_grown_is_read_again(warehouse, capsys):
    """It was still being uploaded: what was read of it stays, and the rest is added."""
    path = pathlib.Path(warehouse.add("day1", frames(*range(20))))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    first = warehouse.append("--max_bad_fraction", "0.2")
    assert first.counts.dead_letters == 1
    path.write_bytes(whole)
    capsys.readouterr()
    manifest = warehouse.append()
    line = f"{path} has grown from {len(whole) // 2:,} to {len(whole):,} bytes since it was encoded: it is read again"
    assert line in capsys.readouterr().err
    assert manifest.generations[1].counts.duplicates == first.counts.videos
    assert len(videos(warehouse.output)) == 20
    assert warehouse.is_whole()
    warehouse.append()
    assert "Nothing new" in capsys.readouterr().out
    assert Manifest.load(warehouse.output).generation == 2


@pytest.mark.parametrize("place", [3, 20], ids=["of a length", "of a record"])
def test_a_damaged_file_that_was_mended_is_read_again(warehouse, capsys, place):
    """Its size says nothing: what was lost of it is there now."""
    path = pathlib.Path(warehouse.add("day1", frames(*range(20))))
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    first = warehouse.append("--max_bad_fraction", "1")
    assert first.counts.videos < 20
    warehouse.append()
    assert "Nothing new" in capsys.readouterr().out
    path.write_bytes(whole)
    warehouse.append()
    assert f"{path} was damaged, and has changed since it was encoded: it is read again" in capsys.readouterr().err
    assert len(videos(warehouse.output)) == 20
    assert warehouse.is_whole()
    warehouse.append()
    assert "Nothing new" in capsys.readouterr().out


def test_a_damaged_file_that_is_mended_while_it_is_read_ends_the_job(warehouse, capsys, monkeypatch):
    path = pathlib.Path(warehouse.add("day1", frames(*range(20))))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30] + bytes(30))
    crc32 = input_files.crc32

    def after_mending(name, num_bytes):
        path.write_bytes(whole)
        return crc32(name, num_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(input_files, "crc32", after_mending)
        with pytest.raises(SystemExit):
            warehouse.append("--max_bad_fraction", "1")
    assert (
        f"{path} is damaged, and was changed while it was read: run again when it is whole." in capsys.readouterr().err
    )
    assert not (warehouse.output / "manifest.json").exists()
    assert warehouse.append().counts.videos == 20


def test_a_file_that_grows_between_two_patterns_is_read_once():
    assert list(read_videos._new_files(("a", {"matched": [3, 5, 3], "known": []}))) == [("a", 5)]
    assert list(read_videos._new_files(("a", {"matched": [], "known": []}))) == []


def test_a_manifest_that_could_not_be_read_is_not_written(warehouse, capsys, monkeypatch):
    warehouse.add("day1", frames(*range(10)))
    size = len(warehouse.append().to_json())
    before = warehouse.files()
    warehouse.add("day2", frames(*range(10, 20)))
    monkeypatch.setattr(launch, "MAX_BYTES", size + 300)
    with pytest.raises(SystemExit):
        warehouse.append("--num_shards", "2")
    assert "600 bytes with 2 more shards" in capsys.readouterr().err.replace(f"{size + 600:,}", "600")
    assert warehouse.files() == before
    monkeypatch.undo()
    monkeypatch.setattr(generation_files, "MAX_BYTES", size + 300)
    with pytest.raises(SystemExit):
        warehouse.append("--num_shards", "2")
    message = f"manifest-00002.json would have .* bytes, more than the {size + 300:,} that are read: nothing was added"
    assert re.search(message, capsys.readouterr().err)
    assert not (warehouse.output / "manifest-00002.json").exists()


def test_files_that_were_just_written_can_be_left_for_the_next_run(warehouse, capsys):
    days = (frames(*range(10)), frames(*range(10, 20)))
    paths = [warehouse.add(f"day{index}", payloads) for index, payloads in enumerate(days)]
    encode.main(warehouse.arguments("--append", "--min_age", "10"))
    printed = capsys.readouterr()
    assert "2 of 2 files are younger than 10 minutes: they are left for the next run." in printed.err
    assert "Nothing to encode yet." in printed.out
    assert not (warehouse.output / "manifest.json").exists()
    os.utime(paths[0], (0, 0))
    assert warehouse.append("--min_age", "10").counts.videos == 10
    assert warehouse.append().counts.videos == 20
    assert warehouse.is_whole()


def test_a_file_that_has_shrunk_is_refused(warehouse, capsys):
    path = warehouse.add("day1", frames(0, 1))
    warehouse.append()
    before = warehouse.files()
    size = os.path.getsize(path)
    warehouse.add("day1", frames(0))
    warehouse.add("day2", frames(3))
    with pytest.raises(SystemExit) as stop:
        warehouse.append()
    assert stop.value.code == 1
    line = capsys.readouterr().err
    assert f"{path} has {os.path.getsize(path)} bytes, but had {size} when it was encoded: give the changed" in line
    assert warehouse.files() == before


@pytest.mark.parametrize("damage", ["another path", "another key", "another byte", "missing", "link", "longer"])
def test_a_damaged_list_of_input_files_is_refused(warehouse, capsys, damage):
    """What is new is decided by it: believed, it would leave files out in silence."""
    warehouse.add("day1", frames(0, 1))
    entry = warehouse.append().generations[0].inputs
    path = warehouse.output / entry.name
    text = path.read_text()
    match damage:
        case "another path":
            path.write_text(text.replace("day1", "day2"))
        case "another key":
            path.write_text(text.replace('"bytes"', '"bytec"'))
        case "another byte":
            path.write_bytes(b"\xe5" + text.encode()[1:])
        case "missing":
            path.unlink()
        case "link":
            path.rename(path.with_name("elsewhere"))
            path.symlink_to(path.with_name("elsewhere"))
        case "longer":
            path.write_text(text + " " * 10_000_000)
    warehouse.add("day2", frames(2, 3))
    with pytest.raises(SystemExit) as stop:
        warehouse.append()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert f"{path}, which lists files that were encoded, is damaged" in error
    assert len(error.splitlines()) == 1
    with pytest.raises(ManifestError, match="which lists files"):  # as workers read it
        list(known_videos.read_input_files(str(warehouse.output), entry))


def test_a_manifest_of_fewer_files_than_there_are_is_refused(warehouse):
    """As of a runner that loses records, or of files that are gone."""
    warehouse.add("day1", frames(0, 1))
    with pytest.raises(ManifestError, match="Only 1 of the 2 input files were read"):
        generation(warehouse, "day*", 0, num_files=2)
    assert not (warehouse.output / "manifest.json").exists()


def test_equal_videos_of_earlier_generations_are_counted_as_duplicates(warehouse):
    warehouse.add("day1", frames(*range(100)))
    warehouse.append("--num_shards", "3")
    warehouse.add("day2", frames(*range(50, 120)))
    warehouse.append("--num_shards", "4")
    warehouse.add("day3", frames(*range(90, 130), 125))
    manifest = warehouse.append("--num_shards", "3")
    counts = [generation.counts for generation in manifest.generations]
    assert [(count.videos, count.duplicates) for count in counts] == [(100, 0), (20, 50), (10, 31)]
    assert len(videos(warehouse.output)) == 130
    assert warehouse.is_whole()


def test_a_generation_of_duplicates_alone_has_no_shards_but_remembers_its_files(warehouse, capsys):
    warehouse.add("day1", frames(*range(10)))
    warehouse.append("--num_shards", "2")
    warehouse.add("day2", frames(*range(5)))
    manifest = warehouse.append()
    assert manifest.generations[1].shards == ()
    assert manifest.generations[1].counts.duplicates == 5
    warehouse.append()
    assert "Nothing new" in capsys.readouterr().out
    assert Manifest.load(warehouse.output).generation == 2
    assert warehouse.is_whole()


def test_another_video_of_an_earlier_id_is_a_dead_letter_with_both_places(warehouse):
    warehouse.add("day1", frames(*range(20)))
    first = warehouse.append()
    path = warehouse.add("day2", [frame_level(20), video_level(7)])
    manifest = warehouse.append("--max_bad_fraction", "0.5")
    (letter,) = warehouse.letters(2)
    assert (letter["id"], letter["file"], letter["offset"]) == ("video00007", path, 16 + len(frame_level(20)))
    assert f"here and in {first.shards[0].name}, which is kept" in letter["reason"]
    assert manifest.generations[1].counts.dead_letters == 1
    expected = frames(7)
    kept = videos(warehouse.output)[b"video00007"]
    assert expected
    assert kept == videos(warehouse.output, generation=1)[b"video00007"]
    assert warehouse.is_whole()


def test_too_many_conflicts_fail_the_job_and_leave_the_data_set(warehouse, capsys):
    warehouse.add("day1", frames(*range(20)))
    warehouse.append()
    before = videos(warehouse.output)
    warehouse.add("day2", [video_level(index) for index in range(10)])
    with pytest.raises(SystemExit):
        warehouse.append()
    assert "10 of 10 records are bad" in capsys.readouterr().err
    assert Manifest.load(warehouse.output).generation == 1
    assert videos(warehouse.output) == before
    assert len(warehouse.letters(2)) == 10


def test_another_model_is_refused(warehouse, tmp_path, capsys):
    warehouse.add("day1", frames(0))
    warehouse.append()
    warehouse.add("day2", frames(1))
    random_model(SPEC, seed=3).save(tmp_path / "other.safetensors")
    warehouse.model_path = str(tmp_path / "other.safetensors")
    with pytest.raises(SystemExit) as stop:
        warehouse.append()
    assert stop.value.code == 1
    assert "features of two models cannot be mixed: name that model" in capsys.readouterr().err


def test_looking_up_ids_does_not_read_codes(warehouse):
    """Damage to the codes of a shard that has no id in common stays unnoticed; with one in common it is an error."""
    warehouse.add("day1", frames(*range(50)))
    (entry,) = warehouse.append().shards
    path = warehouse.output / entry.name
    data = bytearray(path.read_bytes())
    codes = pq.ParquetFile(path).metadata.row_group(0).column(4)
    data[codes.data_page_offset + codes.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    warehouse.add("day2", frames(*range(50, 60)))
    assert warehouse.append().generations[1].counts.videos == 10
    warehouse.add("day3", frames(0))
    with pytest.raises(SystemExit):
        warehouse.append()
    assert Manifest.load(warehouse.output).generation == 2


def test_ids_are_looked_up_where_their_hash_says(warehouse, monkeypatch):
    opened = []
    init = Shard.__init__
    monkeypatch.setattr(Shard, "__init__", lambda self, *args: opened.append(args[1]) or init(self, *args))
    warehouse.add("day1", frames(*range(300)))
    manifest = warehouse.append("--num_shards", "50")
    warehouse.add("day2", frames(1000))
    warehouse.append()
    assert len(manifest.shards) > 40
    assert len(opened) <= 1


@pytest.mark.parametrize("workers", [(), ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")])
def test_a_generation_is_the_same_bytes_whatever_the_workers_and_the_order(warehouse, model_path, workers):
    payloads = frames(*range(150)) + [video_level(index) for index in range(150, 200)]
    for index in range(4):
        warehouse.add(f"day1-{index}", payloads[index::4])
    warehouse.run("--num_shards", "3")
    first = warehouse.output
    later = [*frames(*range(100, 150), *range(200, 250)), video_level(3), b"rubbish"]
    random.Random(0).shuffle(later)
    for index in range(3):
        warehouse.add(f"day2-{index}", later[index::3])
    warehouse.output = warehouse.folder / "copy"
    shutil.copytree(first, warehouse.output)
    options = ("--append", "--num_shards", "2", "--max_bad_fraction", "0.1")
    backwards = sorted(map(str, warehouse.input.iterdir()), reverse=True)
    encode.main(warehouse.arguments(*options, *workers, input=backwards))
    copied = {name: digest for name, (digest, _) in warehouse.files().items()}
    warehouse.output = first
    warehouse.run(*options)
    assert {name: digest for name, (digest, _) in warehouse.files().items()} == copied
    assert len(copied) == 3 + 2 + 2 + 2 + 1 + 1 + len(list(first.glob("dead-letters-*")))
    assert warehouse.is_whole()


def generation(warehouse, pattern, previous, **options):
    """Run what a launcher starts that saw generation `previous` as the newest."""
    model = FrozenModel.load(warehouse.model_path)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        encode.build_pipeline(
            pipeline,
            file_patterns=[str(warehouse.input / pattern)],
            model=warehouse.model_path,
            header=ShardHeader(model.model_id, model.spec, model.tables),
            output=str(warehouse.output),
            previous=previous,
            num_shards=2,
            **options,
        )


@pytest.mark.parametrize("previous", [0, 1])
def test_of_two_runs_at_once_the_second_adds_nothing_and_says_so(warehouse, previous):
    if previous:
        warehouse.add("day0", frames(*range(10)))
        generation(warehouse, "day0", 0)
    warehouse.add("day1", frames(*range(10, 50)))
    warehouse.add("day2", frames(*range(50, 90)))
    generation(warehouse, "day1", previous)
    before = warehouse.files()
    with pytest.raises(ManifestError, match=r"Another run wrote .* while this one was at work, .* run it again"):
        generation(warehouse, "day2", previous)
    assert warehouse.files() == before
    warehouse.append()
    assert len(videos(warehouse.output)) == 80 + 10 * previous
    assert warehouse.is_whole()


def test_of_two_equal_runs_at_once_both_succeed(warehouse):
    warehouse.add("day1", frames(*range(40)))
    generation(warehouse, "day1", 0)
    before = {name: digest for name, (digest, _) in warehouse.files().items()}
    generation(warehouse, "day1", 0)
    assert {name: digest for name, (digest, _) in warehouse.files().items()} == before
    assert warehouse.is_whole()


def test_a_run_with_nothing_new_adds_nothing_even_if_it_is_started(warehouse):
    """As a template's job is, whose launcher cannot but start it."""
    warehouse.add("day1", frames(*range(40)))
    generation(warehouse, "day1", 0)
    before = warehouse.files()
    generation(warehouse, "day1", 1)
    assert warehouse.files() == before


def test_a_file_that_changes_after_the_launch_fails_the_job(warehouse):
    warehouse.add("day1", frames(*range(40)))
    generation(warehouse, "day1", 0)
    warehouse.add("day1", frames(*range(39)))
    with pytest.raises(Exception, match="when it was encoded: give the changed file"):
        generation(warehouse, "day1", 1)
    assert Manifest.load(warehouse.output).generation == 1


def test_the_files_of_a_run_at_work_are_left_to_it(warehouse, monkeypatch):
    """While one run writes generation 2, another one commits it and cleans up."""
    warehouse.add("day1", frames(*range(10)))
    warehouse.append()
    warehouse.add("day2", frames(*range(10, 30)))
    write = generation_files.storage.write
    raced = []

    def race(uri, data):
        if not raced:
            raced.append(uri)
            subprocess.run(
                [sys.executable, "-m", "vidpress.pipeline.encode", *warehouse.arguments("--append")],
                check=True,
                capture_output=True,
            )
        write(uri, data)

    monkeypatch.setattr(generation_files.storage, "write", race)
    warehouse.append()
    assert raced
    assert Manifest.load(warehouse.output).generation == 2
    assert len(videos(warehouse.output)) == 30
    assert warehouse.is_whole()


def test_many_runs_at_once_end_in_a_whole_data_set(warehouse):
    """Real processes that start together; those that lose the race say so, and repeating them completes it."""
    warehouse.add("day0", frames(*range(10)))
    warehouse.append()
    paths = [warehouse.add(f"day{index}", frames(*range(index * 10, index * 10 + 15))) for index in range(1, 4)]
    command = [sys.executable, "-m", "vidpress.pipeline.encode"]
    racing = [
        subprocess.Popen([*command, *warehouse.arguments("--append", input=(path,))], stderr=subprocess.PIPE, text=True)
        for path in paths
    ]
    errors = [process.communicate()[1] for process in racing]
    codes = [process.returncode for process in racing]
    assert 0 in codes
    assert all(code == 0 or "run it again" in error for code, error in zip(codes, errors, strict=True)), errors
    assert Manifest.load(warehouse.output).generation == 1 + codes.count(0)
    warehouse.append()
    assert len(videos(warehouse.output)) == 45
    assert warehouse.is_whole()


def test_a_temporary_file_that_a_faster_run_took_for_a_leftover_is_written_again(tmp_path, monkeypatch):
    replace = os.replace
    lost = []

    def lose(source, target):
        if len(lost) < 2:
            lost.append(source)
            os.remove(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", lose)
    entry = generation_files.write_part(str(tmp_path), "shard", 1, (0, 1), 1, b"rows")
    assert len(set(lost)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def killed(arguments, owner, name, where="", main=encode.main):
    """Run a job that dies where it would call a function, with a first argument that ends with `where`."""
    function = getattr(owner, name)

    def die(first, *args, **kwargs):
        if str(first).endswith(where):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(first, *args, **kwargs)

    def target():
        setattr(owner, name, die)
        main(arguments)

    process = forked(target)
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("at", ["a shard's name", "the manifest", "the manifest's name"])
@pytest.mark.parametrize("previous", [0, 1])
def test_a_run_that_is_killed_leaves_the_data_set_as_it_was_and_is_repeated(warehouse, at, previous):
    function = {
        "a shard's name": (os, "replace"),
        "the manifest": (write_shards, "create_manifest"),
        "the manifest's name": (generation_files.storage, "write_new", ".json"),
    }[at]
    if previous:
        warehouse.add("day1", frames(*range(10)))
        warehouse.append()
    before = warehouse.files() if previous else {}
    warehouse.add("day2", frames(*range(10, 30)))
    killed(warehouse.arguments("--append", "--num_shards", "4"), *function)
    left = warehouse.files()
    assert set(left) > set(before)
    assert {name: entry for name, entry in left.items() if name in before} == before
    if previous:
        assert len(videos(warehouse.output)) == 10
        report = verify(warehouse.output)
        assert report.findings == []
        assert set(report.unlisted) == set(left) - set(before)
    else:
        with pytest.raises(ManifestError, match="its job did not finish"):
            VideoDataset(warehouse.output)
    manifest = warehouse.append("--num_shards", "3")
    assert manifest.generation == previous + 1
    assert len(videos(warehouse.output)) == 20 + 10 * previous
    report = verify(warehouse.output)
    assert report.findings == []
    assert not [name for name in report.unlisted if name.startswith(".")]
    for name in report.unlisted:  # what is left goes when it is old
        os.utime(warehouse.output / name, (0, 0))
    warehouse.add("day3", frames(30))
    warehouse.append()
    assert warehouse.is_whole()


def test_a_data_set_of_version_1_is_added_to(tmp_path):
    """It does not say what it was encoded from: all input is new to it, and what it holds is counted as duplicates."""
    warehouse = Warehouse(tmp_path, str(REPO / "tests" / "golden" / "model-v2.safetensors"))
    shutil.copytree(REPO / "tests" / "golden" / "data-set-v1", warehouse.output)
    warehouse.add("day1", frames(*range(35)))
    manifest = warehouse.append("--num_shards", "3")
    assert [generation.counts.videos for generation in manifest.generations] == [30, 5]
    assert manifest.generations[1].counts.duplicates == 30
    assert len(videos(warehouse.output)) == 35
    assert warehouse.is_whole()
    warehouse.append()
    assert Manifest.load(warehouse.output) == manifest


def test_a_template_becomes_a_job_even_if_nothing_is_new(warehouse, monkeypatch):
    warehouse.add("day1", frames(0))
    warehouse.append()
    started = []
    monkeypatch.setattr(beam_jobs, "run", lambda *args, **kwargs: started.append(kwargs["total"]) or 1.0)
    warehouse.append("--template_location", str(warehouse.folder / "job.json"))
    assert started == [0]
