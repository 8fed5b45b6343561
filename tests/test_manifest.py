import dataclasses
import itertools
import json
import shutil
import zlib

import numpy as np
import pytest
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.data_set.compaction import compacted, is_compact, is_continued
from vidpress.model.data_set.input_lists import InputChangedError, InputFile, is_new
from vidpress.model.data_set.manifest import (
    Counts,
    FileEntry,
    Generation,
    Manifest,
    ManifestError,
    manifest_numbers,
)
from vidpress.model.data_set.verification import verify
from vidpress.model.files.file_names import (
    file_name,
    generation_of,
    generation_of_manifest,
    is_part_name,
    is_temporary_name,
    manifest_name,
    shard_index,
)
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.strict_json import JsonError

GENERATION = Generation(
    num_shards=2,
    shards=(FileEntry("shard-00001-00000-of-00002-00112233aabb.parquet", 5, 1000, "a" * 64, (4, 1), 77),),
    dead_letters=(FileEntry("dead-letters-00001-00001-of-00002-00112233aabb.jsonl", 2, 100, "b" * 64),),
    inputs=FileEntry("inputs-00001-00112233aabb.jsonl", 3, 100, "c" * 64),
    counts=Counts(records=10, videos=5, duplicates=3, dead_letters=2, input_bytes=9000, code_bytes=50, lost_bytes=7),
)


def numbered(number: int) -> Generation:
    """`GENERATION` as a later one."""

    def rename(entry: FileEntry) -> FileEntry:
        return dataclasses.replace(entry, name=entry.name.replace("-00001-", f"-{number:05d}-", 1))

    return dataclasses.replace(
        GENERATION,
        shards=tuple(map(rename, GENERATION.shards)),
        dead_letters=tuple(map(rename, GENERATION.dead_letters)),
        inputs=rename(GENERATION.inputs),
    )


DECODER = FileEntry("decoder-00001-00112233aabb.safetensors", 0, 3000, "d" * 64)
COLUMNS = (KeptColumn("title", "string"), KeptColumn("thumb", "bytes"))
TABLES = FileEntry("tables-00001-00112233aabb.bin", 0, 4000, "f" * 64)
MANIFEST = Manifest("0123456789abcdef", 40, (GENERATION, numbered(2)), decoder=DECODER, columns=COLUMNS, tables=TABLES)
COMPACTED = compacted(
    MANIFEST, 1, [FileEntry("shard-00003-00000-of-00001-00112233aabb.parquet", 10, 1500, "e" * 64, (10,), 78)]
)
GOLDEN = REPO / "tests" / "golden"


def test_json_round_trip():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json()).to_json() == MANIFEST.to_json()


def test_a_manifest_sums_up_its_generations():
    assert MANIFEST.generation == 2
    assert MANIFEST.shards == GENERATION.shards + numbered(2).shards
    assert MANIFEST.dead_letters == GENERATION.dead_letters + numbered(2).dead_letters
    assert MANIFEST.counts == Counts(20, 10, 6, 4, 18000, 100, 14)
    assert dataclasses.replace(MANIFEST, generations=()).counts == Counts(0, 0, 0, 0, 0, 0, 0)
    assert MANIFEST.files == (*GENERATION.files, *numbered(2).files, DECODER, TABLES)
    assert dataclasses.replace(MANIFEST, decoder=None, tables=None).files == MANIFEST.files[:-2]


def test_a_compaction_takes_over_shards_and_nothing_else():
    (shard,) = COMPACTED.shards
    assert Manifest.from_json(COMPACTED.to_json()) == COMPACTED
    assert (COMPACTED.counts, COMPACTED.dead_letters) == (MANIFEST.counts, MANIFEST.dead_letters)
    assert [held.videos for held in COMPACTED.held] == [0, 0, 10]
    assert set(COMPACTED.files) == {*MANIFEST.files, shard} - {*MANIFEST.shards}
    assert (MANIFEST.newest_compaction, COMPACTED.newest_compaction) == (0, 3)
    assert is_compact(COMPACTED)
    assert not is_compact(MANIFEST)
    later = dataclasses.replace(COMPACTED, generations=(*COMPACTED.generations, numbered(4)))
    entry = dataclasses.replace(shard, name=shard.name.replace("00003", "00005"), rows=15, row_groups=(15,))
    again = compacted(later, 1, [entry])
    assert Manifest.from_json(again.to_json()) == again
    assert [generation.replaced_by for generation in again.generations] == [5, 5, 5, 5, None]
    manifests = [MANIFEST, COMPACTED, later, again]
    assert all(is_continued(*pair) for pair in itertools.combinations(manifests, 2))
    for damaged in (
        dataclasses.replace(MANIFEST, num_dims=41),
        dataclasses.replace(MANIFEST, generations=(numbered(1), dataclasses.replace(numbered(2), num_shards=3))),
        dataclasses.replace(MANIFEST, generations=(numbered(1), dataclasses.replace(numbered(2), inputs=None))),
    ):
        assert not any(is_continued(damaged, later) for later in manifests)


def test_unaccounted_records():
    assert GENERATION.counts.unaccounted == 0
    assert Counts(10, 5, 3, 1, 0, 0).unaccounted == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a vidpress manifest"),
        ("[]", "is not a vidpress manifest"),
        ("{}", "is not a vidpress manifest"),
        (
            '{"format_version": 7}',
            "format version 7; this vidpress reads 1, 2, 3, 4, 5, 6: install the version that wrote",
        ),
        ('{"format_version": 1}', "is damaged: .* missing required field"),
        ('{"format_version": 2, "model_id": "x", "num_dims": 1, "generations": 5}', "is damaged: .*model_id"),
        (MANIFEST.to_json().replace('"rows"', '"lines"'), "is damaged: .* missing required field `rows`"),
        (MANIFEST.to_json().replace('"videos": 5', '"videos": null'), r"is damaged: Expected `int`, got `null`"),
        (
            MANIFEST.to_json().replace('"videos": 5', '"videos": 6'),
            "counts 6 videos, its files have 5 rows",
        ),
        (MANIFEST.to_json().replace('"num_shards": 2', '"num_shards": 0'), "is damaged: .* >= 1"),
        (MANIFEST.to_json().replace('"num_shards": 2', f'"num_shards": {2**64}'), "is damaged"),
        (MANIFEST.to_json().replace('"num_shards": 2', '"num_shards": 3'), "is listed as one of 3 parts"),
        (MANIFEST.to_json().replace("   4,", "   0,"), "is damaged: .* >= 1"),
        (MANIFEST.to_json().replace("   4,", "   3,"), r"has 5 rows in row groups of \[3, 1\]"),
        (MANIFEST.to_json().replace("shard-00002-", "shard-00001-"), "listed as a file of generation 2"),
        (MANIFEST.to_json().replace('"decoder-', '"../decoder-'), "is not the name of a decoder"),
        (MANIFEST.to_json().replace('"tables-', '"../tables-'), "is not the name of a file of tables"),
        (
            MANIFEST.to_json().replace('"decoder-', '"inputs-').replace(".safetensors", ".jsonl"),
            "not the name of a dec",
        ),
        (MANIFEST.to_json().replace('"kind": "bytes"', '"kind": "text"'), "is damaged: .*kind"),
        (
            MANIFEST.to_json().replace('"key": "title"', '"key": "thumb"'),
            "damaged: 'thumb' and 'thumb' would be one",
        ),
        (MANIFEST.to_json().replace('"key": "title"', '"key": ""'), "is damaged: A kept feature needs a name"),
        (MANIFEST.to_json().replace('"decoder"', '"decodes"'), "does not have the fields that vidpress writes"),
        (
            COMPACTED.to_json().replace('"replaced_by": 3', '"replaced_by": null', 1),
            "counts 5 videos, its files have 0",
        ),
        (
            COMPACTED.to_json().replace('"replaced_by": 3', '"replaced_by": 4', 1),
            "generation 1 is replaced by .* 4, which",
        ),
        (
            COMPACTED.to_json().replace('"replaced_by": 3', '"replaced_by": 2', 1),
            "generation 1 is replaced by .* 2, which",
        ),
        (
            COMPACTED.to_json().replace('"replaced_by": null', '"replaced_by": 3'),
            "generation 1 is replaced by .* 3, which",
        ),
        (
            COMPACTED.to_json().replace('"rows": 10', '"rows": 9').replace("10\n", "9\n"),
            "counts 10 videos, its files have 9",
        ),
        (MANIFEST.to_json().replace('"replaced_by": null', '"replaced_by": 0'), "is damaged: .* >= 1"),
        (MANIFEST.to_json().replace('"replaced_by"', '"replaces"'), "does not have the fields that vidpress writes"),
        ("[" * 200_000, "is not a vidpress manifest: Expected `object`, got `array`"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("9" * 100_000, "is not a vidpress manifest"),
    ],
)
def test_unusable_manifests_are_refused(text, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(text, name="folder/manifest.json")


def test_absent_manifest_says_what_that_means(tmp_path):
    with pytest.raises(ManifestError, match=r"holds no manifest\.json: it is not a vidpress data set, or its job did"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret/shard-00001-00000-of-00002-00112233aabb.parquet",
        "/etc/passwd",
        "gs://bucket/shard-00001-00000-of-00002-00112233aabb.parquet",
        "shard-00001-00000-of-00002-00112233aabb.parquet/",
        "shard-00001-00000-of-00002-00112233aabb.jsonl",
        "dead-letters-00001-00000-of-00002-00112233aabb.jsonl",
        "manifest.json",
        "..",
        "",
    ],
)
def test_nothing_but_names_of_ours_is_taken(name):
    """Names lead to no other folder, store or kind of file."""
    shard = dataclasses.replace(GENERATION.shards[0], name=name)
    manifest = dataclasses.replace(MANIFEST, generations=(dataclasses.replace(GENERATION, shards=(shard,)),))
    with pytest.raises(ManifestError, match="is not the name of one of a data set's shard files"):
        Manifest.from_json(manifest.to_json())


@given(st.sets(st.integers(1, 200_000), max_size=20))
def test_manifests_are_seen_whatever_is_missing(tmp_path_factory, numbers):
    folder = tmp_path_factory.mktemp("numbers")
    for number in numbers:
        (folder / manifest_name(number)).touch()
    for other in (
        "manifest-00001.json",
        "manifest-2.json",
        "manifest.json.bak",
        "manifest-\u0661\u0661\u0661\u0661\u0661.json",
    ):
        (folder / other).touch()
    assert manifest_numbers(folder) == numbers


def test_generations_by_number(tmp_path):
    for number in range(1, 4):
        manifest = dataclasses.replace(MANIFEST, generations=tuple(map(numbered, range(1, number + 1))))
        (tmp_path / manifest_name(number)).write_text(manifest.to_json())
    assert Manifest.load(tmp_path).generation == 3
    assert Manifest.load(tmp_path, 2).generation == 2
    with pytest.raises(ManifestError, match=r"holds no manifest-00009\.json, which never existed"):
        Manifest.load(tmp_path, 9)
    (tmp_path / manifest_name(2)).rename(tmp_path / manifest_name(4))
    with pytest.raises(ManifestError, match=r"manifest-00004\.json lists 2 generations, its name says 4"):
        Manifest.load(tmp_path)
    (tmp_path / manifest_name(4)).unlink()
    assert Manifest.load(tmp_path).generation == 3
    with pytest.raises(ManifestError, match=r"manifest-00002\.json, which is lost.* 3, holds all that is older"):
        Manifest.load(tmp_path, 2)


def test_a_newest_manifest_that_is_damaged_is_an_error_and_not_passed_over(tmp_path):
    shutil.copytree(GOLDEN / "data-set-v2", tmp_path / "out")
    (tmp_path / "out" / "manifest-00002.json").write_text('{"format_ver')
    with pytest.raises(ManifestError, match=r"manifest-00002\.json is not a vidpress manifest"):
        VideoDataset(tmp_path / "out")
    assert VideoDataset(tmp_path / "out", generation=1).num_videos == 30


def test_names_of_files():
    name = file_name("shard", 2, (7, 30), "0123456789abcdef")
    assert name == "shard-00002-00007-of-00030-0123456789ab.parquet"
    assert (generation_of(name), shard_index(name)) == (2, 7)
    assert generation_of(f".{name}.{'0a' * 16}.tmp") == 2
    assert generation_of(file_name("inputs", 123456, None, "0" * 64)) == 123456
    assert generation_of(file_name("dead-letters", 3, (0, 1), "0" * 64)) == 3
    assert shard_index("shard-00003-of-00004.parquet") == 3  # as version 1 named them
    for other in ("shard-00003-of-00004.parquet", "shard-1.parquet", f"x{name}", ".notes.tmp"):
        assert generation_of(other) is None
        assert not is_part_name(other)
        assert not is_temporary_name(other)
    assert is_part_name(name)
    digits = "0123456789abcdef" * 2
    for written in (name, "manifest.json", "manifest-00012.json", f".write-test-{digits}"):
        assert is_temporary_name(f".{written}.{digits}.tmp")
        assert not is_part_name(f".{written}.{digits}.tmp")
    assert is_temporary_name(f".write-test-{digits}")
    assert not is_temporary_name(".write-test-mine")
    assert (generation_of_manifest("manifest.json"), generation_of_manifest("manifest-00012.json")) == (1, 12)
    assert generation_of(f".manifest-00012.json.{digits}.tmp") == 12
    with pytest.raises(ValueError, match="not the name of a shard"):
        shard_index("shard.parquet")


def test_new_input_files():
    assert is_new("a", 5, [])
    assert not is_new("a", 5, [(5, None)])
    assert is_new("a", 6, [(5, None)])  # it had not been whole
    assert not is_new("a", 6, [(5, None), (6, None)])
    with pytest.raises(InputChangedError, match="a has 5 bytes, but had 6 when it was encoded: give the changed file"):
        is_new("a", 5, [(5, None), (6, None)])


def test_a_damaged_input_file_is_new_when_it_has_changed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"whole")
    now, before = zlib.crc32(b"whole"), zlib.crc32(b"whol\0")
    assert is_new(str(path), 5, [(5, before)])
    assert not is_new(str(path), 5, [(5, now)])
    assert not is_new(str(path), 5, [(5, before), (5, now)])
    assert not is_new(str(path), 5, [(5, before), (5, None)])
    assert is_new(str(path), 5, [(4, None), (5, before)])


def test_lists_of_input_files():
    file = InputFile("/data/a", 100, 5, 90, 10)
    assert not {"damaged_crc32", "labels_key"} & set(json.loads(file.to_json()))
    for each in (file, dataclasses.replace(file, damaged_crc32=7), dataclasses.replace(file, labels_key="topics")):
        assert InputFile.from_json(each.to_json().encode()) == each
    assert InputFile.from_json(b'{"bytes": 100, "file": "/data/a", "record_bytes": 90, "records": 5}').lost_bytes == 0
    for line in (b"[]", b'{"file": "/a", "bytes": "1", "records": 1, "record_bytes": 1}', b"[" * 30_000, b"9" * 70_000):
        with pytest.raises(JsonError):
            InputFile.from_json(line)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_golden_data_set_is_read(version):
    folder = GOLDEN / f"data-set-v{version}"
    manifest = Manifest.load(folder)
    assert manifest.generation == {1: 1, 5: 4, 6: 4}.get(version, 2)
    counts = [
        Counts(31, 30, 0, 1, {5: 9549, 6: 9549}.get(version, 8159), manifest.generations[0].counts.code_bytes),
        Counts(13, 10, 2, 1, {2: 2533, 3: 3359, 4: 3208}.get(version, 3921), {2: 21, 3: 4}.get(version, 7)),
        Counts(0, 0, 0, 0, 0, 0),
        Counts(7, 5, 2, 0, 2645, 2),
    ]
    assert [generation.counts for generation in manifest.generations] == counts[: manifest.generation]
    assert list(map(str, manifest.columns)) == (["title:string", "segment_scores:float"] if version >= 5 else [])
    holders = [generation.replaced_by for generation in manifest.generations]
    assert holders == ([3, 3, None, None] if version >= 5 else [None] * manifest.generation)
    ids = [video_id for batch in VideoDataset(folder) for video_id in batch.ids]
    assert sorted(ids) == [f"video{index:05d}".encode() for index in range({1: 30, 5: 45, 6: 45}.get(version, 40))]
    assert verify(folder).findings == []
    assert (manifest.decoder is not None) == (version >= 4)
    assert (manifest.tables is not None) == (version >= 6)
    if version >= 5:
        for number in range(1, 5):
            if version == 6:
                assert Manifest.load(folder, number).to_json() == (folder / manifest_name(number)).read_text()
            assert VideoDataset(folder, generation=number).num_videos == (30, 40, 40, 45)[number - 1]
        kept = VideoDataset(folder).to_arrow(["id", "title", "segment_scores"]).sort_by("id")
        assert kept["title"].to_pylist() == [None if i % 3 == 0 else [f"Titel {i} \u00e4"] for i in range(45)]
        assert kept["segment_scores"].to_pylist() == [[float(np.float32(i / 7))] * (i % 4) for i in range(45)]
    if version >= 4:
        restored = {
            id: x
            for ids, _, features in VideoDataset(folder, features="input")
            for id, x in zip(ids, features, strict=True)
        }
        found = [restored[id] for id in sorted(restored)][:40]
        np.testing.assert_array_equal(found, np.load(GOLDEN / "data-set-v4.npy"))
