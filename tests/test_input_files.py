"""Which files patterns name, against bash where it can say so, and what is refused."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidpress.model.files.input_files import InputError, match, open_local
from vidpress.model.files.uris import PathError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a.x, .hidden.x, x/b.x, x/y/c.x, .dark/d.x, and a link l to x."""
    for name in ("a.x", ".hidden.x", "x/b.x", "x/y/c.x", ".dark/d.x"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def paths(*patterns: str) -> list[str]:
    return [file.path for file in match(patterns)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*", ["in/a.x"]),
        ("in/*.x", ["in/a.x"]),
        ("in/.*.x", ["in/.hidden.x"]),
        ("in/**", ["in/a.x", "in/x/b.x", "in/x/y/c.x"]),
        ("in/**/*.x", ["in/a.x", "in/x/b.x", "in/x/y/c.x"]),
        ("**/c.x", ["in/x/y/c.x"]),
        ("in/*/*.x", ["in/x/b.x"]),
        ("in/**.x", ["in/a.x"]),
        ("in/x/**/*.x", ["in/x/b.x", "in/x/y/c.x"]),
        ("in/.dark/*", ["in/.dark/d.x"]),
        ("in/{a,x/b}.x", ["in/a.x", "in/x/b.x"]),
        ("in/[a-c].x", ["in/a.x"]),
        ("./in//a.x", ["./in//a.x"]),
        ("./in//?.x", ["in/a.x"]),
    ],
)
def test_patterns_match_as_in_a_shell(folder, pattern, expected):
    assert paths(pattern) == expected


def test_files_come_sorted_each_once_with_size_and_time(folder):
    files = match([f"{folder}/x/*", f"{folder}/*", f"{folder}/a.x", f"file://{folder}/a.x"])
    assert [file.path for file in files] == [f"{folder}/a.x", f"{folder}/x/b.x"]
    assert files[0].bytes == 3
    assert files[0].modified == os.stat(folder / "a.x").st_mtime


def test_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert paths("~/a.x", "~/x/*") == [f"{folder}/a.x", f"{folder}/x/b.x"]


NAMES = ["day[0].x", "{a,b}.x", "{a}.x", "*", "a?.x", "ab.x", "day0.x", "a.x", "b.x", "[", "s p.x", "\u00fc.x", "x\\y"]


@pytest.mark.parametrize("name", NAMES)
def test_what_exists_by_the_name_is_that_file(tmp_path, name):
    for other in NAMES:
        (tmp_path / other).write_text(other)
    assert paths(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]
    assert paths(f"{tmp_path}/*[x]", f"{tmp_path}/?") != []


@pytest.mark.parametrize("name", ["day[0]", "{a,b}"])
def test_a_folder_of_such_a_name_is_that_folder(tmp_path, name):
    for other in (name, "day0", "a", "b"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "f.x").touch()
    assert paths(f"{tmp_path}/{name}/*.x") == [f"{tmp_path}/{name}/f.x"]


def test_links_to_folders_and_files_are_followed_and_loops_end(folder):
    (folder / "l").symlink_to("x")
    (folder / "f.x").symlink_to("x/y/c.x")
    (folder / "x" / "loop").symlink_to("..")
    (folder / "x" / "self").symlink_to(".")
    assert paths("in/*/*.x") == ["in/l/b.x", "in/x/b.x"]
    assert paths("in/*.x") == ["in/a.x", "in/f.x"]
    found = paths("in/**/*.x")
    assert len(found) == len({os.path.realpath(path) for path in found}) + 1  # c.x and the link to it
    assert {os.path.basename(path) for path in found} == {"a.x", "b.x", "c.x", "f.x"}


def refused(*patterns: str) -> str:
    with pytest.raises(InputError) as error:
        match(patterns)
    message = str(error.value)
    assert message.isprintable()
    message.encode()
    return message


def test_folders_beside_files_are_said_to_be_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixed" / "sub").mkdir(parents=True)
    for name in ("mixed/a", "mixed/sub/b"):
        (tmp_path / name).touch()
    assert [file.path for file in match(["mixed/*"])] == ["mixed/a"]
    assert "mixed/* also matches folders, such as mixed/sub, and takes no file in them: mixed/*/* does." in caplog.text
    caplog.clear()
    assert len(match(["mixed/**"])) == len(match(["mixed/a", "mixed/*/*"])) == 2
    assert not caplog.text


def test_a_folder_is_refused(folder):
    for pattern in ("in/x", "in/x/"):
        assert "in/x/* for the files in it" in refused(pattern)
    shutil.rmtree(folder / "x" / "y")
    (folder / "x" / "b.x").unlink()
    (folder / "a.x").unlink()
    assert refused("in/*") == "in/* matches folders alone, such as in/x: write in/*/* for the files in them."


@pytest.mark.parametrize(
    "pattern", ["in/none", "in/none*", "in/*/none", "none/*", "in/a.x/*", "in/a.x/b", "in/{a.x,q}"]
)
def test_no_file_is_an_error(folder, pattern):
    message = refused("in/a.x", pattern)
    assert message.startswith(f"{pattern} matches no file")
    assert ("in/q" in message) == ("{" in pattern)


def test_other_stores_are_refused():
    with pytest.raises(PathError, match="s3://"):
        match(["s3://bucket/*"])
    with pytest.raises(PathError, match="empty"):
        match([""])


def test_a_broken_link_is_named(folder):
    (folder / "gone.x").symlink_to("/nowhere/gone.x")
    for pattern in ("in/*", "in/*.x", "in/gone.x", "in/**/*.x", "in/*/*.x"):
        assert refused(pattern).startswith("in/gone.x is a broken link to /nowhere/gone.x")
    (folder / "gone.x").unlink()
    (folder / "self.x").symlink_to("self.x")
    assert "in/self.x is a broken link to self.x" in refused("in/*")
    (folder / "self.x").unlink()
    (folder / "disk").symlink_to("/nowhere")
    assert "in/disk is a broken link" in refused("in/*/*.x")


def test_what_is_no_file_is_named(folder):
    os.mkfifo(folder / "pipe.x")
    assert refused("in/*.x") == "in/pipe.x is a named pipe, not a file: name files alone."
    assert "a named pipe" in refused("in/pipe.x")
    (folder / "pipe.x").unlink()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("in/socket.x")
        assert "in/socket.x is a socket" in refused("in/*.x")
    assert "/dev/zero is a device" in refused("/dev/zero")


def test_a_name_that_is_not_utf8_is_refused_in_letters(folder):
    pathlib.Path(os.fsdecode(b"in/not-\xff.x")).touch()
    assert "in/not-\\udcff.x has a name that is not UTF-8" in refused("in/*.x")
    assert "not UTF-8" in refused(os.fsdecode(b"in/not-\xff.x"))
    assert paths("in/a*.x") == ["in/a.x"]


def test_a_name_with_a_line_break_is_shown_in_one_line(folder):
    (folder / "two\nlines").mkdir()
    assert "in/two\\nlines is a folder" in refused("in/two\nlines")


unprivileged = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


@unprivileged
def test_what_may_not_be_read_is_named(folder):
    (folder / "a.x").chmod(0)
    assert refused("in/*") == "in/a.x cannot be read: Permission denied."
    (folder / "x").chmod(0)
    try:
        assert "in/x" in refused("in/*/*.x")
        assert "cannot be" in refused("in/x/b.x")
    finally:
        (folder / "x").chmod(0o755)


def test_what_may_not_be_read_is_named_to_others(folder):
    """The same, as nobody, where this is root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (folder / "a.x").chmod(0)
    (folder / "x").chmod(0o700)
    folder.parent.chmod(0o755)
    script = (
        "import os\n"
        "from vidpress.model.files import input_files\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for pattern in ('in/*', 'in/*/*.x', 'in/x/b.x'):\n"
        "    try: print(input_files.match([pattern]))\n"
        "    except input_files.InputError as error: print(error)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=folder.parent, capture_output=True, text=True, check=True
    )
    first, second, third = process.stdout.splitlines()
    assert first == "in/a.x cannot be read: Permission denied."
    assert second == "in/x is a folder that cannot be listed: Permission denied."
    assert third == "in/x/b.x cannot be read: Permission denied."


def test_only_files_are_opened(folder):
    file, num_bytes = open_local("in/a.x")
    with file:
        assert (file.read(), num_bytes) == (b"a.x", 3)
    os.mkfifo(folder / "pipe")
    for path, message in (
        ("in/pipe", "in/pipe is a named pipe, not a file"),  # and nobody waits for a writer
        ("in/x", "in/x is a folder, not a file"),
        ("in/none", "in/none cannot be read: No such file or directory"),
        ("/dev/zero", "/dev/zero is a device, not a file"),
    ):
        with pytest.raises(InputError, match=message):
            open_local(path)


LETTERS = st.text("ab.[]*?!-", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
PATTERNS = st.text("ab.[]*?-", min_size=1, max_size=4)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LETTERS, min_size=1, max_size=8), st.lists(PATTERNS, min_size=8, max_size=8))
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_names_match_as_bash_says(tmp_path_factory, names, patterns):
    folder = tmp_path_factory.mktemp("glob")
    for name in names:
        (folder / name).touch()
    script = "shopt -s nullglob; export LC_ALL=C; " + "; ".join(
        f'for f in {pattern}; do [ -e "$f" ] && printf \'%s\\n\' "$f"; done; echo /' for pattern in patterns
    )
    said = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True).stdout
    for pattern, part in zip(patterns, said.split("/\n"), strict=False):
        expected = set(part.splitlines())
        if (folder / pattern).exists() or pattern in (".", ".."):
            continue  # that name alone
        if re.search(r"\[[!^]?\]?[^]]*-$", pattern):
            continue  # bash matches nothing where a bracket that is not closed ends with a hyphen; other shells do
        try:
            found = {os.path.basename(file.path) for file in match([f"{folder}/{pattern}"])}
        except InputError as error:
            found = set()
            assert "matches no file" in str(error) or "folder" in str(error)
        assert found == {name for name in expected if name not in (".", "..")}, pattern
