"""The row groups of a data set's shards, and the tables that decode all rows that were read; anew in each process."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import pyarrow as pa

from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.shards.shard_rows import SCHEMA
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# How many shards are held open, each with its tables.
_OPEN_SHARDS = 32

Made = TypeVar("Made")


class OfProcess(Generic[Made]):
    """What a process makes for itself: open files, and the locks that guard them. Threads share it.

    After a fork, two processes would move one place in an open file, and a lock that another thread held would stay
    locked for ever. So each process makes its own, locks included; and nothing of it is pickled.
    """

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}

    def __reduce__(self) -> tuple[type[OfProcess[Made]], tuple[()]]:
        return OfProcess, ()

    def get(self, make: Callable[[], Made]) -> Made:
        """Return what this process made; make it, if it has not.

        Args:
          make: Makes it. If threads come at the same time, it may be called by several of them, and one result is kept:
            there is no lock here that a fork might find locked.
        """
        process = os.getpid()
        made = self._made.get(process)
        if made is None:
            made = self._made.setdefault(process, make())
            for other in self._made.keys() - {process}:  # those of the process that this one was forked from
                self._made.pop(other, None)
        return made


class RowGroups:
    """The row groups of several shards, by number. Threads can read from different shards at once.

    Args:
      open_shard: Opens a shard by its name.
      places: The shard of each row group, and its index there.
      columns: The columns that are given of each row.

    Attributes:
      numbers: The numbers of each shard's row groups, in its order.
      shard: A function that opens a shard by its name, or returns it if it is open; it raises what `read` does.
    """

    def __init__(
        self,
        open_shard: Callable[[str], Shard],
        places: Sequence[tuple[str, int]],
        columns: Sequence[str] = tuple(SCHEMA.names),
    ):
        self._open_shard = open_shard
        self.shard = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._opened)
        self._places = places
        self._columns = list(columns)
        self.numbers: dict[str, list[int]] = {}
        for number, (name, _) in enumerate(places):
            self.numbers.setdefault(name, []).append(number)
        self._tables: RangeCodingTables | None = None
        self._lock = threading.Lock()

    @property
    def num_banks(self) -> int:
        """How many banks the tables have; 0 if no shard is open yet."""
        return 0 if self._tables is None else self._tables.num_banks

    @property
    def tables(self) -> RangeCodingTables:
        """The tables of all shards that were opened, with all their banks."""
        if self._tables is None:
            raise ValueError("Tables are known once a shard is open: open one.")
        return self._tables

    def _opened(self, name: str) -> Shard:
        """Open a shard, and add its tables.

        Raises:
          FileNotFoundError: If it is missing.
          ShardError: If it is damaged, or has other tables than the shards before it.
        """
        shard = self._open_shard(name)
        try:
            # A shard has only the banks of tables that its own rows use.
            with self._lock:
                tables = shard.header.tables
                self._tables = tables if self._tables is None else self._tables.union(tables)
        except ValueError as error:
            raise ShardError(f"{shard.name} has other tables than the shards before it: {error}") from error
        return shard

    def read(self, row_groups: Sequence[int]) -> pa.RecordBatch:
        """Read the rows of some row groups, one after the other.

        Returns:
          A batch of the columns, without metadata.

        Raises:
          FileNotFoundError: If a shard is missing.
          ShardError: If one is damaged.
        """
        batches = []
        for row_group in row_groups:
            name, index = self._places[row_group]
            batches.append(self.shard(name).read(index).replace_schema_metadata().select(self._columns))
        return one_batch(batches)


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of batches as one, whose columns start where its buffers do; at least one batch with rows."""
    if len(batches) == 1:
        return batches[0]
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch
