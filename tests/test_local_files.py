"""Files on this machine's disk: never half written, never in another's place, there after a power cut."""

import errno
import os
import subprocess
import sys

import pytest

from vidpress.model.files import local_files, storage
from vidpress.model.files.uris import PathError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse_links(monkeypatch, number):
    """Make this disk one without hard links, as it answers on FUSE (ENOSYS), exFAT and SMB (EPERM)."""

    def link(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_new_file_is_never_made_in_anothers_place(tmp_path, monkeypatch, number):
    if number:
        refuse_links(monkeypatch, number)
    storage.write_new(tmp_path / "a" / "file", b"first")
    with pytest.raises(FileExistsError, match="file exists already: choose another name or remove it"):
        storage.write_new(tmp_path / "a" / "file", b"second")
    (tmp_path / "a" / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        storage.write_new(tmp_path / "a" / "link", b"third")
    assert (tmp_path / "a" / "file").read_bytes() == b"first"
    assert names(tmp_path / "a") == ["file", "link"]
    storage.check_writable(tmp_path / "a")
    assert names(tmp_path / "a") == ["file", "link"]


def test_a_file_system_that_can_do_neither_is_refused(tmp_path, monkeypatch):
    refuse_links(monkeypatch, errno.EPERM)
    monkeypatch.setattr(local_files, "_exclusive_rename", lambda: (None, 0))
    for attempt in (lambda: storage.write_new(tmp_path / "file", b""), lambda: storage.check_writable(tmp_path)):
        with pytest.raises(local_files.UnsafeFileSystemError, match=r"without hard links .* name another folder"):
            attempt()
    assert names(tmp_path) == []


def test_a_store_that_replaces_files_is_refused(tmp_path, monkeypatch):
    """As a server of objects that does not know preconditions."""
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(PathError, match="makes a file where there is one already, even if told not to"):
        storage.check_writable(tmp_path)
    assert names(tmp_path) == []


def test_what_fails_leaves_nothing_and_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"before")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (storage.write, storage.write_new):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "file", b"after")
    with pytest.raises(OSError, match="No space left"), storage.open_output(tmp_path / "file") as file:
        file.write(b"after")
    monkeypatch.undo()

    def write_half():
        with storage.open_output(tmp_path / "file") as file:
            file.write(b"after")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_files_and_folders_are_on_the_disk_before_they_are_named(tmp_path):
    """By the order of the calls to the kernel's functions, which Python's audit and a traced os module show."""
    script = (
        "import os, sys\n"
        "calls = []\n"
        "def traced(name):\n"
        "    function = getattr(os, name)\n"
        "    def call(*args, **kwargs):\n"
        "        target = args[0] if name == 'mkdir' else args[-1]\n"
        "        target = os.readlink(f'/proc/self/fd/{target}') if name == 'fsync' else target\n"
        "        calls.append((name, os.path.basename(str(target)).split('.')[-1]))\n"
        "        return function(*args, **kwargs)\n"
        "    setattr(os, name, call)\n"
        "from vidpress.model.files import storage\n"
        "for name in ('fsync', 'link', 'replace', 'mkdir'):\n"
        "    traced(name)\n"
        "storage.write('folder/new', b'x')\n"
        "storage.write_new('folder/once', b'x')\n"
        "with storage.open_output('folder/long') as file:\n"
        "    file.write(b'x')\n"
        "print(calls)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert eval(result.stdout) == [
        *(("mkdir", "folder"), ("fsync", tmp_path.name)),
        *(("fsync", "tmp"), ("replace", "new"), ("fsync", "folder")),
        *(("fsync", "tmp"), ("link", "once"), ("fsync", "folder")),
        *(("fsync", "tmp"), ("replace", "long"), ("fsync", "folder")),
    ]


def test_listing(tmp_path):
    assert storage.list_files(tmp_path / "nothing") == []
    for name in ("a1", "a2", ".a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-link").symlink_to("nowhere")
    assert {(file.name, file.bytes) for file in storage.list_files(tmp_path, "a")} >= {("a1", 2), ("a2", 2)}
    assert {file.name for file in storage.list_files(tmp_path)} == {"a1", "a2", ".a", "b", "a-link"}
    storage.remove([tmp_path / "a1", tmp_path / "a1", tmp_path / "a-link"])
    assert names(tmp_path) == [".a", "a-folder", "a2", "b"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link", "nothing", "under a file"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    """A pipe would wait for ever, a device never end, a link lead out of a data set."""
    path = tmp_path / "it"
    error, message = PathError, "is a pipe, socket or device, not a file"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = "/dev/zero"
        case "folder":
            path.mkdir()
            message = "is a folder, not a file"
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
            (tmp_path / "elsewhere").write_text("x")
            assert storage.read_bytes(path) == b"x"
            message = "is a symbolic link, and no file of a data set is one"
        case "nothing":
            error, message = FileNotFoundError, "it does not exist"
        case "under a file":
            path.write_text("x")
            path = path / "name"
            error, message = FileNotFoundError, "does not exist: a part of it is a file"
    for read in (storage.open_input, storage.read_bytes, storage.sha256):
        with pytest.raises(error, match=message):
            read(path, links=False)


def test_a_limit_on_what_is_read(tmp_path):
    (tmp_path / "file").write_bytes(bytes(11))
    assert len(storage.read_bytes(tmp_path / "file", max_bytes=11)) == 11
    with pytest.raises(PathError, match="has 11 bytes, more than the 10 that such a file may have"):
        storage.read_bytes(tmp_path / "file", max_bytes=10)
