"""The batches of an epoch by their numbers, as Grain wants its sources."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from vidpress.model.reading.epoch_order import Deal, EpochOrder, LaneRows
from vidpress.model.reading.row_groups import RowGroups
from vidpress.model.reading.stored_videos import StoredRows, StoredVideos


class BatchSource:
    """Batches by number: for `grain.MapDataset.source`, or as a map-style dataset of batches.

    Threads can share it, and processes get their own. Batches that are asked for in order, or in strides, are read with
    few reads; others need a read of a row group each.

    Args:
      videos: The data set.
      order: The epoch's order.
      deal: How it is dealt to workers.
      rank: Whose batches they are.
      decoded: Makes a batch of rows.
    """

    def __init__(
        self, videos: StoredVideos, order: EpochOrder, deal: Deal, rank: int, decoded: Callable[[StoredRows], Any]
    ):
        self._videos = videos
        self._order = order
        self._deal = deal
        self._rank = rank
        self._decoded = decoded
        self._lock = threading.Lock()
        self._reading: tuple[int, RowGroups, LaneRows] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"<BatchSource {self._videos.path}: {len(self):,} batches>"

    def __len__(self) -> int:
        return self._deal.num_steps

    def __getitem__(self, index: int) -> Any:
        """Return a batch.

        Raises:
          IndexError: If there is none of that number.
          ShardError: If a shard is damaged, or does not belong to this data set.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self):,} batches, none with the number {index}.")
        start, stop = self._deal.batch(int(index) % len(self), self._rank)
        with self._lock:
            if self._reading is None or self._reading[0] != os.getpid():  # open files of another process
                row_groups = self._videos.row_groups()
                self._reading = os.getpid(), row_groups, LaneRows(self._order, row_groups.read)
            _, row_groups, lanes = self._reading
            rows = lanes.rows(start, stop)
            tables = row_groups.tables
        return self._decoded(StoredRows(rows, tables))
