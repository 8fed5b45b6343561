"""A data set for PyTorch's DataLoader. The only module that imports PyTorch."""

from __future__ import annotations

import functools
import gc
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from vidpress.model.reading.epoch_order import Reader
from vidpress.model.reading.reading_state import Position, from_state, in_epoch, position_of, to_state
from vidpress.model.reading.video_batch import RaggedLabels, VideoBatch

if TYPE_CHECKING:
    from vidpress.model.reading.video_dataset import VideoDataset

# Processes of a loader, at most.
_MAX_PROCESSES = 4096
_EPOCH_BITS = 31
_NO_SEED = 0


class _Place(NamedTuple):
    """Where a process is: in an epoch that it began after some rows, and how many batches it has given since."""

    epoch: int
    rows: int
    num_read: int


class TorchVideoDataset(IterableDataset):
    """The batches of a `VideoDataset`, for `DataLoader(..., batch_size=None)`.

    The processes of the loader take the batches in turn, so that the loader gives them in the same order however many
    there are. The ranks of `torch.distributed` share the data set, whatever their own seeds are: all get the same
    number of batches. Epochs differ, also where the loader keeps its processes (`persistent_workers`).

    With torchdata's `StatefulDataLoader`, a training that is stopped goes on after the last batch. To go on with
    another number of processes or ranks, use `state_dict(num_batches)` instead of the loader's.
    """

    def __init__(self, dataset: VideoDataset):
        self._dataset = dataset
        self._ranks: tuple[int, int] | None = None
        self._loaded: _Place | None = None
        # What each process of a loader began last: the epoch, and above it a checksum of the loader's seed.
        self._begun = torch.zeros(_MAX_PROCESSES, dtype=torch.int64).share_memory_()
        # The next epoch if none was begun, and how many rows of it are read.
        self._next = torch.zeros(2, dtype=torch.int64).share_memory_()
        state = dataset.state_dict()
        self._set_next(state["epoch"], state["rows"])

    def __getstate__(self) -> dict[str, Any]:
        # A process that is not forked knows nothing of `torch.distributed`.
        return {**self.__dict__, "_ranks": self._of_ranks()}

    def _of_ranks(self) -> tuple[int, int]:
        """Return which of how many ranks this is."""
        dataset = self._dataset
        if self._ranks is not None:
            return self._ranks
        if dataset.num_workers == 1 and torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return dataset.worker, dataset.num_workers

    def __len__(self) -> int:
        """Return how many batches the next epoch has for this rank."""
        _, num_ranks = self._of_ranks()
        return self._dataset.deal(self._start_of(self._next_epoch()), num_ranks).num_steps

    def __iter__(self) -> Iterator[VideoBatch]:
        info = get_worker_info()
        if info is not None:
            _leave_garbage()
        process, num_processes = (0, 1) if info is None else (info.id, info.num_workers)
        rank, num_ranks = self._of_ranks()
        self._dataset.check_workers(num_ranks)
        place, self._loaded = self._loaded, None
        # The loader draws a new base seed for each set of processes; a process's seed is that plus its index.
        checksum = _NO_SEED if info is None else zlib.crc32(str(info.seed - info.id).encode()) >> 1 | 1
        if place is None:
            epoch = self._next_epoch(process, checksum)
            place = _Place(epoch, self._start_of(epoch), 0)
        self._begun[process] = checksum << _EPOCH_BITS | place.epoch + 1
        self._place = place
        reader = Reader(rank, num_ranks, process, num_processes)
        return self._follow(self._dataset.read_epoch(place.epoch, place.rows, reader, place.num_read))

    def _follow(self, batches: Iterator[tuple[VideoBatch, int]]) -> Iterator[VideoBatch]:
        for batch, _ in batches:
            self._place = self._place._replace(num_read=self._place.num_read + 1)
            if self._dataset.num_classes is None:
                yield batch._replace(labels=RaggedLabels.of(batch.labels))
            else:
                yield self._dataset.densified(batch)

    def _next_epoch(self, process: int | None = None, checksum: int = _NO_SEED) -> int:
        """Return the epoch that a process of a loader begins now: the same for all that the loader starts together.

        They agree without waiting for each other. If one of them has begun already, the others find its epoch by the
        seed that they share; if none has, all find the same last one.
        """
        begun = self._begun.numpy().copy()  # others write to it
        epochs = (begun & ((1 << _EPOCH_BITS) - 1)) - 1
        with_seed = begun >> _EPOCH_BITS == checksum
        if checksum != _NO_SEED and with_seed.any():
            return int(epochs[process]) + 1 if with_seed[process] else int(epochs[with_seed].max())
        return int(epochs.max()) + 1 if begun.any() else int(self._next[0])

    def _start_of(self, epoch: int) -> int:
        first, rows = self._next.tolist()
        return rows if epoch == first else 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that epoch, from its beginning, in all processes of a loader."""
        self._set_next(epoch, 0)

    def _set_next(self, epoch: int, rows: int) -> None:
        self._begun.zero_()
        self._loaded = None
        self._next[0], self._next[1] = epoch, rows
        self._place = _Place(epoch, rows, 0)

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where reading is, in less than 1 KB.

        Args:
          num_batches: How many batches this rank's loader has given in the epoch that was begun last. Then the state is
            that of all ranks and processes together: any number of them can go on from there, and so can a
            `VideoDataset`. Without it, the state is that of this process alone; `StatefulDataLoader` asks for it. In a
            loader without processes (`num_workers=0`), that is the same.
        """
        _, num_ranks = self._of_ranks()
        if num_batches is None:
            epoch, rows, num_read = self._place
            if get_worker_info() is not None:
                shared = {"num_ranks": num_ranks, "batch_size": self._dataset.batch_size, **_processes()}
                return to_state(Position(epoch, rows), self._dataset.identity) | {"num_read": num_read, **shared}
            if num_read:
                rows = self._dataset.deal(rows, num_ranks).position(num_read)
            return in_epoch(Position(epoch, rows), self._dataset.identity)
        epoch = max(self._next_epoch() - 1, int(self._next[0]))
        start = self._start_of(epoch)
        rows = self._dataset.deal(start, num_ranks).position(num_batches)
        return to_state(Position(epoch, rows), self._dataset.identity)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where another one was. Nothing is read.

        Raises:
          ValueError: If it is not the state of a data set with these videos in this order, or if it is one of a process
            of a loader, and there is another number of these, or of ranks, or the batches have another size.
        """
        if get_worker_info() is None:
            # The end of an epoch stays that, as a loader which goes on after it begins the epoch once more.
            position = position_of(state, self._dataset.identity, self._dataset.drop_remainder, keep_end=True)
            self._set_next(position.epoch, position.rows)
            return
        position = from_state(state, self._dataset.identity)
        if not state.get("num_read"):
            self._place = self._loaded = _Place(position.epoch, position.rows, 0)
            return
        _, num_ranks = self._of_ranks()
        found = {"num_ranks": num_ranks, "batch_size": self._dataset.batch_size, **_processes()}
        for name, value in found.items():
            if state.get(name) != value:
                raise ValueError(
                    f"The loader's state is one with {name}={state.get(name)!r}, here it is {value!r}: to go on with "
                    "another one, use what `state_dict(num_batches)` of the data set gives."
                )
        self._place = self._loaded = _Place(position.epoch, position.rows, state["num_read"])


@functools.cache
def _leave_garbage() -> None:
    """Once in a process of a loader: never free what it has inherited. TensorFlow's functions would abort it."""
    gc.freeze()


def _processes() -> dict[str, int]:
    info = get_worker_info()
    return {"num_processes": 1 if info is None else info.num_workers}
