"""The base class of all errors that a user can cause, fix or must know about; and fixes for errors of the system."""

from __future__ import annotations

import errno
import re

# How to fix an error of the system, by its number; the texts of the others are clear enough.
_FIXES = {
    errno.ENOSPC: "the disk is full: make room, and run the same command again",
    errno.EDQUOT: "the quota of the disk is used up: make room, and run the same command again",
    errno.EFBIG: "the file grew beyond the limit on a file's size: raise it (`ulimit -f`), or use more shards",
    errno.EMFILE: "too many open files: raise the limit (`ulimit -n 4096`), and run the same command again",
    errno.ENFILE: "too many files are open on this machine: close some, and run the same command again",
    errno.EROFS: "the file system is read-only: name another folder",
    errno.EACCES: "there is no permission: give it, or run as a user who has it",
    errno.EPERM: "it is not permitted: give the permission, or run as a user who has it",
    errno.EIO: "the disk or the network failed: check them, and run the same command again",
    errno.ENOMEM: "there is not enough memory: free some, or use a larger machine",
    errno.ENOENT: "it does not exist: check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder: check the path",
    errno.EISDIR: "it is a folder, not a file: check the path",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "symbolic links lead in a circle: check the path",
    errno.ESTALE: "the network file system has lost it: run the same command again",
}
_ERRNO = re.compile(r"\[errno (\d+)\]", re.IGNORECASE)


class VidpressError(Exception):
    """An error whose message says everything: what is wrong, where, and what to do. It needs no traceback."""


def fix_of(error: OSError) -> str | None:
    """Return what is wrong and how to fix it, without the file's name and a full stop; None if it is not known here.

    The number is also searched for in the text: some libraries' errors have it only there.
    """
    number = error.errno
    if number is None:
        found = _ERRNO.search(str(error))
        number = int(found.group(1)) if found else None
    return _FIXES.get(number or 0)
