import pathlib

import pytest

from vidpress.model.files.uris import PathError, normalized


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("folder/name", "folder/name"),
        ("/folder/*[1]{a}?", "/folder/*[1]{a}?"),
        ("gs://bucket/a b/*", "gs://bucket/a b/*"),
        ("file:///folder/a%20b", "/folder/a b"),
        ("file://localhost/folder", "/folder"),
        ("http:", "http:"),
        ("a~b", "a~b"),
    ],
)
def test_paths_and_uris_have_one_form(given, normal):
    assert normalized(given) == normal
    assert normalized(pathlib.PurePosixPath("a/b")) == "a/b"


def test_what_exists_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~a", "s3:/a"):
        path = pathlib.Path(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert normalized(name) == name
    pathlib.Path("gs:/b").mkdir(parents=True)
    assert normalized("gs://b") == "gs://b"


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert normalized("~/x") == "/home/someone/x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "empty path"),
        ("s3://bucket/name", r"s3:// is not supported, only local paths and gs:// are"),
        ("hdfs://host/name", "hdfs:// is not supported"),
        ("https://example.org/name", "https:// is not supported"),
        ("file://server/name", "names a file on server"),
        ("s3:/bucket/name", r"s3:// is not supported.* A file or folder of that name is ./s3:/bucket/name"),
        ("my-store+x://bucket/name", r"my-store\+x:// is not supported"),
        ("://name", ":// is not supported"),
        ("gs:/bucket/name", "gs:/bucket/name is no URI: write gs://BUCKET/NAME"),
        ("~no-such-user/name", "there is no user no-such-user; a file of that name is ./~no-such-user/name"),
    ],
)
def test_other_uris_are_refused(given, message):
    with pytest.raises(PathError, match=message):
        normalized(given)
