"""Find videos of a data set by their ids: one shard, one row group and one read for each, besides the footer."""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.id_hash import hash_of
from vidpress.model.reading.row_groups import RowGroups, one_batch
from vidpress.model.shards.shard_rows import SCHEMA
from vidpress.model.shards.sorted_ids import SortedIds
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Row groups that were read are kept, up to so many bytes of codes and the rest: those of 1.7 million videos of 150.
_MAX_KEPT_BYTES = 2**28

# Rows that were found hold on to their row groups, and are copied after so many.
_MAX_ROW_GROUPS_HELD = 64

# Up to so many rows of a row group, to take each by itself is faster than to take them together.
_FEW_ROWS = 16

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


class _RowGroup(NamedTuple):
    rows: pa.RecordBatch
    ids: SortedIds


class _Kept:
    """The row groups that were used last, by number; threads can share them."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._row_groups: collections.OrderedDict[int, _RowGroup] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> _RowGroup | None:
        with self._lock:
            row_group = self._row_groups.get(number)
            if row_group is not None:
                self._row_groups.move_to_end(number)
            return row_group

    def put(self, number: int, row_group: _RowGroup) -> None:
        with self._lock:
            self._row_groups[number] = row_group
            self._num_bytes += row_group.rows.get_total_buffer_size()
            while self._num_bytes > self._max_bytes:
                _, oldest = self._row_groups.popitem(last=False)
                self._num_bytes -= oldest.rows.get_total_buffer_size()


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
        self._bounds: dict[str, list[tuple[bytes, bytes]]] = {}
        self._kept = _Kept(_MAX_KEPT_BYTES)

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
        num_threads = min(len(wanted), self._max_threads)
        if num_threads > 1:
            with concurrent.futures.ThreadPoolExecutor(num_threads) as threads:
                found = list(itertools.chain(*threads.map(self._find_in, wanted, wanted.values())))
        else:
            found = [part for name, of_shard in wanted.items() for part in self._find_in(name, of_shard)]
        rows = one_batch(found) if found else pa.RecordBatch.from_pylist([], schema=SCHEMA)
        place_of = {video_id: place for place, video_id in enumerate(rows["id"].to_pylist())}
        tables = self._row_groups.tables if found else None
        return Found(rows, [place_of.get(video_id) for video_id in ids], tables)

    def _find_in(self, name: str, ids: Sequence[bytes]) -> list[pa.RecordBatch]:
        """Return the rows of a shard that have one of these ids."""
        ids = sorted(ids)
        wanted = SortedIds(pa.array(ids, pa.binary()))
        copied: list[pa.RecordBatch] = []
        with self._locks.setdefault(name, threading.Lock()):
            row_groups = self._by_row_group(name, ids)
            while some := list(itertools.islice(row_groups, _MAX_ROW_GROUPS_HELD)):
                found: list[pa.RecordBatch] = []
                for number, start, stop in some:
                    row_group = self._read(number)
                    found += _rows_at(row_group.rows, row_group.ids.places(wanted, start, stop))
                if found:
                    copied.append(one_batch(found))
        return copied

    def _by_row_group(self, name: str, ids: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
        """Yield the numbers of a shard's row groups that may hold some of these sorted ids, and from which to which."""
        if name not in self._bounds:  # kept for all shards, of which few are open
            shard = self._row_groups.shard(name)
            self._bounds[name] = [shard.id_range(index) for index in range(len(self._row_groups.numbers[name]))]
        for number, (least, greatest) in zip(self._row_groups.numbers[name], self._bounds[name], strict=True):
            start, stop = bisect.bisect_left(ids, least), bisect.bisect_right(ids, greatest)
            if start < stop:
                yield number, start, stop

    def _read(self, number: int) -> _RowGroup:
        row_group = self._kept.get(number)
        if row_group is None:
            rows = self._row_groups.read([number])
            row_group = _RowGroup(rows, SortedIds(rows["id"]))
            self._kept.put(number, row_group)
        return row_group


def _rows_at(rows: pa.RecordBatch, places: np.ndarray) -> list[pa.RecordBatch]:
    """Return the rows at some places; none where a place is -1."""
    places = places[places >= 0]
    if len(places) > _FEW_ROWS:
        return [rows.take(pa.array(places))]
    return [rows.slice(place, 1) for place in places.tolist()]
