import dataclasses
import shutil

import pytest
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.dataset import VideoDataset
from vidpress.model.manifest import (
    Counts,
    FileEntry,
    Generation,
    InputChangedError,
    Manifest,
    ManifestError,
    file_name,
    generation_of,
    is_new,
    manifest_name,
    newest_generation,
    shard_index,
)
from vidpress.model.verification import verify

GENERATION = Generation(
    num_shards=2,
    shards=(FileEntry("shard-00001-00000-of-00002-00112233aabb.parquet", 5, 1000, "aa", (4, 1)),),
    dead_letters=(FileEntry("dead-letters-00001-00001-of-00002-00112233aabb.jsonl", 2, 100, "bb"),),
    inputs=FileEntry("inputs-00001-00112233aabb.jsonl", 3, 100, "cc"),
    counts=Counts(records=10, videos=5, duplicates=3, dead_letters=2, input_bytes=9000, code_bytes=50),
)
MANIFEST = Manifest(model_id="0123456789abcdef", num_dims=40, generations=(GENERATION, GENERATION))
GOLDEN = REPO / "tests" / "golden"


def test_json_round_trip():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json()).to_json() == MANIFEST.to_json()


def test_a_manifest_sums_up_its_generations():
    assert MANIFEST.generation == 2
    assert MANIFEST.shards == 2 * GENERATION.shards
    assert MANIFEST.dead_letters == 2 * GENERATION.dead_letters
    assert MANIFEST.counts == Counts(20, 10, 6, 4, 18000, 100)
    assert dataclasses.replace(MANIFEST, generations=()).counts == Counts(0, 0, 0, 0, 0, 0)


def test_unaccounted_records():
    assert GENERATION.counts.unaccounted == 0
    assert Counts(10, 5, 3, 1, 0, 0).unaccounted == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a vidpress manifest"),
        ("[]", "is not a vidpress manifest"),
        ("{}", "is not a vidpress manifest"),
        ('{"format_version": 3}', "format version 3; this vidpress reads 1, 2: install the version that wrote it"),
        ('{"format_version": 1}', "is damaged: KeyError"),
        ('{"format_version": 2, "model_id": "x", "num_dims": 1, "generations": 5}', "is damaged: TypeError"),
        (MANIFEST.to_json().replace('"rows"', '"lines"'), "is damaged"),
    ],
)
def test_unusable_manifests_are_refused(text, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(text, name="folder/manifest.json")


def test_absent_manifest_says_what_that_means(tmp_path):
    with pytest.raises(ManifestError, match=r"holds no manifest\.json: it is no vidpress data set, or its job did not"):
        Manifest.load(tmp_path)


@given(st.integers(1, 5000))
def test_the_newest_generation_is_found_in_few_looks(newest):
    looked = []

    def exists(name):
        looked.append(name)
        return name in {manifest_name(number) for number in range(1, newest + 1)}

    assert newest_generation("folder", exists) == newest
    assert len(looked) <= 2 * newest.bit_length()


def test_generations_by_number(tmp_path):
    for number in range(1, 4):
        manifest = dataclasses.replace(MANIFEST, generations=(GENERATION,) * number)
        (tmp_path / manifest_name(number)).write_text(manifest.to_json())
    assert Manifest.load(tmp_path).generation == 3
    assert Manifest.load(tmp_path, 2).generation == 2
    with pytest.raises(ManifestError, match=r"holds no manifest-00009\.json: it has no such generation"):
        Manifest.load(tmp_path, 9)
    (tmp_path / manifest_name(2)).rename(tmp_path / manifest_name(4))
    with pytest.raises(ManifestError, match=r"manifest-00004\.json lists 2 generations, its name says 4"):
        Manifest.load(tmp_path, 4)


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
    assert generation_of(f".{name}.0a1b.tmp") == 2
    assert generation_of(file_name("inputs", 123456, None, "0" * 64)) == 123456
    assert generation_of(file_name("dead-letters", 3, (0, 1), "0" * 64)) == 3
    assert shard_index("shard-00003-of-00004.parquet") == 3  # as version 1 named them
    for other in ("shard-00003-of-00004.parquet", "manifest-00002.json", "shard-1.parquet", f"x{name}", ".notes.tmp"):
        assert generation_of(other) is None
    with pytest.raises(ManifestError, match="not the name of a shard"):
        shard_index("shard.parquet")


def test_new_input_files():
    assert is_new("a", 5, [])
    assert not is_new("a", 5, [5])
    with pytest.raises(InputChangedError, match="a has 6 bytes, but had 5 when it was encoded: give the changed file"):
        is_new("a", 6, [5])


@pytest.mark.parametrize("version", [1, 2])
def test_golden_data_set_is_read(version):
    folder = GOLDEN / f"data-set-v{version}"
    manifest = Manifest.load(folder)
    assert manifest.generation == version
    counts = [
        Counts(31, 30, 0, 1, 8159, manifest.generations[0].counts.code_bytes),
        Counts(13, 10, 2, 1, 2533, manifest.generations[-1].counts.code_bytes),
    ]
    assert [generation.counts for generation in manifest.generations] == counts[:version]
    ids = [video_id for batch in VideoDataset(folder) for video_id in batch.ids]
    assert sorted(ids) == [f"video{index:05d}".encode() for index in range({1: 30, 2: 40}[version])]
    assert verify(folder).findings == []
    if version == 2:
        for number in (1, 2):
            assert Manifest.load(folder, number).to_json() == (folder / manifest_name(number)).read_text()
