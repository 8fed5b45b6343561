"""Compacting a data set: the same videos in fewer shards, whoever reads or adds meanwhile, and whenever it dies."""

import dataclasses
import os
import pathlib
import shutil

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from data_sets import write_data_set
from test_append import Warehouse, frames, generation, killed, videos

from vidpress.model.data_set.manifest import Manifest, ManifestError, manifest_numbers
from vidpress.model.data_set.verification import verify
from vidpress.model.files.file_names import manifest_name, shard_index
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.pipeline import compact, decode, encode
from vidpress.pipeline.launching import cli
from vidpress.transforms.compaction import compact_shards
from vidpress.transforms.generations import generation_files

DAY = 24 * 60 * 60


@pytest.fixture(scope="module")
def days(model_path, tmp_path_factory):
    """Three generations of 100 videos, some of them in two of the input files, and a dead letter."""
    made = Warehouse(tmp_path_factory.mktemp("days"), model_path)
    for day, num_shards in enumerate((3, 2, 1)):
        made.add(f"day{day}", [*frames(*range(30 * day, 30 * day + 40)), b"rubbish"][: 40 + (day == 1)])
        made.append("--num_shards", str(num_shards), "--max_bad_fraction", "0.5")
    return made


@pytest.fixture(scope="module")
def whole(days):
    """The shards of encoding the same videos at once, into four."""
    output = days.folder / "whole"
    paths = sorted(map(str, days.input.iterdir()), reverse=True)
    options = ["--num_shards", "4", "--max_bad_fraction", "0.5"]
    encode.main(["--input", *paths, "--model", days.model_path, "--output", str(output), *options])
    return shard_bytes(output, Manifest.load(output))


@pytest.fixture
def made(days, tmp_path):
    """A copy of the data set, to change, and a folder for more input."""
    copy = Warehouse(tmp_path, days.model_path)
    shutil.copytree(days.output, copy.output)
    return copy


def compact_it(warehouse, *options) -> Manifest:
    compact.main([str(warehouse.output), *options])
    return Manifest.load(warehouse.output)


def run_compaction(warehouse, previous: int, num_shards: int = 1) -> None:
    """Run what a launcher starts that saw generation `previous` as the newest."""
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        compact.build_pipeline(pipeline, data_set=str(warehouse.output), previous=previous, num_shards=num_shards)


def grow_old(warehouse, days: float = 1000, names: str = "*") -> None:
    for path in warehouse.output.glob(names):
        then = path.stat().st_mtime - days * DAY
        os.utime(path, (then, then))


def shard_bytes(folder: pathlib.Path, manifest: Manifest) -> dict[int, bytes]:
    return {shard_index(entry.name): (folder / entry.name).read_bytes() for entry in manifest.shards}


@pytest.mark.parametrize("workers", [(), ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")])
def test_the_shards_are_those_of_encoding_everything_at_once(made, whole, workers, capsys):
    before = made.files()
    videos_before = videos(made.output)
    capsys.readouterr()
    manifest = compact_it(made, "--num_shards", "4", *workers)
    printed = capsys.readouterr().out
    assert printed.startswith("Compacted 100 videos in ")
    assert "bytes in 6 shards\n" in printed
    assert f"Generation 4 of {made.output} holds all videos now." in printed
    assert shard_bytes(made.output, manifest) == whole
    assert len(manifest.shards) == 4
    assert {name: entry for name, entry in made.files().items() if name in before} == before
    assert videos(made.output) == videos_before
    assert len(videos(made.output, generation=2)) == 70
    counts = Manifest.load(made.output, 3).counts
    assert manifest.counts == counts
    assert made.is_whole()


def test_a_compacted_data_set_is_added_to_read_and_compacted_again(made, days, tmp_path, capsys):
    reader = VideoDataset(made.output)
    compact_it(made)
    encode.main(made.arguments("--append", input=(f"{days.input}/*",)))
    assert "Nothing new" in capsys.readouterr().out  # it knows its input files
    made.add("day3", frames(*range(95, 110)))
    counts = made.append().generations[-1].counts
    assert (counts.videos, counts.duplicates) == (10, 5)  # and its videos
    assert reader.get(["video00042"]).ids == VideoDataset(made.output).get(["video00042"]).ids
    assert len(VideoDataset(made.output).get([f"video{index:05d}" for index in range(110)]).ids) == 110
    decode.main(["--input", str(made.output), "--output", str(tmp_path / "features"), "--format", "parquet"])
    assert len(pq.read_table(tmp_path / "features")) == 110
    assert len([batch for batch in reader for _ in batch.ids]) == 100
    manifest = compact_it(made, "--num_shards", "2")
    dataset = VideoDataset(made.output)
    assert dataset.shard_files == [str(made.output / entry.name) for entry in manifest.shards]
    assert [VideoDataset(path).shard_files for path in dataset.shard_files] == [[path] for path in dataset.shard_files]
    assert [each.replaced_by for each in manifest.generations] == [6] * 5 + [None]
    assert len(videos(made.output)) == manifest.counts.videos == 110
    for number in range(1, 6):
        assert len(videos(made.output, generation=number)) == (40, 70, 100, 100, 110)[number - 1]
    assert made.is_whole()
    capsys.readouterr()
    cli.main(["inspect", str(made.output)])
    lines = capsys.readouterr().out.splitlines()
    assert "    1 to 5         110 videos in the shards of generation 6" in lines
    assert "    6              110 videos, 110 of them of earlier generations, in 2 shards (of 2)" in lines


def test_if_there_is_nothing_to_compact_nothing_is_written(made, capsys):
    compact_it(made)
    made.add("day3", frames(*range(5)))
    made.append()  # a generation of duplicates alone, without shards
    before = made.files()
    capsys.readouterr()
    compact_it(made)
    run_compaction(made, 5)  # as a template's job does, whose launcher cannot but start it
    assert capsys.readouterr().out == (
        f"Nothing to compact: {made.output} has 100 videos in 1 shard of one generation.\n"
    )
    assert made.files() == before


def test_the_number_of_shards_follows_from_the_codes(made, monkeypatch):
    counts = Manifest.load(made.output).counts
    monkeypatch.setattr(compact, "CODE_BYTES_PER_SHARD", counts.code_bytes // 3)
    assert compact_it(made).generations[-1].num_shards == 4


def test_shards_have_no_more_of_all_columns_or_videos_than_fits(made, monkeypatch):
    before = Manifest.load(made.output)
    assert compact.default_num_shards(before) == 1
    stored = sum(entry.bytes for entry in before.shards)
    for name, amount in (("BYTES_PER_SHARD", stored), ("VIDEOS_PER_SHARD", before.counts.videos)):
        with monkeypatch.context() as patch:
            patch.setattr(compact, name, amount // 5)
            assert compact.default_num_shards(before) in (5, 6)
    monkeypatch.setattr(compact, "VIDEOS_PER_SHARD", 1)
    many = dataclasses.replace(before.counts, videos=10**6)
    monkeypatch.setattr(type(before), "counts", property(lambda manifest: many))
    assert compact.default_num_shards(before) == 100_000


@pytest.mark.parametrize("first", ["append", "compaction"])
def test_of_an_append_and_a_compaction_at_once_the_second_adds_nothing(made, first):
    """What either of them removes when it fails is its own: earlier shards still have readers."""
    made.add("day3", frames(*range(100, 120)))
    append = (lambda: generation(made, "day3", 3), 120)
    compaction = (lambda: run_compaction(made, 3), 100)
    (winner, num_videos), (loser, _) = (append, compaction) if first == "append" else (compaction, append)
    winner()
    before = made.files()
    with pytest.raises(ManifestError, match=r"Another run wrote .*manifest-00004.* added nothing: run it again"):
        loser()
    assert made.files() == before
    assert len(videos(made.output)) == num_videos
    assert len(videos(made.output, generation=3)) == 100
    made.append()
    compact_it(made)
    assert len(videos(made.output)) == 120
    assert made.is_whole()


def test_of_two_compactions_at_once_one_is_seen(made):
    run_compaction(made, 3, num_shards=2)
    before = made.files()
    run_compaction(made, 3, num_shards=2)  # the same bytes
    assert made.files().keys() == before.keys()
    with pytest.raises(ManifestError, match="run it again"):
        run_compaction(made, 3, num_shards=3)
    assert made.files().keys() == before.keys()
    assert made.is_whole()


@pytest.mark.parametrize(
    "function",
    [(os, "replace"), (compact_shards, "create_manifest"), (generation_files.storage, "write_new", ".json")],
    ids=["a shard's name", "the manifest", "the manifest's name"],
)
def test_a_compaction_that_is_killed_is_not_seen_and_is_repeated(made, function):
    before = made.files()
    killed([str(made.output), "--num_shards", "4"], *function, main=compact.main)
    left = made.files()
    assert set(left) > set(before)
    assert {name: entry for name, entry in left.items() if name in before} == before
    report = verify(made.output)
    assert (report.findings, set(report.unlisted)) == ([], set(left) - set(before))
    assert len(videos(made.output)) == 100
    assert compact_it(made, "--num_shards", "2").generation == 4
    assert len(videos(made.output)) == 100
    grow_old(made)
    made.add("day3", frames(100))
    made.append()  # it removes what is left of the first attempt, and nothing that earlier generations need
    assert set(made.files()) >= set(before)
    assert len(videos(made.output, generation=3)) == 100
    assert made.is_whole()


def test_what_a_compaction_replaced_is_removed_when_it_is_old_enough(made, days, capsys):
    before = made.files()
    expired = [entry.name for entry in Manifest.load(made.output).shards]
    compact_it(made)
    grow_old(made, 10)
    made.add("day3", frames(*range(100, 110)))
    made.append()
    compact_it(made)  # a young one, which does not keep what the one before it replaced
    later = set(made.files()) - set(before)
    capsys.readouterr()
    compact_it(made, "--expire", "30")
    assert capsys.readouterr().out == f"Nothing to expire: the compaction of {made.output} is less than 30 days old.\n"
    num_bytes = sum((made.output / name).stat().st_size for name in expired)
    compact_it(made, "--expire=7")
    assert capsys.readouterr().out == (
        f"Removed from {made.output}: the manifests of generations 1 to 3 and 6 shards of {num_bytes:,} bytes. "
        "Generation 4 holds their videos.\n"
    )
    assert manifest_numbers(made.output) == {4, 5, 6}
    assert set(made.files()) == (set(before) | later) - {*expired, *map(manifest_name, (1, 2, 3))}
    assert made.is_whole()
    assert [len(videos(made.output, generation=number)) for number in (4, 5, 6)] == [100, 110, 110]
    compact_it(made, "--expire=7")
    assert capsys.readouterr().out == (
        f"Nothing to expire: {made.output} has nothing left that its generation 4 replaced.\n"
    )
    with pytest.raises(
        ManifestError,
        match=r"holds no manifest-00002\.json, which was removed by `vidpress compact --expire`, or is lost\. Its "
        "newest generation, 6, holds all that is older",
    ):
        VideoDataset(made.output, generation=2)
    encode.main(made.arguments("--append", input=(f"{days.input}/*",)))
    assert "Nothing new" in capsys.readouterr().out
    (made.output / manifest_name(5)).unlink()
    (line,) = verify(made.output).findings
    assert "holds no manifest-00005.json, which is lost" in line


def test_expiring_needs_a_compaction_and_no_shards(made, capsys):
    before = made.files()
    compact_it(made, "--expire", "0")
    assert capsys.readouterr().out == f"Nothing to expire: {made.output} was never compacted.\n"
    with pytest.raises(SystemExit) as stop:
        compact_it(made, "--expire", "0", "--num_shards", "2")
    assert stop.value.code == 1
    assert "--expire writes no shards: leave out --num_shards" in capsys.readouterr().err
    assert made.files() == before


@pytest.mark.parametrize("where", [manifest_name(1), manifest_name(3), ".parquet"])
def test_expiring_that_is_killed_is_completed(made, where):
    (kept,) = compact_it(made).shards
    killed([str(made.output), "--expire", "0"], os, "remove", where, main=compact.main)
    report = verify(made.output)
    assert report.findings == []
    assert len(videos(made.output)) == 100
    compact_it(made, "--expire", "0")
    assert manifest_numbers(made.output) == {4}
    assert [path.name for path in made.output.glob("shard-*")] == [kept.name]
    assert made.is_whole()


def test_version_1s_shards_are_removed_too(tmp_path, model):
    folder = tmp_path / "out"
    shutil.copytree(pathlib.Path(__file__).parent / "golden" / "data-set-v1", folder)
    first = Manifest.load(folder)
    warehouse = Warehouse(tmp_path, str(pathlib.Path(__file__).parent / "golden" / "model-v2.safetensors"))
    warehouse.add("day1", frames(*range(35)))
    warehouse.append()
    (folder / "shard-00000-of-00009.parquet").write_bytes(b"another program's")
    compact_it(warehouse)
    assert len(videos(folder)) == 35
    compact_it(warehouse, "--expire", "0")
    assert not set(warehouse.files()) & {entry.name for entry in first.shards}
    assert (folder / "shard-00000-of-00009.parquet").exists()
    assert len(videos(folder)) == 35
    assert warehouse.is_whole()


@pytest.mark.parametrize("previous", [0, 1])
def test_a_run_that_is_older_than_a_compaction_adds_nothing_and_says_so(made, previous):
    """The manifest's name that it would write is free again; what it wrote would be in no later generation."""
    made.add("day3", frames(*range(100, 120)))
    compact_it(made)
    compact_it(made, "--expire", "0")
    files = made.files()
    with pytest.raises(ManifestError, match="added nothing: run it again" if previous == 0 else "which was removed by"):
        generation(made, "day3", previous)
    assert manifest_numbers(made.output) == {4}
    assert made.files().keys() >= files.keys()
    assert len(videos(made.output)) == 100


def test_ids_that_occur_twice_are_not_compacted(made, capsys, tmp_path, model):
    """As of a data set that was put together by hand: neither of them is lost in silence."""
    folder = tmp_path / "twice"
    folder.mkdir()
    write_data_set(folder, model, 40, num_shards=1, generations=2)
    manifest = Manifest.load(folder)
    first, _ = manifest.generations
    entry = dataclasses.replace(first.shards[0], name=first.shards[0].name.replace("00001", "00002", 1))
    shutil.copy(folder / first.shards[0].name, folder / entry.name)
    twice = dataclasses.replace(first, shards=(entry,))
    damaged = dataclasses.replace(manifest, generations=(first, twice))
    (folder / manifest_name(2)).write_text(damaged.to_json())
    with pytest.raises(SystemExit) as stop:
        compact.main([str(folder)])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert f"{folder} cannot be compacted, and was left as it is (found 20 videos, not 40" in error
    assert "`vidpress verify` says what is damaged" in error
    assert manifest_numbers(folder) == {1, 2}


def test_a_damaged_shard_is_not_copied(made, capsys):
    entry = Manifest.load(made.output).shards[0]
    path = made.output / entry.name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit) as stop:
        compact_it(made)
    assert stop.value.code == 1
    assert entry.name in capsys.readouterr().err
    assert manifest_numbers(made.output) == {1, 2, 3}


def test_verify_misses_shards_that_only_earlier_generations_have(made):
    entry = Manifest.load(made.output).shards[0]
    compact_it(made)
    (made.output / entry.name).unlink()
    assert verify(made.output).findings == [
        f"{made.output / entry.name} is missing, which earlier generations have: fetch it again."
    ]


def test_beams_options_may_come_first(made, capsys):
    compact.main(["--runner", "FnApiRunner", "--direct_num_workers", "1", str(made.output), "--num_shards", "2"])
    assert Manifest.load(made.output).generations[-1].num_shards == 2
    for arguments in ([str(made.output), "more"], []):
        with pytest.raises(SystemExit) as stop:
            compact.main(arguments)
        assert stop.value.code == 2
    assert "more" in capsys.readouterr().err


def test_other_folders_are_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        compact.main([str(tmp_path / "nothing")])
    assert stop.value.code == 1
    assert f"vidpress compact: error: {tmp_path}/nothing holds no manifest.json" in capsys.readouterr().err
