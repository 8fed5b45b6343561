"""Files by path or URI: local, `gs://` and whatever else pyarrow's file systems reach."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
import uuid

from pyarrow import fs


def resolve(uri: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """Return the file system of a local path or URI, and the path in it."""
    text = os.fspath(uri)
    if "://" in text:
        return fs.FileSystem.from_uri(text)
    return fs.LocalFileSystem(), os.path.abspath(text)


def read_bytes(uri: str | os.PathLike[str]) -> bytes:
    """Read a whole file.

    Raises:
      FileNotFoundError: If there is none; the message names it.
    """
    file_system, path = resolve(uri)
    try:
        with file_system.open_input_stream(path) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{os.fspath(uri)} does not exist.") from error


def size(uri: str | os.PathLike[str]) -> int:
    """Return a file's size in bytes."""
    file_system, path = resolve(uri)
    return file_system.get_file_info(path).size


def exists(uri: str | os.PathLike[str]) -> bool:
    """Return whether there is such a file or folder."""
    file_system, path = resolve(uri)
    return file_system.get_file_info(path).type != fs.FileType.NotFound


def names(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the files in a folder."""
    file_system, path = resolve(folder)
    return [info.base_name for info in file_system.get_file_info(fs.FileSelector(path)) if info.is_file]


def sha256(uri: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises:
      FileNotFoundError: If there is none.
    """
    file_system, path = resolve(uri)
    digest = hashlib.sha256()
    with file_system.open_input_stream(path) as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def write_new(uri: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that must not exist yet; nobody ever sees a part of it.

    Raises:
      FileExistsError: If it exists.
    """
    text = os.fspath(uri)
    if text.startswith("gs://"):
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
        raise FileExistsError(f"{text} exists already: choose another name or remove it.") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _write_new_to_gcs(uri: str, data: bytes) -> None:
    from google.api_core import exceptions
    from google.cloud import storage  # type: ignore[attr-defined]

    parts = urllib.parse.urlsplit(uri)
    blob = storage.Client().bucket(parts.netloc).blob(parts.path.lstrip("/"))
    try:
        blob.upload_from_string(data, content_type="application/octet-stream", if_generation_match=0)
    except exceptions.PreconditionFailed as error:
        raise FileExistsError(f"{uri} exists already: choose another name or remove it.") from error
