"""Writing local files so that they outlive a power cut, and are never seen half written."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from vidpress.model.errors import VidpressError

# What file systems without hard links answer: FUSE, SMB, exFAT.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES, errno.EINVAL)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)

_AT_FDCWD = -2 if sys.platform == "darwin" else -100
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # sys/stdio.h of macOS


class UnsafeFileSystemError(VidpressError, OSError):
    """A file system that cannot make a file only where there is none."""


@contextlib.contextmanager
def temporary_beside(path: str) -> Iterator[tuple[str, BinaryIO]]:
    """Open a new hidden file in the folder of `path`, which is made if it is not there; it is removed at the end.

    Yields:
      Its path, and the file, to be written.
    """
    path = os.path.abspath(path)
    make_folder(os.path.dirname(path))
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with _opened(temporary, path) as file:
            yield temporary, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def complete(path: str, name: Callable[[str, str], None]) -> Iterator[BinaryIO]:
    """Open a file that is written piece by piece; it appears complete, and is on the disk, when the block ends.

    If the block is left by an error, there is no file.

    Args:
      path: The file.
      name: Gives a file, the first argument, the name of the second: `os.replace`, or `name_where_none_is`.
    """
    path = os.path.abspath(path)
    with temporary_beside(path) as (temporary, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        name(temporary, path)
    sync_folder(os.path.dirname(path))


def _opened(temporary: str, path: str) -> BinaryIO:
    try:
        return open(temporary, "xb")
    except OSError as error:
        error.filename = path  # nobody who reads the error knows of the other
        raise


def write(path: str, data: bytes, name: Callable[[str, str], None]) -> None:
    """Write a file that appears complete, and is on the disk when this returns.

    Args:
      path: The file.
      data: Its content.
      name: As `complete` takes it.
    """
    for attempts_left in (2, 1, 0):
        try:
            with complete(path, name) as file:
                file.write(data)
            return
        except FileNotFoundError:
            # Another run took the temporary file for a leftover and removed it.
            if not attempts_left:
                raise


def make_folder(path: str) -> None:
    """Make a folder and those above it; each is on the disk before anything is put into it."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_folder(parent)


def sync_folder(path: str) -> None:
    """Wait until the names in a folder are on the disk, on file systems that can be asked for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def name_where_none_is(temporary: str, path: str) -> None:
    """Give a file the name `path`, unless there is a file of that name.

    By a hard link; where there are none, by a rename that does not replace.

    Raises:
      FileExistsError: If there is one.
      UnsafeFileSystemError: If the file system can do neither.
    """
    try:
        os.link(temporary, path)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        no_links = error
    failed = _rename_without_replacing(temporary, path)
    if failed == errno.EEXIST:
        raise FileExistsError(failed, os.strerror(failed), path)
    if failed in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        raise UnsafeFileSystemError(
            f"{os.path.dirname(path)} is on a file system without hard links ({no_links.strerror}) and without a "
            "rename that never replaces a file. Two runs at once could undo each other there: name another folder."
        ) from no_links
    if failed:
        raise OSError(failed, os.strerror(failed), path)


def _rename_without_replacing(source: str, target: str) -> int:
    """Return 0 or the error's number."""
    rename, flag = _exclusive_rename()
    if rename is None:
        return errno.ENOSYS
    names = [_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target)]
    return 0 if rename(*names, flag) == 0 else ctypes.get_errno()


@functools.cache
def _exclusive_rename() -> tuple[Any, int]:
    """Return the C library's function that renames with flags, and the flag not to replace."""
    library = ctypes.CDLL(None, use_errno=True)
    name, flag = ("renameatx_np", _RENAME_EXCL) if sys.platform == "darwin" else ("renameat2", _RENAME_NOREPLACE)
    function = getattr(library, name, None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function, flag
