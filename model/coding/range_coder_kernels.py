"""The range coder's loops, compiled by Numba. `range_coder` says what they compute and checks what they are given.

They code as many rows side by side as there are lanes; where fewer are left, the last one stands in all other lanes.
Which interval holds a value, and whether bytes leave, is anyone's guess, the processor's too, and a wrong guess takes
longer than a symbol of eight rows: there are branches only for what is rare.

Lanes hold `size - 1`, which has 32 bits as the factors of `multiply` have.

The loops release the GIL, so that batches can run side by side in threads.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.coding.lanes import (
    NUM_LANES,
    compress,
    count,
    gather,
    lane_numbers,
    lanes,
    load,
    load_column,
    multiply,
    reverse_bytes,
    select,
    store,
    to_bits,
)
from vidpress.model.compiled import jit
from vidpress.model.tables.coder_arrays import BIT_INTERVALS, WHOLE_INTERVAL
from vidpress.model.tables.limits import MAX_ESCAPE_BITS

# The arithmetic is in uint64 throughout: Numba turns a mixture of signed and unsigned integers into floats, and
# checks signed indices for being negative.
_U = np.uint64
_MIN_SIZE = np.uint64(1 << 16)
_FULL_SIZE = np.uint64(1 << 32)
_LOW_16_BITS = np.uint64((1 << 16) - 1)
_LOW_32_BITS = np.uint64((1 << 32) - 1)
_LANE_SHIFT = np.uint64(24)
_BELOW_LANE = np.uint32((1 << 24) - 1)
_BYTES_READ = 8  # at once; zeros follow the end of a code


@jit
def encode_rows(z_hat, bank, cdf, start, first_uppers, escape, cdf_offset, precision):
    """Encode rows, each with its bank.

    A group of rows is first looked up as lists of intervals, to which the bits of escapes are no exception.

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
        if _list_intervals(group, group_bank, start, escape, cdf_offset, intervals, num_escapes):
            listed, bad_row, bad_symbol = _list_escapes(
                group, group_bank, cdf, start, escape, cdf_offset, intervals, num_escapes
            )
            if bad_row >= 0:
                return data[:0], offsets, first_row + bad_row, bad_symbol
            if listed.shape[1] > words.shape[1]:
                leaving = np.empty(NUM_LANES * (listed.shape[1] + 1), np.uint32)
                words = np.empty(listed.shape, np.uint32)
        num_leaving = _narrow(listed, cdf, _U(precision), leaving, bases, lasts)
        _deal_out(leaving[:num_leaving], words, num_words)
        for lane in range(len(group)):
            begin = offsets[first_row + lane]
            most_bytes = 2 * np.int64(num_words[lane]) + 2
            if begin + most_bytes > len(data):
                larger = np.empty(2 * len(data) + most_bytes, np.uint8)
                larger[:begin] = data[:begin]
                data = larger
            size = lasts[lane] + _U(1)
            offsets[first_row + lane + 1] = _finish_row(data, begin, words[lane], num_words[lane], bases[lane], size)
    return data[: offsets[-1]].copy(), offsets, -1, -1


@jit
def _list_intervals(z_hat, bank, start, escape, cdf_offset, intervals, num_escapes):
    """List where the intervals of the rows' values stand in `cdf`, and count the values that have none, and no place.

    Returns how many there are.
    """
    num_dims = len(cdf_offset)
    for lane in range(NUM_LANES):
        row = min(lane, len(z_hat) - 1)
        row_start = start[bank[row]]
        row_escapes = np.int64(0)
        for first_symbol in range(0, z_hat.shape[1], num_dims):
            values = z_hat[row, first_symbol : first_symbol + num_dims]
            listed = intervals[lane, first_symbol : first_symbol + num_dims]
            for dim in range(num_dims):
                index = np.uint32(values[dim] - cdf_offset[dim])
                row_escapes += index >= np.uint32(escape[dim])
                listed[dim] = np.uint32(row_start[dim]) + index
        num_escapes[lane] = row_escapes
    return num_escapes.sum()


@jit
def _list_escapes(z_hat, bank, cdf, start, escape, cdf_offset, intervals, num_escapes):
    """List the intervals of rows anew, with escapes and the bits that follow them.

    Those are the Elias gamma code of the distance >= 1, which is a zero for each bit after its first, then its bits;
    and the sign. Shorter lists end with the whole interval, which changes nothing.

    Returns the lists, and the place of a value that cannot be coded, or -1, -1.
    """
    num_rows, num_symbols = z_hat.shape
    num_dims = len(cdf_offset)
    escaped = np.empty((num_rows, num_escapes.max()), np.int64)
    longest = num_symbols
    for row in range(num_rows):
        found = 0
        length = num_symbols
        for first_symbol in range(0, num_symbols if num_escapes[row] else 0, num_dims):
            for dim in range(num_dims):
                distance = _distance(z_hat[row, first_symbol + dim], cdf_offset[dim], escape[dim])
                if distance:
                    if distance >> MAX_ESCAPE_BITS:
                        return intervals, row, first_symbol + dim
                    escaped[row, found] = first_symbol + dim
                    found += 1
                    length += 2 * _bits_after_first(distance) + 2
        longest = max(longest, length)
    listed = np.empty((NUM_LANES, longest), np.uint32)
    listed[num_rows:] = len(cdf) - WHOLE_INTERVAL
    bits = len(cdf) - BIT_INTERVALS
    for row in range(num_rows):
        place = done = 0
        for symbol in escaped[row, : num_escapes[row]]:
            place = _append(listed[row], place, intervals[row, done:symbol])
            done = symbol + 1
            dim = symbol % num_dims
            listed[row, place] = start[bank[row], dim] + escape[dim]
            place += 1
            distance = _distance(z_hat[row, symbol], cdf_offset[dim], escape[dim])
            for bit in range(2 * _bits_after_first(distance), -1, -1):
                listed[row, place] = bits + ((distance >> bit) & 1)
                place += 1
            listed[row, place] = bits + np.int64(z_hat[row, symbol] < cdf_offset[dim])
            place += 1
        place = _append(listed[row], place, intervals[row, done:num_symbols])
        listed[row, place:] = len(cdf) - WHOLE_INTERVAL
    return listed, -1, -1


@jit
def _append(listed, place, intervals):
    listed[place : place + len(intervals)] = intervals
    return place + len(intervals)


@jit
def _distance(value, offset, escape):
    """Return how far a value is from its table of `escape` values from `offset` on; 0 if it is in there."""
    index = np.int64(value) - np.int64(offset)
    return -index if index < 0 else max(index - np.int64(escape) + 1, 0)


@jit
def _bits_after_first(number):
    """Return how many bits follow the highest bit that is set."""
    bits = 0
    while number >> (bits + 1):
        bits += 1
    return bits


@jit
def _narrow(intervals, cdf, precision, leaving, bases, lasts):
    """Narrow the lanes' `[base, base + size)`, at first [0, 2^32), by their lists of intervals.

    What leaves is written to `leaving`: words of 16 bits, above each the carry into the lane's word before, as that
    has left already, and the lane's number. Returns how many, and writes base and size - 1.
    """
    base = lanes(0)
    last = lanes(_LOW_32_BITS)
    number = lane_numbers() << _LANE_SHIFT
    one = _U(1) << precision
    two = _U(2) << precision
    num_leaving = _U(0)
    for place in range(_U(intervals.shape[1])):
        ends = gather(cdf, load_column(intervals, place))
        lower_end = ends & _LOW_32_BITS
        upper_end = ends >> 32
        # size * end is (size - 1) * end + end. What is added makes these 1 and 2
        # more than the ends of the interval, so that their difference is size - 1.
        upper = (multiply(last, upper_end) + (upper_end + one)) >> precision
        lower = (multiply(last, lower_end) + (lower_end + two)) >> precision
        last = upper - lower
        base = base + (lower - 2)
        leaves = last < _MIN_SIZE
        store(leaving, num_leaving, compress((base >> 16) | number, leaves))
        num_leaving += count(leaves)
        base = select(leaves, (base << 16) & _LOW_32_BITS, base)
        last = select(leaves, (last << 16) | _LOW_16_BITS, last)
    store(bases, 0, base)
    store(lasts, 0, last)
    return num_leaving


@jit
def _deal_out(leaving, words, num_words):
    """Deal out words, with their carries, to their lanes."""
    num_words[:] = 0
    for word in leaving:
        lane = _U(word) >> _LANE_SHIFT
        words[lane, num_words[lane]] = word & _BELOW_LANE
        num_words[lane] += _U(1)


@jit
def _finish_row(data, begin, words, num_words, base, size):
    """Write the words, and the fewest bytes that stand for a number in [base, base + size); return the row's end."""
    carry = base >> _U(32)
    base &= _LOW_32_BITS
    is_over = base + size > _FULL_SIZE
    # If the number 2^32 is in the interval, it is the one: a carry, and no bytes after the last one that is not zero.
    carry += _U(is_over)
    end = _U(begin) + _U(2) * num_words
    place = end
    for word in words[:num_words][::-1]:
        carry += _U(word)
        place -= _U(2)
        data[place] = (carry >> _U(8)) & _U(0xFF)
        data[place + _U(1)] = carry & _U(0xFF)
        carry >>= _U(16)
    if is_over:
        while data[end - _U(1)] == 0:
            end -= _U(1)
    elif base:
        last = base + size - _U(1)
        rounded_up = ((base - _U(1)) >> _U(24)) + _U(1)
        if rounded_up <= last >> _U(24):
            data[end] = rounded_up
            return end + _U(1)
        rounded_up = ((base - _U(1)) >> _U(16)) + _U(1)
        data[end] = rounded_up >> _U(8)
        end += _U(1)
        if rounded_up & _U(0xFF):
            data[end] = rounded_up & _U(0xFF)
            end += _U(1)
    return end


@jit
def decode_rows(data, offsets, bank, cdf, start, first_uppers, escape, cdf_offset, precision, z_hat, damaged):
    """Decode rows, each with its bank."""
    num_rows, num_symbols = z_hat.shape
    num_dims = len(cdf_offset)
    tables = cdf, start.reshape(-1), first_uppers.reshape(-1), escape, cdf_offset, _U(precision)
    padded = np.zeros(offsets[-1] - offsets[0] + _BYTES_READ * num_rows, np.uint8)
    padded_end = 0
    positions = np.empty(NUM_LANES, np.uint64)
    ends = np.empty(NUM_LANES, np.uint64)
    table_starts = np.empty(NUM_LANES, np.uint64)
    aheads = np.empty(NUM_LANES, np.uint64)
    lasts = np.empty(NUM_LANES, np.uint64)
    symbols = np.empty(num_symbols * NUM_LANES, np.int32)
    for first_row in range(0, num_rows, NUM_LANES):
        group = z_hat[first_row : first_row + NUM_LANES]
        group_damaged = damaged[first_row : first_row + NUM_LANES]
        for lane in range(NUM_LANES):
            if lane < len(group):
                row = first_row + lane
                code = data[offsets[row] : offsets[row + 1]]
                begin = padded_end
                padded[begin : begin + len(code)] = code
                padded_end = begin + len(code) + _BYTES_READ
            positions[lane] = begin
            ends[lane] = begin + len(code)
            table_starts[lane] = bank[row] * num_dims
        _decode_lanes(padded, positions, ends, table_starts, tables, aheads, lasts, symbols, group_damaged)
        for lane in range(len(group)):
            values = group[lane]
            for symbol in range(num_symbols):
                values[symbol] = symbols[symbol * NUM_LANES + lane]
            size = lasts[lane] + _U(1)
            group_damaged[lane] |= not _is_finished(padded, positions[lane], ends[lane], aheads[lane], size)


@jit
def _decode_lanes(data, positions, ends, table_starts, tables, aheads, lasts, symbols, damaged):
    """Decode a group of rows to `symbols`, those of all lanes before the next ones.

    `ahead` is the distance of the code from `base`, always in [0, size): the tables end with 2^precision, so that
    some interval holds it, damaged or not. `base` itself is not needed before the end.

    Writes where each lane would read on, `ahead`, and `last`, which is size - 1.
    """
    _, _, first_uppers, escape, cdf_offset, precision = tables
    num_dims = _U(len(cdf_offset))
    end = load(ends, 0)
    table_start = load(table_starts, 0)
    position = load(positions, 0)
    ahead = _read(data, position, end) >> 32
    position = position + 4
    buffer = _read(data, position, end)
    used = lanes(0)  # so many bits have left the buffer
    last = lanes(_LOW_32_BITS)
    found = np.empty(NUM_LANES, np.uint64)
    for first_symbol in range(_U(0), _U(len(symbols)), num_dims * _U(NUM_LANES)):
        for dim in range(num_dims):
            ends_less_1 = gather(first_uppers, table_start + dim)
            upper_0 = _scale(last, ends_less_1 & _LOW_16_BITS, precision)
            upper_1 = _scale(last, (ends_less_1 >> 16) & _LOW_16_BITS, precision)
            upper_2 = _scale(last, (ends_less_1 >> 32) & _LOW_16_BITS, precision)
            above_0 = ahead >= upper_0
            above_1 = ahead >= upper_1
            above_2 = ahead >= upper_2
            lower = select(above_1, upper_1, select(above_0, upper_0, lanes(0)))
            upper = select(above_1, upper_2, select(above_0, upper_1, upper_0))
            index = select(above_1, 2, select(above_0, 1, lanes(0)))
            if to_bits(above_2):
                lower = select(above_2, upper_2, lower)
                upper = select(above_2, _scale(last, ends_less_1 >> 48, precision), upper)
                index = select(above_2, 3, index)
            rare = (ahead >= upper) | (index == escape[dim])
            if to_bits(rare):
                store(positions, 0, position + (used >> 3))
                store(aheads, 0, ahead)
                store(lasts, 0, last)
                store(found, 0, index)
                _decode_rare(
                    data, positions, ends, table_starts, tables, aheads, lasts, dim, to_bits(rare), found, damaged
                )
                position = load(positions, 0)
                ahead = load(aheads, 0)
                last = load(lasts, 0)
                index = load(found, 0)
                buffer = _read(data, position, end)
                used = lanes(0)
                # Nothing is left to do for these.
                lower = select(rare, 0, lower)
                upper = select(rare, last + 1, upper)
            store(symbols, first_symbol + dim * _U(NUM_LANES), index + cdf_offset[dim])
            ahead = ahead - lower
            last = upper - lower - 1
            leaves = last < _MIN_SIZE
            ahead = select(leaves, (ahead << 16) | (buffer >> 48), ahead)
            last = select(leaves, (last << 16) | _LOW_16_BITS, last)
            buffer = select(leaves, buffer << 16, buffer)
            used = select(leaves, used + 16, used)
            if to_bits(used >= 8 * _BYTES_READ):
                position = position + (used >> 3)
                buffer = _read(data, position, end)
                used = lanes(0)
    store(positions, 0, position + (used >> 3))
    store(aheads, 0, ahead)
    store(lasts, 0, last)


@jit
def _decode_rare(data, positions, ends, table_starts, tables, aheads, lasts, dim, rare, found, damaged):
    """Decode a symbol in those lanes that the bits of `rare` name, one after the other; write its index to `found`."""
    cdf, start, _, escape, _, precision = tables
    for lane in range(_U(len(damaged))):
        if (rare >> lane) & _U(1):
            first = _U(start[table_starts[lane] + dim])
            last = first + _U(escape[dim])
            size = lasts[lane] + _U(1)
            ahead = aheads[lane]
            position = positions[lane]
            interval = _search(cdf, first, last + _U(1), size, ahead, precision)
            lower = (size * _U(cdf[interval])) >> precision
            size = ((size * _U(cdf[interval + _U(1)])) >> precision) - lower
            ahead -= lower
            position, ahead, size = _normalise(data, position, ends[lane], ahead, size)
            index = np.int64(interval - first)
            if interval == last:
                index, position, ahead, size = _decode_escape(index, data, position, ends[lane], ahead, size)
                damaged[lane] |= index == _DAMAGE
            positions[lane] = position
            aheads[lane] = ahead
            lasts[lane] = size - _U(1)
            found[lane] = index


@jit
def _scale(last, end_less_1, precision):
    """Return `size * end >> precision`, from `size - 1` and `end - 1`."""
    return (multiply(last, end_less_1) + (last + end_less_1 + 1)) >> precision


@jit
def _read(data, position, end):
    """Read the 64 bits at each lane's position; zeros are to follow the end."""
    return reverse_bytes(gather(data, select(position < end, position, end)))


_DAMAGE = np.int64(-1 << 40)  # stands for no index


@jit
def _next_16_bits(data, position, end):
    """Read two bytes; zeros follow the end."""
    if position + _U(2) <= end:
        return (_U(data[position]) << _U(8)) | _U(data[position + _U(1)])
    if position < end:
        return _U(data[position]) << _U(8)
    return _U(0)


@jit
def _last_32_bits(data, position, end):
    """Read the four bytes before `position`; zeros follow the end."""
    high = _next_16_bits(data, position - _U(4), end)
    return (high << _U(16)) | _next_16_bits(data, position - _U(2), end)


@jit
def _search(cdf, below, above, size, ahead, shift):
    """Return the interval between `below` and `above` that holds `ahead`."""
    while above - below > _U(1):
        middle = (below + above) >> _U(1)
        if ahead >= (size * _U(cdf[middle])) >> shift:
            below = middle
        else:
            above = middle
    return below


@jit
def _normalise(data, position, end, ahead, size):
    """Shift 16 bits in where `size` has become too small."""
    if size <= _MIN_SIZE:
        size <<= _U(16)
        ahead = (ahead << _U(16)) | _next_16_bits(data, position, end)
        position += _U(2)
    return position, ahead, size


@jit
def _decode_bit(data, position, end, ahead, size):
    half = size >> _U(1)
    bit = ahead >= half
    if bit:
        ahead -= half
        size -= half
    else:
        size = half
    return np.int64(bit), *_normalise(data, position, end, ahead, size)


@jit
def _decode_escape(escape, data, position, end, ahead, size):
    """Read an escape's distance and sign; return the value's index in the table, or `_DAMAGE`."""
    num_zeros = 0
    bit, position, ahead, size = _decode_bit(data, position, end, ahead, size)
    while not bit:
        num_zeros += 1
        if num_zeros >= MAX_ESCAPE_BITS:
            return _DAMAGE, position, ahead, size
        bit, position, ahead, size = _decode_bit(data, position, end, ahead, size)
    distance = np.int64(1)
    for _ in range(num_zeros):
        bit, position, ahead, size = _decode_bit(data, position, end, ahead, size)
        distance = (distance << 1) | bit
    negative, position, ahead, size = _decode_bit(data, position, end, ahead, size)
    return -distance if negative else distance + escape - 1, position, ahead, size


@jit
def _is_finished(data, position, end, ahead, size):
    """See whether the whole code was read and is the number that `_finish_row` chooses."""
    if position < end:
        return False
    code = _last_32_bits(data, position, end)
    base = (code - ahead) & _LOW_32_BITS
    last = base + size - _U(1)
    if base == 0 or last > _LOW_32_BITS:
        return code == 0
    bits = _U(24) if (base - _U(1)) >> _U(24) < last >> _U(24) else _U(16)
    return (((base - _U(1)) >> bits) + _U(1)) << bits == code
