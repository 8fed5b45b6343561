import pathlib

import pytest

from vidpress.model import storage


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
    assert storage.normalized(given) == normal
    assert storage.normalized(pathlib.PurePosixPath("a/b")) == "a/b"


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.normalized("~/x") == "/home/someone/x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "empty path"),
        ("s3://bucket/name", r"s3:// is not supported, only local paths and gs:// are"),
        ("hdfs://host/name", "hdfs:// is not supported"),
        ("https://example.org/name", "https:// is not supported"),
        ("file://server/name", "names a file on server"),
    ],
)
def test_other_uris_are_refused(given, message):
    with pytest.raises(storage.PathError, match=message):
        storage.normalized(given)
