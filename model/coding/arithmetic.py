"""The part of the range coder's arithmetic that the loops in lanes and row by row share; compiled by Numba.

All of it is in uint64: Numba turns a mixture of signed and unsigned integers into floats, and checks signed indices
for being negative.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.tables.limits import MAX_ESCAPE_BITS

U = np.uint64
MIN_SIZE = np.uint64(1 << 16)
FULL_SIZE = np.uint64(1 << 32)
LOW_16_BITS = np.uint64((1 << 16) - 1)
LOW_32_BITS = np.uint64((1 << 32) - 1)

DAMAGE = np.int64(-1 << 40)  # stands for no index


@jit
def escape_distance(value, offset, escape):
    """Return how far a value is from its table, which has `escape` values from `offset` on; 0 if it is in the table."""
    index = np.int64(value) - np.int64(offset)
    return -index if index < 0 else max(index - np.int64(escape) + 1, 0)


@jit
def bits_after_first(number):
    """Return how many bits follow the highest bit that is set."""
    bits = 0
    while number >> (bits + 1):
        bits += 1
    return bits


@jit
def with_room(data, used, needed):
    """Return an array with the used part of `data`, and room for `needed` bytes after it."""
    if used + needed <= len(data):
        return data
    larger = np.empty(2 * len(data) + needed, np.uint8)
    larger[:used] = data[:used]
    return larger


@jit
def finish_row(data, begin, words, num_words, base, size):
    """Write a row's words, and the fewest bytes that stand for a number in [base, base + size); return the row's end.

    A word has 16 bits that were shifted out of `base`, and above them the carry into the word before.
    """
    carry = base >> U(32)
    base &= LOW_32_BITS
    is_over = base + size > FULL_SIZE
    # If the number 2^32 is in the interval, it is chosen: a carry, and no bytes after the last one that is not zero.
    carry += U(is_over)
    end = U(begin) + U(2) * num_words
    place = end
    for word in words[:num_words][::-1]:
        carry += U(word)
        place -= U(2)
        data[place] = (carry >> U(8)) & U(0xFF)
        data[place + U(1)] = carry & U(0xFF)
        carry >>= U(16)
    if is_over:
        while data[end - U(1)] == 0:
            end -= U(1)
    elif base:
        last = base + size - U(1)
        rounded_up = ((base - U(1)) >> U(24)) + U(1)
        if rounded_up <= last >> U(24):
            data[end] = rounded_up
            return end + U(1)
        rounded_up = ((base - U(1)) >> U(16)) + U(1)
        data[end] = rounded_up >> U(8)
        end += U(1)
        if rounded_up & U(0xFF):
            data[end] = rounded_up & U(0xFF)
            end += U(1)
    return end


@jit
def next_16_bits(data, position, end):
    """Read two bytes; zeros follow the end."""
    if position + U(2) <= end:
        return (U(data[position]) << U(8)) | U(data[position + U(1)])
    if position < end:
        return U(data[position]) << U(8)
    return U(0)


@jit
def last_32_bits(data, position, end):
    """Read the four bytes before `position`; zeros follow the end."""
    high = next_16_bits(data, position - U(4), end)
    return (high << U(16)) | next_16_bits(data, position - U(2), end)


@jit
def search(cdf, below, above, size, ahead, shift):
    """Return the interval between `below` and `above` that holds `ahead`."""
    while above - below > U(1):
        middle = (below + above) >> U(1)
        if ahead >= (size * U(cdf[middle])) >> shift:
            below = middle
        else:
            above = middle
    return below


@jit
def normalise(data, position, end, ahead, size):
    """Shift 16 bits in where `size` has become too small."""
    if size <= MIN_SIZE:
        size <<= U(16)
        ahead = (ahead << U(16)) | next_16_bits(data, position, end)
        position += U(2)
    return position, ahead, size


@jit
def _decode_bit(data, position, end, ahead, size):
    half = size >> U(1)
    bit = ahead >= half
    if bit:
        ahead -= half
        size -= half
    else:
        size = half
    return np.int64(bit), *normalise(data, position, end, ahead, size)


@jit
def decode_escape(escape, data, position, end, ahead, size):
    """Read an escape's distance and sign; return the value's index in the table, or `DAMAGE`."""
    num_zeros = 0
    bit, position, ahead, size = _decode_bit(data, position, end, ahead, size)
    while not bit:
        num_zeros += 1
        if num_zeros >= MAX_ESCAPE_BITS:
            return DAMAGE, position, ahead, size
        bit, position, ahead, size = _decode_bit(data, position, end, ahead, size)
    distance = np.int64(1)
    for _ in range(num_zeros):
        bit, position, ahead, size = _decode_bit(data, position, end, ahead, size)
        distance = (distance << 1) | bit
    negative, position, ahead, size = _decode_bit(data, position, end, ahead, size)
    return -distance if negative else distance + escape - 1, position, ahead, size


@jit
def is_finished(data, position, end, ahead, size):
    """Return whether the whole code was read and is the number that `finish_row` chooses."""
    if position < end:
        return False
    code = last_32_bits(data, position, end)
    base = (code - ahead) & LOW_32_BITS
    last = base + size - U(1)
    if base == 0 or last > LOW_32_BITS:
        return code == 0
    bits = U(24) if (base - U(1)) >> U(24) < last >> U(24) else U(16)
    return (((base - U(1)) >> bits) + U(1)) << bits == code
