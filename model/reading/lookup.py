"""Find videos of a data set by their ids: one shard, one row group and one read for each, besides the footer."""

from __future__ import annotations

import bisect
import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from vidpress.model.data_set.id_hash import hash_of
from vidpress.model.reading.row_groups import RowGroups, one_batch
from vidpress.model.shards.shard_rows import SCHEMA
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Row groups that are kept after a lookup, some 400 KB each: neighbours in them are found without reading.
_KEPT_ROW_GROUPS = 8

# So many shards are read at once: on Cloud Storage, a read takes some 50 ms, whatever its size.
_MAX_THREADS = 16


class Shards(NamedTuple):
    """The shards that ids are divided among.

    Attributes:
      names: The shards that exist, by their index.
      num_shards: How many there would be if none were empty; an id belongs to that of its hash modulo this number.
    """

    names: Mapping[int, str]
    num_shards: int


class Found(NamedTuple):
    """What a lookup gives.

    Attributes:
      rows: The rows of the ids that were found, each once.
      places: For each id, its place among the rows; None for those that were not found.
      tables: The tables that decode the rows.
    """

    rows: pa.RecordBatch
    places: list[int | None]
    tables: RangeCodingTables | None


class Lookup:
    """Finds rows by id. It can be used by several threads.

    Args:
      row_groups: The row groups of all shards.
      generations: The shards of each generation, among which the ids are divided.
      in_threads: Whether to read several shards at once, which is faster where a read takes long to begin.
    """

    def __init__(self, row_groups: RowGroups, generations: Sequence[Shards], *, in_threads: bool):
        self._row_groups = row_groups
        self._generations = generations
        self._max_threads = _MAX_THREADS if in_threads else 1
        self._locks: dict[str, threading.Lock] = {}
        self._read = functools.lru_cache(maxsize=_KEPT_ROW_GROUPS)(lambda number: row_groups.read([number]))

    def find(self, ids: Sequence[bytes]) -> Found:
        """Find rows.

        Args:
          ids: The ids, of which some may be equal, and some not in the data set.

        Raises:
          FileNotFoundError: If a shard is missing.
          ShardError: If one is damaged.
        """
        wanted: dict[str, list[bytes]] = {}
        for video_id in dict.fromkeys(ids):
            hashed = hash_of(video_id)
            for shards in self._generations:
                name = shards.names.get(hashed % shards.num_shards)
                if name is not None:
                    wanted.setdefault(name, []).append(video_id)
        if min(len(wanted), self._max_threads) > 1:
            with concurrent.futures.ThreadPoolExecutor(min(len(wanted), self._max_threads)) as threads:
                parts = list(itertools.chain(*threads.map(self._find_in, wanted, wanted.values())))
        else:
            parts = [part for name, of_shard in wanted.items() for part in self._find_in(name, of_shard)]
        found = [part for part in parts if part.num_rows]
        rows = one_batch(found) if found else pa.RecordBatch.from_pylist([], schema=SCHEMA)
        place_of = {video_id: place for place, video_id in enumerate(rows["id"].to_pylist())}
        tables = self._row_groups.tables if found else None
        return Found(rows, [place_of.get(video_id) for video_id in ids], tables)

    def _find_in(self, name: str, ids: Sequence[bytes]) -> list[pa.RecordBatch]:
        """Return the rows of a shard that have one of these ids."""
        parts = []
        with self._locks.setdefault(name, threading.Lock()):
            for number, of_row_group in self._by_row_group(name, sorted(ids)):
                rows = self._read(number)
                parts.append(rows.take(pa.array(_places(rows["id"], of_row_group), pa.int64())))
        return parts

    def _by_row_group(self, name: str, ids: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
        """Yield the numbers of a shard's row groups that may hold some of these ids, and which."""
        shard = self._row_groups.shard(name)
        for index, number in enumerate(self._row_groups.numbers[name]):
            least, greatest = shard.id_range(index)
            some = ids[bisect.bisect_left(ids, least) : bisect.bisect_right(ids, greatest)]
            if some:
                yield number, some


def _places(column: pa.BinaryArray, ids: Sequence[bytes]) -> Iterator[int]:
    """Yield where some ids are in a column of sorted ids, if they are in it."""
    for video_id in ids:
        place = bisect.bisect_left(range(len(column)), video_id, key=lambda place: column[place].as_py())
        if place < len(column) and column[place].as_py() == video_id:
            yield place
