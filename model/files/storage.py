"""Files by path or URI: local ones, and `gs://` through google-cloud-storage.

What is written appears complete or not at all, and is on the disk before anything names it: a power cut after a
manifest was written finds its shards there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, cast

from pyarrow import NativeFile, fs

from vidpress.model.files import google_storage, local_files
from vidpress.model.files.uris import PathError, normalized

# What names of files begin with that are made to see whether files can be made.
PROBE = ".write-test-"
_PROBES = 3


def open_input(uri: str | os.PathLike[str], *, links: bool = True) -> BinaryIO | NativeFile:
    """Open a file for reading; it can be sought.

    Requests to Cloud Storage that are throttled, fail or break off are tried again for two minutes.

    Args:
      uri: The file.
      links: Whether a local file may be a symbolic link. None belongs in a data set: it may lead anywhere.

    Raises:
      FileNotFoundError: If there is none; the message names it.
      PermissionError: If it may not be read, Cloud Storage refuses, or there are no credentials.
      PathError: If it is no regular file: a folder, a pipe, a device.
    """
    text = normalized(uri)
    if google_storage.is_object(text):
        return google_storage.open_input(text)
    _check_regular(text, links)
    return fs.LocalFileSystem().open_input_file(os.path.abspath(text))


def read_bytes(uri: str | os.PathLike[str], *, max_bytes: int | None = None, links: bool = True) -> bytes:
    """Read a whole file; from Cloud Storage, it is checked against the checksum that is kept there.

    Args:
      uri: The file.
      max_bytes: How large it may be, if that is limited.
      links: As `open_input` takes it.

    Raises:
      FileNotFoundError: If there is none; the message names it.
      PermissionError: If it may not be read, Cloud Storage refuses, or there are no credentials.
      PathError: If it is no regular file, or larger.
    """
    text = normalized(uri)
    if google_storage.is_object(text):
        with google_storage.explained(text):
            blob = google_storage.existing_blob(text)
            _check_size(text, blob.size, max_bytes)
            return blob.download_as_bytes()
    with open_input(text, links=links) as stream:
        _check_size(text, stream.seek(0, os.SEEK_END), max_bytes)
        stream.seek(0)
        return stream.read()


def _check_size(text: str, num_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and num_bytes > max_bytes:
        raise PathError(f"{text} has {num_bytes:,} bytes, more than the {max_bytes:,} that such a file may have.")


def _check_regular(path: str, links: bool) -> None:
    """See that a local path is a file that can be read to its end, before it is opened: a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode if links else os.lstat(path).st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist.") from error
    except NotADirectoryError as error:
        raise FileNotFoundError(f"{path} does not exist: a part of it is a file.") from error
    if stat.S_ISLNK(mode):
        raise PathError(f"{path} is a symbolic link, and no file of a data set is one: put the file itself there.")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise PathError(f"{path} is {kind}, not a file.")


def size(uri: str | os.PathLike[str]) -> int:
    """Return a file's size in bytes.

    Raises:
      FileNotFoundError: If there is none; the message names it.
    """
    with open_input(uri) as stream:
        return stream.seek(0, os.SEEK_END)


def exists(uri: str | os.PathLike[str]) -> bool:
    """Return whether there is something of that name; a link is something, wherever it leads.

    Raises:
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(uri)
    if google_storage.is_object(text):
        return google_storage.exists(text)
    return os.path.lexists(text)


def is_folder(uri: str | os.PathLike[str]) -> bool:
    """Return whether there is a folder of that name; on Cloud Storage, whether objects lie under it.

    Raises:
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(uri)
    if google_storage.is_object(text):
        return google_storage.is_folder(text)
    return os.path.isdir(text)


class StoredFile(NamedTuple):
    """A file in a folder.

    Attributes:
      name: Its name in the folder.
      bytes: Its size.
      modified: When it was written, in seconds since 1970.
    """

    name: str
    bytes: int
    modified: float


def list_files(folder: str | os.PathLike[str], prefix: str = "") -> list[StoredFile]:
    """Return the files in a folder whose names begin with `prefix`, hidden ones included; none if there is no folder.

    Raises:
      PermissionError: If the folder may not be read, Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(folder)
    if google_storage.is_object(text):
        return [StoredFile(*fields) for fields in google_storage.list_objects(text, prefix)]
    found = []
    for entry in _entries(text):
        if entry.name.startswith(prefix) and not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(FileNotFoundError):  # another job's temporary file may be gone by now
                status = entry.stat(follow_symlinks=False)
                found.append(StoredFile(entry.name, status.st_size, status.st_mtime))
    return found


def list_folders(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of what stands in a folder where no file can be made: the folders in it.

    There are none of these on Cloud Storage, where a file and a folder may have one name.

    Raises:
      PermissionError: If the folder may not be read.
    """
    text = normalized(folder)
    if google_storage.is_object(text):
        return []
    return sorted(entry.name for entry in _entries(text) if entry.is_dir(follow_symlinks=False))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def sha256(uri: str | os.PathLike[str], *, links: bool = True) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
      FileNotFoundError: If there is none; the message names it.
    """
    digest = hashlib.sha256()
    with open_input(uri, links=links) as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def write_new(uri: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that must not exist yet; nobody ever sees a part of it.

    Raises:
      FileExistsError: If it exists.
      PermissionError: If Cloud Storage refuses, or there are no credentials.
      PathError: If the file system cannot make a file only where there is none.
    """
    text = normalized(uri)
    try:
        if google_storage.is_object(text):
            google_storage.write_new(text, data)
            return
        local_files.write(text, data, local_files.name_where_none_is)
    except FileExistsError as error:
        raise FileExistsError(f"{text} exists already: choose another name or remove it.") from error


def write(uri: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, in the place of one that is there; nobody ever sees a part of it.

    Raises:
      PermissionError: If it may not be written, Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(uri)
    if google_storage.is_object(text):
        google_storage.write(text, data)
        return
    local_files.write(text, data, os.replace)


@contextlib.contextmanager
def open_output(uri: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that is written piece by piece, and appears, in the place of one that is there, when it is closed.

    If the block is left by an error, there is no file.

    Raises:
      PermissionError: If it may not be written, Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(uri)
    if google_storage.is_object(text):
        with tempfile.TemporaryFile(prefix="vidpress-") as file:
            yield cast(BinaryIO, file)
            google_storage.upload(text, cast(BinaryIO, file))
        return
    with local_files.complete(text, os.replace) as file:
        yield file


def remove(uris: Iterable[str]) -> None:
    """Remove files; one that is gone already is no error. When this returns, the disk knows that they are gone.

    Raises:
      PermissionError: If one may not be removed, Cloud Storage refuses, or there are no credentials.
    """
    folders = set()
    for uri in uris:
        text = normalized(uri)
        if google_storage.is_object(text):
            google_storage.remove(text)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(text)
                folders.add(os.path.dirname(os.path.abspath(text)))
    for folder in folders:
        local_files.sync_folder(folder)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """See that files can be made in a folder, and that one is never made in another's place.

    Two runs that write the same generation of a data set rest on it: one of them has to fail.

    Raises:
      PermissionError: If nothing can be written there.
      PathError: If a file can be made where there is one.
    """
    probe = f"{normalized(folder).rstrip('/')}/{PROBE}{uuid.uuid4().hex}"
    try:
        for _ in range(_PROBES):  # another run may take it for a leftover and remove it
            with contextlib.suppress(FileExistsError):
                write_new(probe, b"")
            try:
                write_new(probe, b"")
            except FileExistsError:
                return
    finally:
        remove([probe])
    raise PathError(
        f"{os.fspath(folder)} is on a store that makes a file where there is one already, even if told not to. Two "
        "runs at once could undo each other there: name a folder on a local disk or on gs://."
    )
