"""The order of an epoch, and how it is dealt to readers."""

import itertools

import numpy as np
import pytest

from vidpress.model.reading import epoch_order
from vidpress.model.reading.epoch_order import Deal, EpochOrder, Reader

RNG = np.random.default_rng(0)
SIZES = RNG.integers(1, 900, 300).tolist()
TOTAL = sum(SIZES)


def rows_of(order, start, stop):
    """The rows as (row group, row in it)."""
    found = []
    for piece in order.pieces(start, stop):
        lane = order.lane(piece.lane)
        places = [(group, row) for group in lane.row_groups for row in range(SIZES[group])]
        found += [places[row] for row in lane.rows[piece.start : piece.stop]]
    return found


@pytest.mark.parametrize("key", [None, (0, 0), (3, 7)])
def test_every_row_is_read_once_and_parts_are_those_of_the_whole(key):
    order = EpochOrder(SIZES, key)
    assert order.num_rows == TOTAL
    rows = rows_of(order, 0, TOTAL)
    in_order = [(group, row) for group, size in enumerate(SIZES) for row in range(size)]
    assert sorted(rows) == in_order
    assert (rows == in_order) == (key is None)
    for start, stop in np.sort(RNG.integers(0, TOTAL, (40, 2))):
        assert rows_of(EpochOrder(SIZES, key), start, stop) == rows[start:stop]
    assert list(order.pieces(5, 5)) == []


def test_epochs_and_seeds_have_other_orders():
    orders = [rows_of(EpochOrder(SIZES, key), 0, 2000) for key in ((0, 0), (0, 1), (1, 0))]
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_rows_are_mixed_and_a_reader_of_every_48th_batch_needs_one_lane_at_a_time():
    order = EpochOrder([4096] * 200, (0, 0))
    first = [piece.lane for piece in order.pieces(0, 48 * 256)]
    assert first == list(range(48))
    eighth = {piece.lane for start in range(0, 96 * 4096, 8 * 256) for piece in order.pieces(start, start + 256)}
    assert len(eighth) == 48 / 8
    lane = order.lane(0)
    assert len(lane.row_groups) == 2
    assert np.mean(lane.rows[:256] < 4096) == pytest.approx(0.5, abs=0.15)


def test_a_single_row_group_is_shared_by_many_readers():
    order = EpochOrder([1000], (0, 0))
    deal = Deal(1000, 0, 8, 64, drop_remainder=False)
    starts = [deal.batch(step, rank) for step in range(deal.num_steps) for rank in range(64)]
    rows = [
        row
        for batch in starts
        for piece in order.pieces(*batch)
        for row in order.lane(0).rows[piece.start : piece.stop]
    ]
    assert sorted(rows) == list(range(1000))


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_readers_have_as_many_batches_each_and_share_all_rows(drop_remainder):
    for num_rows, start, size, ranks in itertools.product((1, 7, 50, 64, 65, 97), (0, 5), (1, 4, 16), (1, 2, 3, 8)):
        if start > num_rows:
            continue
        try:
            deal = Deal(num_rows, start, size, ranks, drop_remainder)
        except ValueError as error:
            assert num_rows - start < (size * ranks if drop_remainder else ranks)
            assert ("use fewer workers" if ranks > 1 else "use a smaller batch") in str(error)
            assert ("or begin the next epoch without them" in str(error)) == bool(start)
            assert not (start and drop_remainder)
            continue
        batches = [deal.batch(step, rank) for step in range(deal.num_steps) for rank in range(ranks)]
        lengths = [stop - first for first, stop in batches]
        assert [first for first, _ in batches] == [start + sum(lengths[:index]) for index in range(len(lengths))]
        rest = num_rows - start - sum(lengths)
        assert rest == ((num_rows - start) % (size * ranks) if drop_remainder else 0)
        assert all(0 < length <= size + (ranks > 1) for length in lengths)
        whole = lengths[: max(0, deal.num_steps - 1) * ranks]
        assert set(whole) <= {size}
        positions = [deal.position(step) for step in range(deal.num_steps + 1)]
        assert positions[-1] == num_rows
        assert positions[:-1] == [start + step * size * ranks for step in range(deal.num_steps)]


def test_workers_of_a_reader_take_its_batches_in_turn():
    deal = Deal(1000, 0, 10, 2, drop_remainder=False)
    steps = [list(deal.steps(Reader(0, 2, worker, 3))) for worker in range(3)]
    assert sorted(step for of_worker in steps for step in of_worker) == list(range(50))
    assert steps[1][:3] == [1, 4, 7]
    assert list(deal.steps(Reader(0, 2, 1, 3), num_read=2)) == steps[1][2:]


def test_the_most_that_is_kept_are_the_lanes_of_a_turn():
    read = []

    def read_row_groups(numbers):
        read.append(numbers)
        import pyarrow as pa

        return pa.RecordBatch.from_pydict({"row": [(group, row) for group in numbers for row in range(SIZES[group])]})

    order = EpochOrder(SIZES, (0, 0))
    lanes = epoch_order.LaneRows(order, read_row_groups)
    found = [
        row for start in range(0, TOTAL, 100) for row in lanes.rows(start, min(start + 100, TOTAL))["row"].to_pylist()
    ]
    assert list(map(tuple, found)) == rows_of(order, 0, TOTAL)
    assert len(read) == len(set(read))
