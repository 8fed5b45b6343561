"""Encoding row by row.

Calling a function with arrays counts references, which takes as long as a symbol. So only rare cases have functions of
their own.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.coding.arithmetic import (
    FULL_SIZE,
    LOW_16_BITS,
    MIN_SIZE,
    U,
    bits_after_first,
    escape_distance,
    finish_row,
    with_room,
)
from vidpress.model.compiled import jit
from vidpress.model.tables.limits import MAX_ESCAPE_BITS

# A symbol takes 16 bits at most, an escape's distance and sign 2 * MAX_ESCAPE_BITS more.
_MOST_WORDS = 6


@jit
def encode_rows(z_hat, bank, tables, precision):
    """Encode rows, each with its bank.

    Returns data, offsets, and the place of a value that cannot be coded, or -1, -1.
    """
    num_rows, num_symbols = z_hat.shape
    data = np.empty(num_rows * (8 + num_symbols // 8), np.uint8)
    offsets = np.zeros(num_rows + 1, np.int64)
    words = np.empty(_MOST_WORDS * num_symbols, np.uint32)
    for row in range(num_rows):
        num_words, base, size, bad_symbol = _narrow(
            z_hat[row],
            tables.cdf,
            tables.start[bank[row]],
            tables.first_uppers[bank[row]],
            tables.escape,
            tables.cdf_offset,
            U(precision),
            words,
        )
        if bad_symbol >= 0:
            return data[:0], offsets, row, bad_symbol
        data = with_room(data, offsets[row], 2 * np.int64(num_words) + 2)
        offsets[row + 1] = finish_row(data, offsets[row], words, num_words, base, size)
    return data[: offsets[-1]].copy(), offsets, -1, -1


@jit
def _narrow(z_hat, cdf, start, first_uppers, escape, cdf_offset, precision, words):
    """Narrow [base, base + size), at first [0, 2^32), by a row's values.

    What is shifted out of `base` is written to `words`, as `finish_row` takes it. Returns how many words there are,
    base, size, and the index of a value that cannot be coded or -1.
    """
    num_dims = U(len(cdf_offset))
    num_words, base, size = U(0), U(0), FULL_SIZE
    for first_symbol in range(U(0), U(len(z_hat)), num_dims):
        for dim in range(num_dims):
            value = z_hat[first_symbol + dim]
            if value == cdf_offset[dim]:
                # The first value, mostly 0, is by far the most frequent one. It leaves `base` as it is.
                size = (size * ((first_uppers[dim] & LOW_16_BITS) + U(1))) >> precision
                if size <= MIN_SIZE:
                    words[num_words] = base >> U(16)
                    num_words += U(1)
                    base = (base & LOW_16_BITS) << U(16)
                    size <<= U(16)
                continue
            distance = escape_distance(value, cdf_offset[dim], escape[dim])
            interval = U(start[dim]) + U(escape[dim] if distance else value - cdf_offset[dim])
            lower = (size * U(cdf[interval])) >> precision
            size = ((size * U(cdf[interval + U(1)])) >> precision) - lower
            base += lower
            # The processor cannot predict whether 16 bits are shifted out now, so there is no branch.
            leaves = size <= MIN_SIZE
            words[num_words] = base >> U(16)
            num_words += U(leaves)
            base = (base & LOW_16_BITS) << U(16) if leaves else base
            size = size << U(16) if leaves else size
            if distance:
                if distance >> MAX_ESCAPE_BITS:
                    return num_words, base, size, np.int64(first_symbol + dim)
                is_below = value < cdf_offset[dim]
                num_words, base, size = _narrow_by_escape(words, num_words, base, size, distance, is_below)
    return num_words, base, size, np.int64(-1)


@jit
def _narrow_by_escape(words, num_words, base, size, distance, is_below):
    """Narrow by an escape's distance and sign; return how many words there are then, base and size.

    The Elias gamma code of the distance >= 1 is a zero for each bit after its first, then its bits.
    """
    num_bits = 2 * bits_after_first(distance) + 1
    for bit in range(num_bits, -1, -1):
        half = size >> U(1)
        if (distance >> (bit - 1)) & 1 if bit else is_below:
            base += half
            size -= half
        else:
            size = half
        if size <= MIN_SIZE:
            words[num_words] = base >> U(16)
            num_words += U(1)
            base = (base & LOW_16_BITS) << U(16)
            size <<= U(16)
    return num_words, base, size
