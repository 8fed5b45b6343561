"""Batches that are made ahead, by tf.data and in threads."""

import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from vidpress.model.training import prefetching  # noqa: E402

WAYS = [prefetching._dataset, prefetching._InThreads]


def make(step):
    """The last one is short."""
    rows = 2 if step == 30 else 5
    return np.full((rows, 3), step, np.float32), np.arange(rows, dtype=np.int32) + step


def test_on_tensorflow_it_is_a_data_set():
    batches = prefetching.batches(make, range(3, 9))
    assert isinstance(batches, tf.data.Dataset)
    assert [spec.shape.as_list() for spec in batches.element_spec] == [[5, 3], [5]]


@pytest.mark.parametrize("way", WAYS)
def test_all_come_in_their_order_and_come_again(way):
    batches = way(make, range(10, 31))
    for _ in range(2):
        found = [tuple(map(np.asarray, batch)) for batch in batches]
        assert len(found) == 21
        for step, batch in zip(range(10, 31), found, strict=True):
            for array, expected in zip(batch, make(step), strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("way", WAYS)
def test_steps_may_be_apart(way):
    steps = range(0, 31, 10)
    assert [int(np.asarray(x)[0, 0]) for x, _ in way(make, steps)] == list(steps)


def test_of_no_steps_there_are_no_batches():
    assert list(prefetching.batches(make, range(4, 4))) == []


@pytest.mark.parametrize("way", WAYS)
def test_what_goes_wrong_is_raised(way):
    def fail(step):
        if step == 5:
            raise ValueError("no such image")
        return make(step)

    found = []
    with pytest.raises(Exception, match="no such image"):
        found.extend(int(np.asarray(x)[0, 0]) for x, _ in way(fail, range(20)))
    assert found == list(range(5))[: len(found)]


def test_threads_make_a_few_ahead_and_end_with_their_reader():
    made = []

    def note(step):
        made.append(step)
        return make(step)

    before = threading.active_count()
    reader = iter(prefetching._InThreads(note, range(1000)))
    for _ in range(10):
        next(reader)
    reader.close()
    assert 10 <= len(made) <= 10 + prefetching._AHEAD + 1
    assert threading.active_count() == before
