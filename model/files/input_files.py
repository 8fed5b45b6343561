"""Input files: which files some patterns name, as a shell would say, and how they are opened.

In a pattern, `*`, `?` and `[...]` stand for parts of one name, `**` for any folders or none, `{a,b}` for either. Hidden
names are only those of a part that begins with a dot. Links are followed. What exists under exactly the name that was
given is that file, whatever characters it has.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, cast

from vidpress.model.errors import VidpressError
from vidpress.model.files import google_storage, path_patterns
from vidpress.model.files.uris import normalized

_log = logging.getLogger(__name__)

_BUFFER = 1 << 16  # what is larger is read past the buffer, without a copy
_GCS_CHUNK_SIZE = 1 << 24  # files are read from beginning to end


class InputError(VidpressError, ValueError):
    """Input files that cannot be found or read: the message names the file and what to do."""


class MatchedFile(NamedTuple):
    """An input file.

    Attributes:
      path: Its path or URI.
      bytes: Its size.
      modified: When it was last written, in seconds since 1970.
    """

    path: str
    bytes: int
    modified: float


def match(patterns: Sequence[str]) -> list[MatchedFile]:
    """Return the files that some patterns name, sorted by path, each once.

    Args:
      patterns: Local paths and `gs://` URIs, with or without the characters above.

    Raises:
      InputError: If a pattern names no file, or something that cannot be read: a folder, a broken link, a pipe, a file
        without permission, a name that is not UTF-8.
      vidpress.model.files.uris.PathError: If a pattern is a URI of another kind.
    """
    files: dict[str, MatchedFile] = {}
    for pattern in patterns:
        path = normalized(pattern)
        found = _match_gcs(path) if path.startswith("gs://") else _match_local(path)
        files.update((file.path, file) for file in found)
    return sorted(files.values())


def older_than(seconds: float, files: Sequence[MatchedFile]) -> list[MatchedFile]:
    """Return the files that were last written at least so long ago: a younger one may still be being uploaded."""
    return [file for file in files if file.modified <= time.time() - seconds] if seconds else list(files)


def open_input(path: str) -> tuple[BinaryIO, int]:
    """Open an input file for reading from its beginning to its end, and return it with its size.

    Raises:
      InputError: If it cannot be opened, or is no file.
    """
    if not path.startswith("gs://"):
        return open_local(path)
    with _explained(path):
        blob = google_storage.existing_blob(path)
        return cast(BinaryIO, blob.open("rb", chunk_size=_GCS_CHUNK_SIZE)), cast(int, blob.size)


def open_local(path: str) -> tuple[BinaryIO, int]:
    """Open a local file, and return it with its size. Nothing but a file is opened, so that nothing is waited for.

    Raises:
      InputError: If it cannot be opened, or is no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InputError(f"{shown(path)} is {_kind(status.st_mode)}, not a file.")
    return os.fdopen(descriptor, "rb", buffering=_BUFFER), status.st_size


def version(path: str) -> tuple[int, ...]:
    """Return a file's size, and other numbers that differ if it was written in between.

    Raises:
      InputError: If it is not there any more, or cannot be asked for.
    """
    if google_storage.is_object(path):
        with _explained(path):
            blob = google_storage.existing_blob(path)
            return blob.size, blob.generation
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns


def crc32(path: str, num_bytes: int) -> int:
    """Return the CRC-32 (as in zlib) of an input file's first bytes, or of all if it has fewer.

    Raises:
      InputError: If it cannot be read.
    """
    checksum = 0
    file, _ = open_input(path)
    try:
        with file:
            while chunk := file.read(min(2**20, num_bytes)):
                checksum = zlib.crc32(chunk, checksum)
                num_bytes -= len(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return checksum


def unreadable(path: str, error: OSError) -> InputError:
    """Return the error for a file that could not be read: a retry may mend it, so that it is no damage."""
    return InputError(f"{shown(path)} cannot be read: {error.strerror or ' '.join(str(error).split())}.")


def shown(path: str) -> str:
    """Return a path as a message shows it: in one line, without bytes that are no characters."""
    return path if path.isprintable() else ascii(path)[1:-1]


def _match_local(pattern: str) -> list[MatchedFile]:
    if os.path.lexists(pattern):
        status = _status(pattern)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise _is_a_folder(pattern)
        return [_file(pattern, status)]
    files = []
    for alternative in _alternatives(pattern, local=True):
        segments = [segment for segment in alternative.split("/") if segment not in ("", ".")]
        found = {path: _status(path) for path in _walk("/" if alternative.startswith("/") else "", segments)}
        folders = [path for path, status in found.items() if status is not None and stat.S_ISDIR(status.st_mode)]
        if not found:
            raise _nothing(pattern, alternative)
        if len(folders) == len(found):
            raise InputError(
                f"{shown(pattern)} matches folders alone, such as {shown(folders[0])}: write "
                f"{shown(pattern.rstrip('/'))}/* for the files in them."
            )
        if folders and segments[-1] != "**":  # which goes into them
            _warn_once(
                f"{shown(pattern)} also matches folders, such as {shown(folders[0])}, and takes no file in them: "
                f"{shown(pattern.rstrip('/'))}/* does."
            )
        files += [_file(path, status) for path, status in found.items() if path not in folders]
    return files


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning: a launcher matches, and so does its pipeline, often in the same process."""
    _log.warning("%s", message)


def _alternatives(pattern: str, local: bool) -> list[str]:
    try:
        return path_patterns.alternatives(pattern, exists=os.path.lexists if local else lambda name: False)
    except ValueError as error:
        raise InputError(str(error)) from error


def _is_a_folder(pattern: str) -> InputError:
    return InputError(f"{shown(pattern)} is a folder: write {shown(pattern.rstrip('/'))}/* for the files in it.")


def _nothing(pattern: str, alternative: str) -> InputError:
    part = "" if alternative == pattern else f" (its part {shown(alternative)})"
    return InputError(f"{shown(pattern)} matches no file{part}: check the path, and quote globs in a shell.")


def _walk(folder: str, segments: Sequence[str]) -> Iterator[str]:
    """Yield what stands under a folder and matches the rest of a pattern, files and folders."""
    if not segments:
        yield folder
        return
    segment, rest = segments[0], segments[1:]
    if segment == "**":
        for inner in _folders_under(folder):
            yield from _walk(inner, rest or ["*"])
        return
    exact = os.path.join(folder, segment)
    if not path_patterns.is_magic(segment) or (not {"*", "?"} & set(segment) and os.path.lexists(exact)):
        if _is_folder(exact) if rest else _status(exact) is not None:
            yield from _walk(exact, rest)
        return
    matches = path_patterns.segment_matcher(segment)
    for name in _names(folder):
        path = os.path.join(folder, name)
        if matches(name) and (not rest or _is_folder(path)):
            yield from _walk(path, rest)


def _folders_under(folder: str) -> Iterator[str]:
    """Yield a folder and all folders under it but hidden ones; links are followed, but no folder comes twice."""
    seen = set()
    waiting = collections.deque([folder])
    while waiting:
        path = waiting.popleft()
        status = _status(path or ".")
        if status is None or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield path
        inner = (os.path.join(path, name) for name in _names(path) if not name.startswith("."))
        waiting.extend(path for path in inner if _is_folder(path))


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError as error:
        raise InputError(f"{shown(folder or '.')} is a folder that cannot be listed: {error.strerror}.") from error


def _is_folder(path: str) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: str) -> os.stat_result | None:
    """Return what a path is, links followed, or None if there is nothing of that name.

    Raises:
      InputError: If that cannot be told, or a link leads nowhere: what it should lead to would be missing in silence.
    """
    try:
        return os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            raise InputError(
                f"{shown(path)} is a broken link to {shown(os.readlink(path))}: fetch what it stands for, or remove it."
            ) from error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise unreadable(path, error) from error


def _file(path: str, status: os.stat_result | None) -> MatchedFile:
    if status is None:
        raise InputError(f"{shown(path)} was there a moment ago, and is gone.")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{shown(path)} is {_kind(status.st_mode)}, not a file: name files alone.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)} cannot be read: Permission denied.")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{shown(path)} has a name that is not UTF-8, as lists of files must be: rename it."
        ) from error
    return MatchedFile(path, status.st_size, status.st_mtime)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "something else")


def _match_gcs(pattern: str) -> list[MatchedFile]:
    bucket_name, _, name = pattern.removeprefix("gs://").partition("/")
    if not bucket_name or not name:
        raise InputError(f"{pattern} names no object of Cloud Storage: write gs://BUCKET/NAME, or a pattern of names.")
    with _explained(pattern):
        bucket = google_storage.client().bucket(bucket_name)
        exact = None if name.endswith("/") else bucket.get_blob(name)
        if exact is not None:
            blobs = [exact]
        else:
            blobs = []
            for alternative in _alternatives(name, local=False):
                prefix = path_patterns.literal_prefix(alternative)
                if prefix == alternative:
                    found = bucket.list_blobs(prefix=f"{name.rstrip('/')}/", max_results=1)
                    if name == alternative and next(iter(found), None) is not None:
                        raise _is_a_folder(pattern)
                listed = bucket.list_blobs(prefix=prefix)
                matching = [blob for blob in listed if path_patterns.matches(alternative, blob.name)]
                matching = [blob for blob in matching if not blob.name.endswith("/")]
                if not matching:
                    raise _nothing(pattern, f"gs://{bucket_name}/{alternative}")
                blobs += matching
    return [MatchedFile(f"gs://{bucket_name}/{blob.name}", blob.size, blob.updated.timestamp()) for blob in blobs]


@contextlib.contextmanager
def _explained(pattern: str) -> Iterator[None]:
    try:
        with google_storage.explained(pattern):
            yield
    except OSError as error:  # its message names what it is about
        raise InputError(" ".join(str(error).split())) from error
