"""Files by path or URI: local, `gs://` through google-cloud-storage, and whatever else pyarrow's file systems reach."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pyarrow import NativeFile, fs

from vidpress.model.errors import VidpressError

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

# What one request to Cloud Storage fetches at least: two row groups of 4096 codes or so. By the client's own 40 MiB, a
# shuffled epoch would fetch each shard many times over.
_GCS_CHUNK_SIZE = 2**20

# The key of an object's metadata that tells one upload of it from another.
_UPLOAD_KEY = "vidpress-upload"


class PathError(VidpressError, ValueError):
    """A path or URI of a kind that is not supported: the message says which are."""


def normalized(uri: str | os.PathLike[str]) -> str:
    """Return a path or URI in the one form that everything else here takes: a local path, or `gs://BUCKET/NAME`.

    `file:///folder/name` is a local path, `~/name` one in the home folder. Everything else is left as it is, relative
    paths and names with `*` or `[` included.

    Raises:
      PathError: If it is empty, or a URI of another kind.
    """
    text = os.fspath(uri)
    if not text:
        raise PathError("An empty path was given: name a file or folder.")
    scheme, separator, _ = text.partition("://")
    if separator and scheme.isalnum():
        if scheme == "file":
            parts = urllib.parse.urlsplit(text, allow_fragments=False)
            if parts.netloc not in ("", "localhost"):
                raise PathError(f"{text} names a file on {parts.netloc}: for one of this machine write file:///path.")
            return urllib.parse.unquote(text.removeprefix(f"file://{parts.netloc}"))
        if scheme != "gs":
            raise PathError(
                f"{text}: {scheme}:// is not supported, only local paths and gs:// are. Copy the files there, "
                "or mount that store as a folder."
            )
        return text
    return os.path.expanduser(text)


def open_input(uri: str | os.PathLike[str]) -> BinaryIO | NativeFile:
    """Open a file for reading; it can be sought.

    Requests to Cloud Storage that are throttled, fail or break off are tried again for two minutes.

    Raises:
      FileNotFoundError: If there is none; the message names it.
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = os.fspath(uri)
    if text.startswith("gs://"):
        with _explained(text):
            return _existing_blob(text).open("rb", chunk_size=_GCS_CHUNK_SIZE)
    file_system, path = resolve(text)
    try:
        return file_system.open_input_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{text} does not exist.") from error


def read_bytes(uri: str | os.PathLike[str]) -> bytes:
    """Read a whole file; from Cloud Storage, it is checked against the checksum that is kept there.

    Raises:
      FileNotFoundError: If there is none; the message names it.
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = os.fspath(uri)
    if text.startswith("gs://"):
        with _explained(text):
            return _existing_blob(text).download_as_bytes()
    with open_input(text) as stream:
        return stream.read()


def size(uri: str | os.PathLike[str]) -> int:
    """Return a file's size in bytes.

    Raises:
      FileNotFoundError: If there is none; the message names it.
    """
    with open_input(uri) as stream:
        return stream.seek(0, os.SEEK_END)


def exists(uri: str | os.PathLike[str]) -> bool:
    """Return whether there is such a file.

    Raises:
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = os.fspath(uri)
    if text.startswith("gs://"):
        with _explained(text):
            return _blob(text).exists()
    file_system, path = resolve(text)
    return file_system.get_file_info(path).type != fs.FileType.NotFound


def names(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the files in a folder.

    Raises:
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = os.fspath(folder)
    if text.startswith("gs://"):
        prefix = _blob(f"{text.rstrip('/')}/")
        with _explained(text):
            found = prefix.bucket.list_blobs(prefix=prefix.name, delimiter="/")
            return [blob.name.removeprefix(prefix.name) for blob in found]
    file_system, path = resolve(text)
    return [info.base_name for info in file_system.get_file_info(fs.FileSelector(path)) if info.is_file]


def sha256(uri: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
      FileNotFoundError: If there is none; the message names it.
    """
    digest = hashlib.sha256()
    with open_input(uri) as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def write_new(uri: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that must not exist yet; nobody ever sees a part of it.

    Raises:
      FileExistsError: If it exists.
      PermissionError: If Cloud Storage refuses, or there are no credentials.
    """
    text = os.fspath(uri)
    if text.startswith("gs://"):
        with _explained(text):
            _write_new_to_gcs(text, data)
        return
    file_system, path = resolve(text)
    if not isinstance(file_system, fs.LocalFileSystem):
        raise ValueError(f"{text}: writing needs a local path or a gs:// URI.")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.link(temporary, path)  # unlike a rename, refuses to replace
    except FileExistsError as error:
        raise _exists_already(text) from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def resolve(text: str) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system of a local path or URI, and the path in it."""
    if "://" in text:
        return fs.FileSystem.from_uri(text)
    return fs.LocalFileSystem(), os.path.abspath(text)


def _exists_already(uri: str) -> FileExistsError:
    return FileExistsError(f"{uri} exists already: choose another name or remove it.")


def _write_new_to_gcs(uri: str, data: bytes) -> None:
    from google.api_core import exceptions

    blob = _blob(uri)
    upload = uuid.uuid4().hex
    blob.metadata = {_UPLOAD_KEY: upload}
    try:
        blob.upload_from_string(data, content_type="application/octet-stream", if_generation_match=0)
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
        raise ValueError(f"{uri} is no object of Cloud Storage: gs://BUCKET/NAME is.")
    return _client(os.getpid()).bucket(parts.netloc).blob(name)


@functools.cache
def _client(_pid: int) -> Client:
    """Return this process's client: its connections do not survive a fork."""
    from google.cloud import storage  # type: ignore[attr-defined]

    return storage.Client()


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the client's errors of access into Python's own, with the URI."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError) as error:
        raise PermissionError(f"{uri} cannot be reached: {error}") from error
