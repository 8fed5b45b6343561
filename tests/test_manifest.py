import pytest

from vidpress.model.manifest import Counts, FileEntry, Manifest, ManifestError

MANIFEST = Manifest(
    model_id="0123456789abcdef",
    num_dims=40,
    num_shards=2,
    shards=(FileEntry("shard-00000-of-00002.parquet", 5, 1000, "aa", (4, 1)),),
    dead_letters=(FileEntry("dead-letters-00001-of-00002.jsonl", 2, 100, "bb"),),
    counts=Counts(records=10, videos=5, duplicates=3, dead_letters=2, input_bytes=9000, code_bytes=50),
)


def test_json_round_trip():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json()).to_json() == MANIFEST.to_json()


def test_unaccounted_records():
    assert MANIFEST.counts.unaccounted == 0
    assert Counts(10, 5, 3, 1, 0, 0).unaccounted == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a vidpress manifest"),
        ("[]", "is not a vidpress manifest"),
        ("{}", "is not a vidpress manifest"),
        ('{"format_version": 2}', "format version 2; this vidpress reads 1"),
        ('{"format_version": 1}', "is damaged: KeyError"),
        (MANIFEST.to_json().replace('"rows"', '"lines"'), "is damaged"),
    ],
)
def test_unusable_manifests_are_refused(text, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(text, name="folder/manifest.json")


def test_absent_manifest_says_what_that_means(tmp_path):
    with pytest.raises(ManifestError, match=r"holds no manifest\.json: it is no vidpress data set, or its job did not"):
        Manifest.load(tmp_path)
