"""Decoding row by row, as `row_encoder` encodes."""

from __future__ import annotations

import numpy as np

from vidpress.model.coding.arithmetic import (
    DAMAGE,
    FULL_SIZE,
    LOW_16_BITS,
    MIN_SIZE,
    U,
    decode_escape,
    is_finished,
    last_32_bits,
    next_16_bits,
    search,
)
from vidpress.model.compiled import jit


@jit
def decode_rows(data, offsets, bank, tables, precision, z_hat, damaged):
    """Decode rows, each with its bank."""
    for row in range(len(z_hat)):
        damaged[row] = _decode_row(
            data,
            U(offsets[row]),
            U(offsets[row + 1]),
            tables.cdf,
            tables.start[bank[row]],
            tables.first_uppers[bank[row]],
            tables.escape,
            tables.cdf_offset,
            U(precision),
            z_hat[row],
        )


@jit
def _decode_row(data, position, end, cdf, start, first_uppers, escape, cdf_offset, precision, z_hat):
    """Decode the code between `position` and `end` to `z_hat`; return whether it is found to be damaged.

    `ahead` is the distance of the code from `base`, always in [0, size): the tables end with 2^precision, so that
    some interval contains it, damaged or not. `base` itself is not needed before the end.
    """
    num_dims = U(len(cdf_offset))
    position += U(4)
    ahead = last_32_bits(data, position, end)
    size = FULL_SIZE
    damaged = False
    for first_symbol in range(U(0), U(len(z_hat)), num_dims):
        for dim in range(num_dims):
            symbol = first_symbol + dim
            uppers = first_uppers[dim]
            upper = (size * ((uppers & LOW_16_BITS) + U(1))) >> precision
            if ahead < upper:
                z_hat[symbol] = cdf_offset[dim]
                size = upper
                if size <= MIN_SIZE:
                    ahead = (ahead << U(16)) | next_16_bits(data, position, end)
                    size <<= U(16)
                    position += U(2)
                continue
            # The second and the third value without a branch, the others by binary search.
            upper_1 = (size * (((uppers >> U(16)) & LOW_16_BITS) + U(1))) >> precision
            upper_2 = (size * (((uppers >> U(32)) & LOW_16_BITS) + U(1))) >> precision
            is_above = ahead >= upper_1
            index = np.int64(2 if is_above else 1)
            lower = upper_1 if is_above else upper
            upper = upper_2 if is_above else upper_1
            if ahead >= upper:
                first = U(start[dim])
                interval = search(cdf, first + U(3), first + U(escape[dim]) + U(1), size, ahead, precision)
                lower = (size * U(cdf[interval])) >> precision
                upper = (size * U(cdf[interval + U(1)])) >> precision
                index = np.int64(interval - first)
            ahead -= lower
            size = upper - lower
            bits = U(16) if size <= MIN_SIZE else U(0)
            incoming = next_16_bits(data, position, end) & ((U(1) << bits) - U(1))
            ahead = (ahead << bits) | incoming
            size <<= bits
            position += bits >> U(3)
            if index == escape[dim]:
                index, position, ahead, size = decode_escape(index, data, position, end, ahead, size)
                damaged |= index == DAMAGE
            z_hat[symbol] = index + cdf_offset[dim]
    return damaged or not is_finished(data, position, end, ahead, size)
