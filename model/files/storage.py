"""Files by path or URI: local ones, and `gs://` through google-cloud-storage.

What is written appears complete or not at all, and is on the disk before anything names it: a power cut after a
manifest was written finds its shards there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import stat
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from pyarrow import NativeFile, fs

from vidpress.model.errors import VidpressError
from vidpress.model.files import local_files

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

# What one request to Cloud Storage fetches at least: two row groups of 4096 codes or so. By the client's own 40 MiB, a
# shuffled epoch would fetch each shard many times over.
_GCS_CHUNK_SIZE = 2**20

# The key of an object's metadata that tells one upload of it from another.
_UPLOAD_KEY = "vidpress-upload"
_CONTENT_TYPE = "application/octet-stream"

# What names of files begin with that are made to see whether files can be made.
PROBE = ".write-test-"
_PROBES = 3

# RFC 3986, section 3.1; `a:b` alone is a name.
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*|):/")


class PathError(VidpressError, ValueError):
    """A path or URI of a kind that is not supported: the message says which are."""


class UnreachableError(VidpressError, OSError):
    """Cloud Storage that fails, or does not answer, for longer than it is worth trying."""


def normalized(uri: str | os.PathLike[str]) -> str:
    """Return a path or URI in the one form that everything else here takes: a local path, or `gs://BUCKET/NAME`.

    `file:///folder/name` is a local path, as `file:/folder/name` is, `~/name` one in the home folder. Everything else
    is left as it is, relative paths and names with `*` or `[` included.

    Raises:
      PathError: If it is empty, a URI of another kind, or in the home folder of a user that there is none of.
    """
    text = os.fspath(uri)
    if not text:
        raise PathError("An empty path was given: name a file or folder.")
    found = _URI.match(text)
    if found is None or ("://" not in text and os.path.lexists(text)):
        path = os.path.expanduser(text)
        if path.startswith("~") and not os.path.lexists(path):
            raise PathError(f"{text}: there is no user {path[1:].partition('/')[0]}; a file of that name is ./{text}.")
        return path
    scheme = found["scheme"].lower()
    if scheme == "file":
        parts = urllib.parse.urlsplit(text, allow_fragments=False)
        if parts.netloc not in ("", "localhost"):
            raise PathError(f"{text} names a file on {parts.netloc}: for one of this machine write file:///path.")
        return urllib.parse.unquote(text.partition(":")[2].removeprefix(f"//{parts.netloc}"))
    if scheme != "gs":
        raise PathError(
            f"{text}: {scheme}:// is not supported, only local paths and gs:// are. Copy the files there, or mount "
            f"that store as a folder. A file or folder of that name is ./{text}."
        )
    if not text.startswith("gs://"):
        raise PathError(f"{text} is no URI: write gs://BUCKET/NAME.")
    return text


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
    if text.startswith("gs://"):
        with _explained(text):
            return _existing_blob(text).open("rb", chunk_size=_GCS_CHUNK_SIZE)
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
    if text.startswith("gs://"):
        with _explained(text):
            blob = _existing_blob(text)
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
    if text.startswith("gs://"):
        with _explained(text):
            return _blob(text).exists()
    return os.path.lexists(text)


def is_folder(uri: str | os.PathLike[str]) -> bool:
    """Return whether there is a folder of that name; on Cloud Storage, whether objects lie under it.

    Raises:
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(uri)
    if text.startswith("gs://"):
        with _explained(text):
            parent = _blob(f"{text.rstrip('/')}/")
            found = parent.bucket.list_blobs(prefix=parent.name, max_results=1, retry=_retry())
            return next(iter(found), None) is not None
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
    if text.startswith("gs://"):
        with _explained(text):
            parent = _blob(f"{text.rstrip('/')}/")
            blobs = list(parent.bucket.list_blobs(prefix=parent.name + prefix, delimiter="/", retry=_retry()))
        return [StoredFile(blob.name.removeprefix(parent.name), blob.size, blob.updated.timestamp()) for blob in blobs]
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
    if text.startswith("gs://"):
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
    if text.startswith("gs://"):
        with _explained(text):
            _write_new_to_gcs(text, data)
        return
    try:
        local_files.write(text, data, local_files.name_where_none_is)
    except FileExistsError as error:
        raise _exists_already(text) from error


def write(uri: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, in the place of one that is there; nobody ever sees a part of it.

    Raises:
      PermissionError: If it may not be written, Cloud Storage refuses, or there are no credentials.
    """
    text = normalized(uri)
    if text.startswith("gs://"):
        with _explained(text):
            _blob(text).upload_from_string(data, content_type=_CONTENT_TYPE, retry=_retry())
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
    if text.startswith("gs://"):
        with tempfile.TemporaryFile(prefix="vidpress-") as file:
            yield cast(BinaryIO, file)
            with _explained(text):
                _blob(text).upload_from_file(file, rewind=True, content_type=_CONTENT_TYPE, retry=_retry())
        return
    with local_files.temporary_beside(text) as (temporary, file):
        yield file
        local_files.sync(file)
        os.replace(temporary, text)
        local_files.sync_folder(os.path.dirname(temporary))


def remove(uris: Iterable[str]) -> None:
    """Remove files; one that is gone already is no error.

    Raises:
      PermissionError: If one may not be removed, Cloud Storage refuses, or there are no credentials.
    """
    for uri in uris:
        text = normalized(uri)
        if text.startswith("gs://"):
            from google.api_core import exceptions

            with _explained(text), contextlib.suppress(exceptions.NotFound):
                _blob(text).delete(retry=_retry())
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(text)


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


def _exists_already(uri: str) -> FileExistsError:
    return FileExistsError(f"{uri} exists already: choose another name or remove it.")


def _write_new_to_gcs(uri: str, data: bytes) -> None:
    from google.api_core import exceptions

    blob = _blob(uri)
    upload = uuid.uuid4().hex
    blob.metadata = {_UPLOAD_KEY: upload}
    try:
        blob.upload_from_string(data, content_type=_CONTENT_TYPE, if_generation_match=0)
    except exceptions.PreconditionFailed as error:
        # The client tries again when an answer is lost, and what it then finds may be its own first attempt's.
        found = blob.bucket.get_blob(blob.name)
        if found is None or (found.metadata or {}).get(_UPLOAD_KEY) != upload:
            raise _exists_already(uri) from error


def _existing_blob(uri: str) -> Blob:
    blob = _blob(uri)
    found = blob.bucket.get_blob(blob.name)  # with its generation, so that all reads are of one version
    if found is None:
        raise FileNotFoundError(f"{uri} does not exist.")
    return found


def _blob(uri: str) -> Blob:
    parts = urllib.parse.urlsplit(uri, allow_fragments=False)
    name = uri.removeprefix(f"gs://{parts.netloc}").lstrip("/")
    if not parts.netloc or not name:
        raise PathError(f"{uri} is no object of Cloud Storage: gs://BUCKET/NAME is.")
    return _client(os.getpid()).bucket(parts.netloc).blob(name)


@functools.cache
def _client(_pid: int) -> Client:
    """Return this process's client: its connections do not survive a fork."""
    from google.cloud import storage  # type: ignore[attr-defined]

    return storage.Client()


def _retry() -> Any:
    """Return the client's policy of trying again; by itself it only does so where a precondition is given."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the client's errors into ours, with the URI."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError) as error:
        raise PermissionError(f"{uri} cannot be reached: {error}") from error
    except exceptions.RetryError as error:
        raise UnreachableError(f"{uri} cannot be reached: {error.cause or error}") from error
    except exceptions.GoogleAPICallError as error:
        raise UnreachableError(f"{uri} cannot be reached: {error}") from error
