"""Encoding in lanes: as many rows side by side as there are lanes.

If fewer rows are left, the other lanes repeat the last row.

The processor cannot predict which interval a value has, or whether bytes are shifted out, and a wrong prediction takes
longer than a symbol of eight rows. So there are branches only for rare cases.

Lanes hold `size - 1`, which has at most 32 bits, as the factors of `multiply` must.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.coding.arithmetic import (
    LOW_16_BITS,
    LOW_32_BITS,
    MIN_SIZE,
    U,
    bits_after_first,
    escape_distance,
    finish_row,
    with_room,
)
from vidpress.model.coding.lanes import (
    NUM_LANES,
    compress,
    count,
    gather,
    lane_numbers,
    lanes,
    load_column,
    multiply,
    select,
    store,
)
from vidpress.model.compiled import jit
from vidpress.model.tables.coder_arrays import BIT_INTERVALS, WHOLE_INTERVAL
from vidpress.model.tables.limits import MAX_ESCAPE_BITS

_LANE_SHIFT = np.uint64(24)
_BELOW_LANE = np.uint32((1 << 24) - 1)


@jit
def encode_rows(z_hat, bank, tables, precision):
    """Encode rows, each with its bank.

    A group of rows is first turned into lists of intervals, which include intervals for the bits of escapes.

    Returns data, offsets, and the place of a value that cannot be coded, or -1, -1.
    """
    num_rows, num_symbols = z_hat.shape
    data = np.empty(num_rows * (8 + num_symbols // 8), np.uint8)
    offsets = np.zeros(num_rows + 1, np.int64)
    intervals = np.empty((NUM_LANES, num_symbols), np.uint32)
    num_escapes = np.empty(NUM_LANES, np.int64)
    leaving = np.empty(NUM_LANES * (num_symbols + 1), np.uint32)
    words = np.empty((NUM_LANES, num_symbols), np.uint32)
    num_words = np.empty(NUM_LANES, np.uint64)
    bases = np.empty(NUM_LANES, np.uint64)
    lasts = np.empty(NUM_LANES, np.uint64)
    for first_row in range(0, num_rows, NUM_LANES):
        group = z_hat[first_row : first_row + NUM_LANES]
        group_bank = bank[first_row : first_row + NUM_LANES]
        listed = intervals
        if _list_intervals(group, group_bank, tables, intervals, num_escapes):
            listed, bad_row, bad_symbol = _list_escapes(group, group_bank, tables, intervals, num_escapes)
            if bad_row >= 0:
                return data[:0], offsets, first_row + bad_row, bad_symbol
            if listed.shape[1] > words.shape[1]:
                leaving = np.empty(NUM_LANES * (listed.shape[1] + 1), np.uint32)
                words = np.empty(listed.shape, np.uint32)
        num_leaving = _narrow(listed, tables.cdf, U(precision), leaving, bases, lasts)
        _deal_out(leaving[:num_leaving], words, num_words)
        for lane in range(len(group)):
            begin = offsets[first_row + lane]
            data = with_room(data, begin, 2 * np.int64(num_words[lane]) + 2)
            size = lasts[lane] + U(1)
            offsets[first_row + lane + 1] = finish_row(data, begin, words[lane], num_words[lane], bases[lane], size)
    return data[: offsets[-1]].copy(), offsets, -1, -1


@jit
def _list_intervals(z_hat, bank, tables, intervals, num_escapes):
    """List where the intervals of the rows' values are in `cdf`, and count the values of each row that have none.

    The places listed for the latter have no meaning. Returns how many such values there are.
    """
    num_dims = len(tables.cdf_offset)
    for lane in range(NUM_LANES):
        row = min(lane, len(z_hat) - 1)
        row_start = tables.start[bank[row]]
        row_escapes = np.int64(0)
        for first_symbol in range(0, z_hat.shape[1], num_dims):
            values = z_hat[row, first_symbol : first_symbol + num_dims]
            listed = intervals[lane, first_symbol : first_symbol + num_dims]
            for dim in range(num_dims):
                index = np.uint32(values[dim] - tables.cdf_offset[dim])
                row_escapes += index >= np.uint32(tables.escape[dim])
                listed[dim] = np.uint32(row_start[dim]) + index
        num_escapes[lane] = row_escapes
    return num_escapes.sum()


@jit
def _list_escapes(z_hat, bank, tables, intervals, num_escapes):
    """List the intervals of rows again, with escapes and the bits that follow them.

    These bits are the Elias gamma code of the distance >= 1, which is a zero for each bit after its first, then its
    bits; and the sign. Shorter lists are filled up with the whole interval, which changes nothing.

    Returns the lists, and the place of a value that cannot be coded, or -1, -1.
    """
    num_rows, num_symbols = z_hat.shape
    num_dims = len(tables.cdf_offset)
    escaped = np.empty((num_rows, num_escapes.max()), np.int64)
    longest = num_symbols
    for row in range(num_rows):
        found = 0
        length = num_symbols
        for first_symbol in range(0, num_symbols if num_escapes[row] else 0, num_dims):
            for dim in range(num_dims):
                distance = escape_distance(z_hat[row, first_symbol + dim], tables.cdf_offset[dim], tables.escape[dim])
                if distance:
                    if distance >> MAX_ESCAPE_BITS:
                        return intervals, row, first_symbol + dim
                    escaped[row, found] = first_symbol + dim
                    found += 1
                    length += 2 * bits_after_first(distance) + 2
        longest = max(longest, length)
    listed = np.empty((NUM_LANES, longest), np.uint32)
    listed[num_rows:] = len(tables.cdf) - WHOLE_INTERVAL
    bits = len(tables.cdf) - BIT_INTERVALS
    for row in range(num_rows):
        place = done = 0
        for symbol in escaped[row, : num_escapes[row]]:
            place = _append(listed[row], place, intervals[row, done:symbol])
            done = symbol + 1
            dim = symbol % num_dims
            listed[row, place] = tables.start[bank[row], dim] + tables.escape[dim]
            place += 1
            distance = escape_distance(z_hat[row, symbol], tables.cdf_offset[dim], tables.escape[dim])
            for bit in range(2 * bits_after_first(distance), -1, -1):
                listed[row, place] = bits + ((distance >> bit) & 1)
                place += 1
            listed[row, place] = bits + np.int64(z_hat[row, symbol] < tables.cdf_offset[dim])
            place += 1
        place = _append(listed[row], place, intervals[row, done:num_symbols])
        listed[row, place:] = len(tables.cdf) - WHOLE_INTERVAL
    return listed, -1, -1


@jit
def _append(listed, place, intervals):
    listed[place : place + len(intervals)] = intervals
    return place + len(intervals)


@jit
def _narrow(intervals, cdf, precision, leaving, bases, lasts):
    """Narrow the lanes' `[base, base + size)`, at first [0, 2^32), by their lists of intervals.

    The words of 16 bits that are shifted out of `base` are written to `leaving`. Above each are the carry into the
    lane's word before, because that one was shifted out already, and the lane's number. Returns how many words there
    are, and writes base and size - 1.
    """
    base = lanes(0)
    last = lanes(LOW_32_BITS)
    number = lane_numbers() << _LANE_SHIFT
    one = U(1) << precision
    two = U(2) << precision
    num_leaving = U(0)
    for place in range(U(intervals.shape[1])):
        ends = gather(cdf, load_column(intervals, place))
        lower_end = ends & LOW_32_BITS
        upper_end = ends >> 32
        # size * end is (size - 1) * end + end. What is added makes `upper` 1 and `lower`
        # 2 more than the ends of the interval, so that their difference is size - 1.
        upper = (multiply(last, upper_end) + (upper_end + one)) >> precision
        lower = (multiply(last, lower_end) + (lower_end + two)) >> precision
        last = upper - lower
        base = base + (lower - 2)
        leaves = last < MIN_SIZE
        store(leaving, num_leaving, compress((base >> 16) | number, leaves))
        num_leaving += count(leaves)
        base = select(leaves, (base << 16) & LOW_32_BITS, base)
        last = select(leaves, (last << 16) | LOW_16_BITS, last)
    store(bases, 0, base)
    store(lasts, 0, last)
    return num_leaving


@jit
def _deal_out(leaving, words, num_words):
    """Distribute words, with their carries, to their lanes."""
    num_words[:] = 0
    for word in leaving:
        lane = U(word) >> _LANE_SHIFT
        words[lane, num_words[lane]] = word & _BELOW_LANE
        num_words[lane] += U(1)
