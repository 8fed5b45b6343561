"""In which order the rows of a data set are read in an epoch, and which of several readers gets which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vidpress.model.reading.row_groups import one_batch

# A shuffled epoch takes this many lanes of two row groups each at a time, and from each lane in turn so many rows. So a
# reader that takes every 8th or 48th batch of 256 needs few of the lanes, and one that takes all mixes 393,216 rows.
# They are held as codes: some 50 MB.
LANES = 48
_LANE_ROW_GROUPS = 2
TURN = 256


class Lane(NamedTuple):
    """Rows that are mixed with each other.

    Attributes:
      row_groups: The numbers of the row groups that they are in.
      rows: int64[num_rows], their order: indices into the rows of the row groups, one after the other.
    """

    row_groups: tuple[int, ...]
    rows: np.ndarray


class Piece(NamedTuple):
    """Rows `start` to `stop` of a lane, in its order.

    Attributes:
      lane: The lane's number in the epoch.
      start: The first row.
      stop: The row after the last one.
    """

    lane: int
    start: int
    stop: int


class _Turns(NamedTuple):
    """The turns of a round.

    Attributes:
      lanes: int64[num_turns], the lane of each.
      in_lane: int64[num_turns], the lane's row that it starts with.
      in_epoch: int64[num_turns], the epoch's row likewise.
    """

    lanes: np.ndarray
    in_lane: np.ndarray
    in_epoch: np.ndarray


class EpochOrder:
    """The order of all rows in an epoch. It does not depend on who reads them, and how many rows at a time.

    Args:
      sizes: How many rows each row group has, at least 1.
      rng_key: What the order of a shuffled epoch follows from; None for the order of the row groups.

    Attributes:
      num_rows: How many rows there are.
    """

    def __init__(self, sizes: Sequence[int], rng_key: tuple[int, ...] | None = None):
        self._sizes = np.asarray(sizes, np.int64)
        self.num_rows = int(self._sizes.sum())
        self._rng_key = rng_key
        self._num_lanes = 1 if rng_key is None else LANES
        self._turn = max(map(int, sizes), default=1) if rng_key is None else TURN
        order = np.arange(len(self._sizes))
        self._order = order if rng_key is None else np.random.default_rng(rng_key).permutation(order)
        self._round_size = 1 if rng_key is None else LANES * _LANE_ROW_GROUPS
        firsts = np.arange(0, len(order), self._round_size)
        rows = np.add.reduceat(self._sizes[self._order], firsts) if len(order) else np.empty(0, np.int64)
        self._round_starts = np.concatenate([[0], np.cumsum(rows)])
        self._turns_of_round: tuple[int, _Turns] | None = None

    def lane(self, number: int) -> Lane:
        """Return a lane by its number in the epoch."""
        row_groups = self._row_groups(number)
        num_rows = int(self._sizes[row_groups].sum())
        rows = np.arange(num_rows)
        if self._rng_key is not None:
            rows = np.random.default_rng([*self._rng_key, number]).permutation(num_rows)
        return Lane(tuple(row_groups.tolist()), rows)

    def _row_groups(self, lane: int) -> np.ndarray:
        a_round, place = divmod(lane, self._num_lanes)
        in_round = self._order[a_round * self._round_size : (a_round + 1) * self._round_size]
        return in_round[place :: self._num_lanes]

    def _turns(self, a_round: int) -> _Turns:
        known = self._turns_of_round  # one look: threads may share the order
        if known is None or known[0] != a_round:
            self._turns_of_round = known = a_round, self._make_turns(a_round)
        return known[1]

    def _make_turns(self, a_round: int) -> _Turns:
        lanes = np.arange(self._num_lanes) + a_round * self._num_lanes
        sizes = np.array([self._sizes[self._row_groups(lane)].sum() for lane in lanes.tolist()])
        turns = -(-sizes // self._turn)
        lane = np.repeat(np.arange(self._num_lanes), turns)
        turn = np.arange(len(lane)) - np.repeat(np.cumsum(turns) - turns, turns)
        order = np.lexsort((lane, turn))
        lane, start = lane[order], turn[order] * self._turn
        lengths = np.minimum(self._turn, sizes[lane] - start)
        return _Turns(lanes[lane], start, self._round_starts[a_round] + np.cumsum(lengths) - lengths)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield where rows `start` to `stop` of the epoch are."""
        while start < stop:
            a_round = int(np.searchsorted(self._round_starts, start, side="right")) - 1
            lanes, in_lane, in_epoch = self._turns(a_round)
            end_of_round = int(self._round_starts[a_round + 1])
            turn = int(np.searchsorted(in_epoch, start, side="right")) - 1
            while start < min(stop, end_of_round):
                end = int(in_epoch[turn + 1]) if turn + 1 < len(in_epoch) else end_of_round
                first = int(in_lane[turn]) + start - int(in_epoch[turn])
                length = min(stop, end) - start
                yield Piece(int(lanes[turn]), first, first + length)
                start += length
                turn += 1


class LaneRows:
    """The rows of an epoch's lanes, which are read when they are needed and kept while their turns last.

    Args:
      order: The epoch's order.
      read: Reads the rows of row groups by their numbers.
    """

    def __init__(self, order: EpochOrder, read: Callable[[Sequence[int]], pa.RecordBatch]):
        self._order = order
        self._read = read
        self._lane = functools.lru_cache(maxsize=LANES)(self._read_lane)

    def _read_lane(self, number: int) -> tuple[pa.RecordBatch, np.ndarray]:
        lane = self._order.lane(number)
        return self._read(lane.row_groups), lane.rows

    def rows(self, start: int, stop: int) -> pa.RecordBatch:
        """Return rows `start` to `stop` of the epoch, at least one."""
        return one_batch([self._of_lane(piece) for piece in self._order.pieces(start, stop)])

    def _of_lane(self, piece: Piece) -> pa.RecordBatch:
        rows, order = self._lane(piece.lane)
        return rows.take(pa.array(order[piece.start : piece.stop]))


class Reader(NamedTuple):
    """One of several readers that share a data set, and one of the workers that it has.

    Attributes:
      rank: Its number, in [0, num_ranks).
      num_ranks: How many readers there are. All get the same number of batches.
      worker: The number of the worker, in [0, num_workers).
      num_workers: How many workers the reader has. They take its batches in turn.
    """

    rank: int = 0
    num_ranks: int = 1
    worker: int = 0
    num_workers: int = 1


class Deal:
    """How the rows of an epoch are dealt to readers as batches.

    In each step, every reader gets a batch, and all these batches are neighbours in the epoch's order. The rows that
    are left for the last step are divided evenly. If there are fewer of them than readers, they go to batches of the
    step before, which then have one row more than the others. So no row is lost or read twice.

    Args:
      num_rows: How many rows the epoch has.
      start: How many of them have been read already.
      batch_size: Rows in a batch.
      num_ranks: How many readers there are.
      drop_remainder: Whether to leave out the rows that are left for the last step.

    Attributes:
      num_steps: How many batches each reader gets.

    Raises:
      ValueError: If a reader would get none, unless that is the rest of an epoch that is left out anyway.
    """

    def __init__(self, num_rows: int, start: int, batch_size: int, num_ranks: int, drop_remainder: bool):
        self._num_rows, self._start, self._num_ranks, self._batch_size = num_rows, start, num_ranks, batch_size
        whole, rest = divmod(num_rows - start, batch_size * num_ranks)
        self._last = 0
        if rest and not drop_remainder and (rest >= num_ranks or whole):
            whole -= rest < num_ranks
            self._last = num_rows - start - whole * batch_size * num_ranks
        self._whole = whole
        self.num_steps = whole + bool(self._last)
        if rest and not self.num_steps and not (start and drop_remainder):
            what = f"no whole batch of {batch_size}" if drop_remainder else "no video"
            fix = "use a smaller batch" if num_ranks == 1 else "use fewer workers"
            fix += " or a smaller batch" if drop_remainder and num_ranks > 1 else ""
            fix += ", or begin the next epoch without them (`set_epoch`)" if start else ""
            left = " left" if start else ""
            workers = f" for some of the {num_ranks} workers" if num_ranks > 1 else ""
            raise ValueError(f"There are {num_rows - start:,} videos{left}, which is {what}{workers}: {fix}.")

    def steps(self, reader: Reader, num_read: int = 0) -> range:
        """Return the steps whose batches a reader's worker reads, after it has read some."""
        return range(reader.worker + num_read * reader.num_workers, self.num_steps, reader.num_workers)

    def batch(self, step: int, rank: int) -> tuple[int, int]:
        """Return the first row of a reader's batch in a step, and the row after its last one."""
        size = self._batch_size * self._num_ranks
        first = self._start + step * size
        if step < self._whole:
            return first + rank * self._batch_size, first + (rank + 1) * self._batch_size
        return first + self._last * rank // self._num_ranks, first + self._last * (rank + 1) // self._num_ranks

    def position(self, num_steps: int) -> int:
        """Return how many rows of the epoch are read after so many steps; all, after the last one."""
        if num_steps >= self.num_steps:
            return self._num_rows
        return self._start + num_steps * self._batch_size * self._num_ranks
