"""A data set for PyTorch's DataLoader. The only module that imports PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import IterableDataset, get_worker_info

if TYPE_CHECKING:
    from vidpress.model.data_set.video_dataset import VideoBatch, VideoDataset


class TorchVideoDataset(IterableDataset):
    """The batches of a `VideoDataset`, for `DataLoader(..., batch_size=None)`.

    The workers of the loader divide the row groups among themselves. With workers, the order of an epoch depends on the
    data set's seed and the loader's seed, so `torch.manual_seed` works as PyTorch users expect.
    """

    def __init__(self, dataset: VideoDataset):
        self._dataset = dataset

    def __iter__(self) -> Iterator[VideoBatch]:
        info = get_worker_info()
        if info is None:
            return iter(self._dataset)
        # The loader draws a new base seed every epoch; a worker's seed is that plus its index.
        return self._dataset.iterate(
            epoch=info.seed - info.id,
            worker=self._dataset.worker * info.num_workers + info.id,
            num_workers=self._dataset.num_workers * info.num_workers,
        )
