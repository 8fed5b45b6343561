"""What cannot be fetched leaves the reason; what is not what was pinned is an error."""

import sys

import fetch
import pytest


def test_reasons_are_kept_and_go_away(tmp_path, monkeypatch, capsys):
    def fails(folder):
        fetch._run(["no-such-tool"])

    def prints_an_error(folder):
        fetch._run([sys.executable, "-c", "print('[INFO] building'); print('[ERROR] no such artifact'); exit(1)"])

    monkeypatch.setattr(fetch, "fetch_flink", lambda folder: (folder / "flink-dist.jar").touch())
    monkeypatch.setattr(fetch, "fetch_job_server", prints_an_error)
    monkeypatch.setattr(fetch, "fetch_prism", fails)
    fetch.main(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "flink: ready",
        f"flink-job-server: cannot be fetched, its tests will be skipped: {sys.executable}: [ERROR] no such artifact",
        "prism: cannot be fetched, its tests will be skipped: no-such-tool is not installed",
    ]
    assert (tmp_path / "prism.missing").read_text() == "no-such-tool is not installed\n"
    monkeypatch.setattr(fetch, "fetch_prism", lambda folder: (folder / "prism").touch())
    fetch.main(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == "prism: ready"
    assert not (tmp_path / "prism.missing").exists()


def test_a_wrong_hash_is_an_error(tmp_path):
    """Not a reason to skip: pip's own check, on an archive made here."""
    archive = tmp_path / "made-1.0.tar.gz"
    archive.write_bytes(b"not what was pinned")
    lock = tmp_path / "lock"
    lock.write_text(f"made @ {archive.as_uri()} --hash=sha256:{'0' * 64}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--dest", str(tmp_path / "to")]
    with pytest.raises(SystemExit, match="is not what was pinned"):
        fetch._run([*pip, "-r", str(lock)])
