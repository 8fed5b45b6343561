"""Reading in PyTorch: processes of a loader, ranks of a distributed training, and loaders that go on."""

import collections
import copy
import gc
import itertools
import os
import pickle

import numpy as np
import pytest
from data_sets import write_data_set

from vidpress.model.reading.video_dataset import VideoDataset

torch = pytest.importorskip("torch")
DataLoader = torch.utils.data.DataLoader

NUM_VIDEOS = 5000
BATCH = 100
STEPS = NUM_VIDEOS // BATCH

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
    pytest.mark.usefixtures("no_garbage"),
]


@pytest.fixture(scope="module")
def data_set(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    return folder, *write_data_set(folder, model, NUM_VIDEOS, num_shards=1)


@pytest.fixture(scope="module")
def folder(data_set):
    return data_set[0]


@pytest.fixture(scope="module")
def epochs(folder):
    dataset = VideoDataset(folder, shuffle=True)
    return [ids_of(dataset.iterate(epoch, 0, 1)) for epoch in range(5)]


def ids_of(batches):
    return [video_id for batch in batches for video_id in batch.ids]


def torch_dataset(folder, **options):
    return VideoDataset(folder, BATCH, shuffle=True, **options).to_torch()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_loader_gives_the_same_order_whatever_its_workers_and_seed(folder, epochs, num_workers):
    loader = DataLoader(torch_dataset(folder), batch_size=None, num_workers=num_workers)
    assert len(loader) == STEPS
    for epoch in epochs[:3]:
        torch.manual_seed(len(epoch) % 7)
        torch.rand(1)
        assert ids_of(loader) == epoch


def test_persistent_workers_have_another_order_each_epoch(folder, epochs):
    loader = DataLoader(torch_dataset(folder), batch_size=None, num_workers=2, persistent_workers=True)
    assert [ids_of(loader) for _ in range(3)] == epochs[:3]
    loader.dataset.set_epoch(1)
    assert [ids_of(loader) for _ in range(2)] == epochs[1:3]


def test_loaders_that_are_broken_off_come_back_whole(folder, epochs):
    dataset = torch_dataset(folder)
    loader = DataLoader(dataset, batch_size=None, num_workers=3)
    for epoch in epochs[:3]:
        assert next(iter(loader)).ids == epoch[:BATCH]
    assert ids_of(DataLoader(dataset, batch_size=None, num_workers=2)) == epochs[3]


def test_a_loader_starts_processes_anew(folder, epochs):
    """They know nothing of the first process but what they are sent."""
    loader = DataLoader(torch_dataset(folder), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert [ids_of(loader) for _ in range(2)] == epochs[:2]


def test_it_can_be_copied(folder, epochs):
    dataset = torch_dataset(folder)
    for same in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert ids_of(same) == epochs[0]
    assert ids_of(dataset) == epochs[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_are_dense_or_values_and_offsets(data_set, num_workers):
    folder, rows, z_hat = data_set
    place = {video_id: index for index, video_id in enumerate(rows["id"].to_pylist())}
    for batch in DataLoader(VideoDataset(folder, BATCH).to_torch(), batch_size=None, num_workers=num_workers):
        order = [place[video_id] for video_id in batch.ids]
        assert batch.features.dtype == torch.float32
        np.testing.assert_array_equal(batch.features, z_hat[order])
        values, offsets = batch.labels
        assert (values.dtype, offsets.dtype, len(offsets)) == (torch.int32, torch.int64, len(order) + 1)
        found = [values[start:end].tolist() for start, end in itertools.pairwise(offsets)]
        assert found == rows["labels"].take(order).to_pylist()
    dense = next(iter(DataLoader(torch_dataset(folder, num_classes=3862), batch_size=None, num_workers=num_workers)))
    assert dense.labels.shape == (BATCH, 3862)


def _rank(rank, folder, port, num_ranks, num_workers, queue):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=num_ranks)
    torch.manual_seed(100 + rank)
    try:
        dataset = torch_dataset(folder)
        loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
        queue.put((rank, len(loader), [[batch.ids for batch in loader] for _ in range(2)], dataset.state_dict(3)))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(2, 0), (3, 2)])
def test_ranks_with_seeds_of_their_own_share_each_epoch(folder, epochs, tmp_path, num_ranks, num_workers):
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    context = torch.multiprocessing.spawn(
        _rank, (str(folder), tmp_path / "port", num_ranks, num_workers, queue), num_ranks, join=False
    )
    found = sorted((queue.get() for _ in range(num_ranks)), key=lambda of_rank: of_rank[0])
    context.join()
    for epoch in range(2):
        batches = [of_rank[2][epoch] for of_rank in found]
        assert {len(of_rank) for of_rank in batches} == {found[0][1]}
        assert [video_id for step in zip(*batches, strict=True) for ids in step for video_id in ids] == epochs[epoch]
    states = [of_rank[3] for of_rank in found]
    assert all(state == states[0] for state in states)
    assert (states[0]["epoch"], states[0]["rows"]) == (1, 3 * BATCH * num_ranks)


def test_another_number_of_ranks_goes_on(folder, epochs):
    """Eight workers stop after three steps of the second epoch, and six go on, each with two processes."""
    dataset = torch_dataset(folder, worker=0, num_workers=8)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    ids_of(loader)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    del iterator
    state = dataset.state_dict(num_batches=3)
    batches = []
    for worker in range(6):
        resumed = torch_dataset(folder, worker=worker, num_workers=6)
        resumed.load_state_dict(state)
        loader = DataLoader(resumed, batch_size=None, num_workers=2)
        assert len(loader) == -(-(NUM_VIDEOS - 3 * 8 * BATCH) // (6 * BATCH))
        batches.append([batch.ids for batch in loader])
        assert len(list(loader)) == len(VideoDataset(folder, BATCH, worker=worker, num_workers=6))
    rest = [video_id for step in zip(*batches, strict=True) for ids in step for video_id in ids]
    assert rest == epochs[1][3 * 8 * BATCH :]


def test_a_rank_without_videos_is_refused(folder):
    with pytest.raises(ValueError, match="use fewer workers"):
        torch_dataset(folder, worker=0, num_workers=NUM_VIDEOS + 1)


def test_more_processes_than_batches(folder, epochs):
    dataset = VideoDataset(folder, 2500, shuffle=True).to_torch()
    assert ids_of(DataLoader(dataset, batch_size=None, num_workers=4)) == epochs[0]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_stateful_loader_goes_on_after_any_batch(folder, epochs, num_workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        return stateful.StatefulDataLoader(torch_dataset(folder), batch_size=None, num_workers=num_workers)

    every = [video_id for epoch in epochs for video_id in epoch]
    for stop in (0, 1, 7, STEPS - 1, STEPS, STEPS + 5):
        first = loader()
        found = []
        while len(found) < stop:
            for batch in first:
                found.append(batch.ids)
                if len(found) == stop:
                    break
            else:
                continue
            break
        state = pickle.loads(pickle.dumps(first.state_dict()))
        second = loader()
        second.load_state_dict(state)
        rest = [batch.ids for batch in second]
        if stop == STEPS and not rest:  # the epoch had been given, its end had not been seen
            rest = [batch.ids for batch in second]
        seen = [video_id for ids in [*found, *rest] for video_id in ids]
        assert seen == every[: (1 + stop // STEPS) * NUM_VIDEOS], stop
        assert ids_of(second) == epochs[1 + stop // STEPS], stop


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_loader_goes_on_after_the_end_of_an_epoch(folder, epochs, num_workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        return stateful.StatefulDataLoader(torch_dataset(folder), batch_size=None, num_workers=num_workers)

    first = loader()
    assert ids_of(first) == epochs[0]
    second = loader()
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert [ids_of(second) for _ in range(2)] == epochs[1:3]


def test_an_epoch_that_is_chosen_takes_the_place_of_a_state(folder, epochs):
    dataset = torch_dataset(folder)
    next(iter(dataset))
    state = dataset.state_dict()
    dataset.load_state_dict(state)
    dataset.set_epoch(2)
    assert ids_of(dataset) == epochs[2]


class _StateOfWorker(torch.utils.data.IterableDataset):
    """Gives the state of the data set after each of its batches, in the process that gives them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for _ in self.dataset:
            yield self.dataset.state_dict()


class _InWorker(torch.utils.data.IterableDataset):
    """Loads a state in a process of a loader, and gives what comes of it."""

    def __init__(self, dataset, state):
        self.dataset, self.state = dataset, state

    def __iter__(self):
        try:
            self.dataset.load_state_dict(self.state)
            yield self.dataset.state_dict()
        except ValueError as error:
            yield str(error)


def test_the_state_of_one_of_several_processes_is_for_the_same_loader(folder):
    state = next(iter(DataLoader(_StateOfWorker(torch_dataset(folder)), batch_size=None, num_workers=2)))
    assert (state["num_processes"], state["num_read"], len(pickle.dumps(state)) < 1000) == (2, 1, True)
    for other in (torch_dataset(folder), VideoDataset(folder, BATCH, shuffle=True)):
        with pytest.raises(ValueError, match="is that of one of 2 processes of a loader: use what"):
            other.load_state_dict(state)

    def loaded(dataset, num_workers):
        return next(iter(DataLoader(_InWorker(dataset, state), batch_size=None, num_workers=num_workers)))

    assert loaded(torch_dataset(folder), 2) == state
    assert "state is one with num_processes=2, here it is 1" in loaded(torch_dataset(folder), 1)
    other = VideoDataset(folder, 50, shuffle=True).to_torch()
    assert f"state is one with batch_size={BATCH}, here it is 50" in loaded(other, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_was_read_without_processes_goes_on_with_any(folder, epochs, num_workers):
    dataset = torch_dataset(folder)
    first = [batch.ids for _, batch in zip(range(3), dataset, strict=False)]
    state = dataset.state_dict()
    assert (state["epoch"], state["rows"]) == (0, 3 * BATCH)
    seen = [video_id for ids in first for video_id in ids]
    # As earlier versions wrote it.
    earlier = {**state, "rows": 0, "num_read": 3, "num_ranks": 1, "batch_size": BATCH, "num_processes": 1}
    for each in (state, earlier):
        resumed = VideoDataset(folder, 70, shuffle=True).to_torch()
        resumed.load_state_dict(each)
        assert resumed.state_dict() == state
        loader = DataLoader(resumed, batch_size=None, num_workers=num_workers)
        assert len(loader) == -(-(NUM_VIDEOS - 3 * BATCH) // 70)
        assert seen + ids_of(loader) == epochs[0]
        assert [ids_of(loader), ids_of(loader)] == epochs[1:3]
        alone = VideoDataset(folder, 70, shuffle=True)
        alone.load_state_dict(each)
        assert seen + ids_of(alone) == epochs[0]


def test_the_state_of_few_videos_that_are_left_is_given(folder):
    dataset = torch_dataset(folder, worker=0, num_workers=4)
    state = {**dataset.state_dict(), "rows": NUM_VIDEOS - 2}
    dataset.load_state_dict(state)
    assert dataset.state_dict() == state
    with pytest.raises(ValueError, match="2 videos left"):
        len(dataset)


def test_a_damaged_state_is_refused(folder):
    state = torch_dataset(folder).state_dict()
    with pytest.raises(ValueError, match="has num_processes=None: it is damaged"):
        torch_dataset(folder).load_state_dict({**state, "num_read": 1})
    for name, value in (("num_read", -1), ("num_processes", 0), ("batch_size", "x")):
        damaged = {**state, "num_read": 1, "num_ranks": 1, "batch_size": BATCH, "num_processes": 1, name: value}
        with pytest.raises(ValueError, match=f"has {name}={value!r}: it is damaged"):
            torch_dataset(folder).load_state_dict(damaged)


def _collecting(batch):
    gc.collect()
    return batch


class Dropped:
    """Is freed by the garbage collector alone, and notes it if another process does that."""

    def __init__(self, note):
        self.itself, self.note, self.process = self, note, os.getpid()

    def __del__(self):
        if os.getpid() != self.process:
            self.note.touch()


def test_processes_leave_alone_what_the_first_one_has_dropped(folder, epochs, tmp_path):
    """TensorFlow's functions abort a process that was forked, if it frees them."""
    gc.disable()
    try:
        Dropped(tmp_path / "freed")
        loader = DataLoader(torch_dataset(folder), batch_size=None, num_workers=2, collate_fn=_collecting)
        assert ids_of(loader) == epochs[0]
    finally:
        gc.enable()
    assert not (tmp_path / "freed").exists()


def test_batches_of_many_labels_take_few_open_files(folder):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        batches = list(DataLoader(VideoDataset(folder, 1000).to_torch(), batch_size=None, num_workers=2))
        assert collections.Counter(ids_of(batches)).total() == NUM_VIDEOS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
