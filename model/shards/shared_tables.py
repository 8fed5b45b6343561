"""Range coding tables in a file of their own, which the small shards of a data set share."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from typing import NamedTuple

from vidpress.model.files import storage
from vidpress.model.files.file_names import file_name, join, parse_part_name
from vidpress.model.files.uris import PathError
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# 256 banks of 8,192 dimensions take 2 MB.
_MAX_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class TablesFile:
    """Which file of a data set has its tables, with all banks.

    Attributes:
      name: Its name in the data set's folder.
      sha256: Its checksum, hexadecimal.
    """

    name: str
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> TablesFile:
        """Return what the file of packed tables (`RangeCodingTables.to_bytes`) is called."""
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(file_name("tables", 1, None, sha256), sha256)

    def check(self) -> None:
        """See that this can be such a file's name and checksum; no other name is ever opened.

        Raises:
          ValueError: If not.
        """
        parts = parse_part_name(self.name)
        if parts is None or parts["kind"] != "tables":
            raise ValueError(f"{self.name[:200]!r} is not the name of a file of tables")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256) or parts["sha256"] != self.sha256[:12]:
            raise ValueError(f"{self.name} is not the name of a file with the checksum {self.sha256[:100]!r}")


class SharedTables(NamedTuple):
    """The tables in a file, and the file's bytes."""

    tables: RangeCodingTables
    data: bytes


def load_tables(folder: str | os.PathLike[str], file: TablesFile) -> SharedTables:
    """Load the tables that shards of a data set share: once in a process.

    Raises:
      FileNotFoundError: If the file is missing; the message names it.
      ValueError: If it is damaged, or not the one that is wanted.
    """
    return _load(join(folder, file.name), file.sha256)


@functools.lru_cache(maxsize=4)
def _load(uri: str, sha256: str) -> SharedTables:
    try:
        data = storage.read_bytes(uri, max_bytes=_MAX_BYTES, links=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri} is missing: small shards share the tables in it. Fetch it again.") from error
    except PathError as error:
        raise ValueError(str(error)) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{uri} is not the file that its shards name: its SHA-256 differs. Fetch it again.")
    return SharedTables(parse_tables(data, uri), data)


def parse_tables(data: bytes, uri: str) -> RangeCodingTables:
    """Return the tables in the bytes of such a file.

    Raises:
      ValueError: If there are none; the message names the file.
    """
    try:
        return RangeCodingTables.from_bytes(data)
    except ValueError as error:
        raise ValueError(f"{uri} cannot be used: {error}") from error
