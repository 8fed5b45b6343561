"""Reading that stops and goes on: in this process, in others, with another number of workers."""

import json
import pickle

import numpy as np
import pytest
from data_sets import write_data_set

from vidpress.model.reading.video_dataset import VideoDataset

NUM_VIDEOS = 5000


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resuming")
    write_data_set(folder, model, NUM_VIDEOS, num_shards=4)
    return folder


def ids_of(batches):
    return [video_id for batch in batches for video_id in batch.ids]


def step_of_all(iterators):
    """The videos of a step of all workers, in the epoch's order."""
    return [video_id for iterator in iterators for video_id in next(iterator).ids]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_order_of_an_epoch_depends_on_neither_workers_nor_batch_size(folder, shuffle):
    expected = ids_of(VideoDataset(folder, 256, shuffle=shuffle))
    assert len(set(expected)) == NUM_VIDEOS
    for batch_size, num_workers in ((256, 8), (100, 3), (7, 1), (4999, 2)):
        workers = [
            VideoDataset(folder, batch_size, shuffle=shuffle, worker=worker, num_workers=num_workers)
            for worker in range(num_workers)
        ]
        assert len({len(worker) for worker in workers}) == 1
        iterators = list(map(iter, workers))
        found = [video_id for _ in range(len(workers[0])) for video_id in step_of_all(iterators)]
        assert found == expected
        assert all(next(iterator, None) is None for iterator in iterators)


def test_random_stops_lose_and_repeat_nothing(folder):
    """At each stop, it goes on with another number of workers and another batch size."""
    rng = np.random.default_rng(0)
    epochs = [ids_of(VideoDataset(folder, shuffle=True, seed=3).iterate(epoch, 0, 1)) for epoch in range(40)]
    state = VideoDataset(folder, shuffle=True, seed=3).state_dict()
    found = []
    for _ in range(1000):
        num_workers, batch_size = int(rng.integers(1, 9)), int(rng.integers(1, 40))
        workers = [
            VideoDataset(folder, batch_size, shuffle=True, seed=3, worker=worker, num_workers=num_workers)
            for worker in range(num_workers)
        ]
        if NUM_VIDEOS - state["rows"] < num_workers:
            workers = [VideoDataset(folder, batch_size, shuffle=True, seed=3)]
        for worker in workers:
            worker.load_state_dict(json.loads(json.dumps(state)))
        num_steps = min(int(rng.integers(0, 4)), len(workers[0]))
        iterators = list(map(iter, workers))
        for _ in range(num_steps):
            found += step_of_all(iterators)
        states = [worker.state_dict() for worker in workers]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert state["epoch"] > 2
    expected = [video_id for epoch in epochs for video_id in epoch]
    assert found == expected[: len(found)]
    assert len(found) == state["epoch"] * NUM_VIDEOS + state["rows"]


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_after_the_last_batch_the_next_epoch_begins(folder, drop_remainder):
    dataset = VideoDataset(folder, 512, shuffle=True, drop_remainder=drop_remainder)
    iterator = iter(dataset)
    for _ in range(len(dataset)):
        next(iterator)
    state = dataset.state_dict()
    assert (state["epoch"], state["rows"]) == (1, 0)
    assert next(iterator, None) is None
    assert dataset.state_dict() == state
    resumed = VideoDataset(folder, 512, shuffle=True, drop_remainder=drop_remainder)
    resumed.load_state_dict(state)
    assert ids_of(resumed) == ids_of(dataset)
    assert ids_of(resumed) == ids_of(dataset) != ids_of(dataset.iterate(1, 0, 1))


def test_going_on_reads_nothing_before_and_decodes_nothing_again(folder, monkeypatch):
    dataset = VideoDataset(folder, 100)
    iterator = iter(dataset)
    for _ in range(48):
        next(iterator)
    state = dataset.state_dict()
    assert len(json.dumps(state)) < 1000
    resumed = VideoDataset(folder, 100)
    opened = []
    open_shard = type(resumed._videos)._open_shard
    monkeypatch.setattr(
        type(resumed._videos), "_open_shard", lambda self, name: opened.append(name) or open_shard(self, name)
    )
    resumed.load_state_dict(state)
    assert opened == []
    assert len(resumed) == 2
    assert len(list(resumed)) == 2
    assert len(opened) == 1


def test_epochs_can_be_chosen(folder):
    dataset = VideoDataset(folder, shuffle=True)
    epochs = [ids_of(dataset) for _ in range(3)]
    dataset.set_epoch(1)
    assert ids_of(dataset) == epochs[1]
    assert ids_of(dataset) == epochs[2]
    assert ids_of(pickle.loads(pickle.dumps(dataset))) == ids_of(dataset.iterate(3, 0, 1))


def test_states_of_something_else_are_refused(folder):
    state = VideoDataset(folder, shuffle=True, seed=1).state_dict()
    with pytest.raises(ValueError, match="one of a data set with seed=1, this one has seed=2"):
        VideoDataset(folder, shuffle=True, seed=2).load_state_dict(state)
    dataset = VideoDataset(folder, shuffle=True, seed=1)
    for change, message in (
        ({"version": 2}, "has version 2; this vidpress reads 1"),
        ({"num_videos": 7}, "with num_videos=7"),
        ({"rows": -1}, "rows=-1: it is damaged"),
        ({"rows": NUM_VIDEOS + 1}, "rows=5001: it is damaged"),
        ({"epoch": "x"}, "epoch='x': it is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.load_state_dict({**state, **change})


def test_the_rest_of_an_epoch_that_is_dropped_is_no_error(folder):
    dataset = VideoDataset(folder, 100, drop_remainder=True, shuffle=True)
    dataset.load_state_dict({**dataset.state_dict(), "rows": NUM_VIDEOS - 70})
    assert (len(dataset), list(dataset)) == (0, [])
    assert len(list(dataset)) == NUM_VIDEOS // 100
    keeping = VideoDataset(folder, 100, worker=0, num_workers=80, generation=1, shuffle=True)
    keeping.load_state_dict({**keeping.state_dict(), "rows": NUM_VIDEOS - 70})
    with pytest.raises(ValueError, match=r"70 videos left, .* 80 workers: use fewer workers, or begin the next epoch"):
        len(keeping)


def test_options_out_of_range_are_refused(folder):
    for options, message in (
        ({"seed": -1, "shuffle": True}, "seed=-1 must be at least 0"),
        ({"batch_size": 0}, "batch_size=0 must be"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoDataset(folder, **options)
    with pytest.raises(TypeError, match="integer"):
        VideoDataset(folder, 2.5)
    with pytest.raises(ValueError, match="which is no whole batch of 1000000: use a smaller batch"):
        VideoDataset(folder, 10**6, drop_remainder=True)


def test_more_workers_than_videos_are_refused(model, tmp_path):
    write_data_set(tmp_path, model, 5, num_shards=1)
    assert sorted(len(ids_of(VideoDataset(tmp_path, worker=worker, num_workers=5))) for worker in range(5)) == [1] * 5
    with pytest.raises(ValueError, match="5 videos, which is no video for some of the 6 workers: use fewer workers"):
        VideoDataset(tmp_path, worker=0, num_workers=6)
    with pytest.raises(
        ValueError, match="no whole batch of 4 for some of the 2 workers: use fewer workers or a smaller"
    ):
        VideoDataset(tmp_path, 4, worker=0, num_workers=2, drop_remainder=True)
