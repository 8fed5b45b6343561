"""Decoding in lanes: as many rows side by side as there are lanes, as `lane_encoder` encodes them."""

from __future__ import annotations

import numpy as np

from vidpress.model.coding.arithmetic import (
    DAMAGE,
    LOW_16_BITS,
    LOW_32_BITS,
    MIN_SIZE,
    U,
    decode_escape,
    is_finished,
    normalise,
    search,
)
from vidpress.model.coding.lanes import (
    NUM_LANES,
    gather,
    lanes,
    load,
    multiply,
    reverse_bytes,
    select,
    store,
    to_bits,
)
from vidpress.model.compiled import jit

_BYTES_READ = 8  # at once; zeros follow the end of a code


@jit
def decode_rows(data, offsets, bank, tables, precision, z_hat, damaged):
    """Decode rows, each with its bank."""
    num_rows, num_symbols = z_hat.shape
    num_dims = len(tables.cdf_offset)
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
        _decode_lanes(
            padded, positions, ends, table_starts, tables, U(precision), aheads, lasts, symbols, group_damaged
        )
        for lane in range(len(group)):
            values = group[lane]
            for symbol in range(num_symbols):
                values[symbol] = symbols[symbol * NUM_LANES + lane]
            size = lasts[lane] + U(1)
            group_damaged[lane] |= not is_finished(padded, positions[lane], ends[lane], aheads[lane], size)


@jit
def _decode_lanes(data, positions, ends, table_starts, tables, precision, aheads, lasts, symbols, damaged):
    """Decode a group of rows to `symbols`: first the first symbol of all lanes, then the second, and so on.

    `ahead` is the distance of the code from `base`, always in [0, size): the tables end with 2^precision, so that
    some interval contains it, damaged or not. `base` itself is not needed before the end.

    Writes where each lane would continue to read, `ahead`, and `last`, which is size - 1.
    """
    first_uppers, escape, cdf_offset = tables.first_uppers.reshape(-1), tables.escape, tables.cdf_offset
    num_dims = U(len(cdf_offset))
    end = load(ends, 0)
    table_start = load(table_starts, 0)
    position = load(positions, 0)
    ahead = _read(data, position, end) >> 32
    position = position + 4
    buffer = _read(data, position, end)
    used = lanes(0)  # how many bits of the buffer were used
    last = lanes(LOW_32_BITS)
    found = np.empty(NUM_LANES, np.uint64)
    for first_symbol in range(U(0), U(len(symbols)), num_dims * U(NUM_LANES)):
        for dim in range(num_dims):
            ends_less_1 = gather(first_uppers, table_start + dim)
            upper_0 = _scale(last, ends_less_1 & LOW_16_BITS, precision)
            upper_1 = _scale(last, (ends_less_1 >> 16) & LOW_16_BITS, precision)
            upper_2 = _scale(last, (ends_less_1 >> 32) & LOW_16_BITS, precision)
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
                    to_bits(rare),
                    dim,
                    data,
                    positions,
                    ends,
                    table_starts,
                    tables,
                    precision,
                    aheads,
                    lasts,
                    found,
                    damaged,
                )
                position = load(positions, 0)
                ahead = load(aheads, 0)
                last = load(lasts, 0)
                index = load(found, 0)
                buffer = _read(data, position, end)
                used = lanes(0)
                # These lanes are done already.
                lower = select(rare, 0, lower)
                upper = select(rare, last + 1, upper)
            store(symbols, first_symbol + dim * U(NUM_LANES), index + cdf_offset[dim])
            ahead = ahead - lower
            last = upper - lower - 1
            leaves = last < MIN_SIZE
            ahead = select(leaves, (ahead << 16) | (buffer >> 48), ahead)
            last = select(leaves, (last << 16) | LOW_16_BITS, last)
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
def _decode_rare(rare, dim, data, positions, ends, table_starts, tables, precision, aheads, lasts, found, damaged):
    """Decode a symbol in those lanes that the bits of `rare` name, one after the other; write its index to `found`."""
    cdf, start = tables.cdf, tables.start.reshape(-1)
    for lane in range(U(len(damaged))):
        if (rare >> lane) & U(1):
            first = U(start[table_starts[lane] + dim])
            last = first + U(tables.escape[dim])
            size = lasts[lane] + U(1)
            ahead = aheads[lane]
            position = positions[lane]
            interval = search(cdf, first, last + U(1), size, ahead, precision)
            lower = (size * U(cdf[interval])) >> precision
            size = ((size * U(cdf[interval + U(1)])) >> precision) - lower
            ahead -= lower
            position, ahead, size = normalise(data, position, ends[lane], ahead, size)
            index = np.int64(interval - first)
            if interval == last:
                index, position, ahead, size = decode_escape(index, data, position, ends[lane], ahead, size)
                damaged[lane] |= index == DAMAGE
            positions[lane] = position
            aheads[lane] = ahead
            lasts[lane] = size - U(1)
            found[lane] = index


@jit
def _scale(last, end_less_1, precision):
    """Return `size * end >> precision`, from `size - 1` and `end - 1`."""
    return (multiply(last, end_less_1) + (last + end_less_1 + 1)) >> precision


@jit
def _read(data, position, end):
    """Read the 64 bits at each lane's position; zeros are to follow the end."""
    return reverse_bytes(gather(data, select(position < end, position, end)))
