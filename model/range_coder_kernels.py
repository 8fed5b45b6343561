"""The range coder's loops, compiled by Numba. `range_coder` says what they compute and checks what they are given.

They release the GIL, so that batches can run side by side in threads.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.range_coding_tables import MAX_ESCAPE_BITS

# The arithmetic is in uint64 throughout: Numba turns a mixture of signed and unsigned integers into floats, and
# checks signed indices for being negative.
_U = np.uint64
_MIN_SIZE = np.uint64(1 << 16)
_FULL_SIZE = np.uint64(1 << 32)
_LOW_32_BITS = np.uint64((1 << 32) - 1)


@jit
def encode_rows(z_hat, bank, cdf, start, first_upper, escape, cdf_offset, precision, capacity, max_row_bytes):
    """Encode rows, each with its bank.

    Returns data, offsets, and the place of the first value that cannot be coded, or -1, -1.
    """
    num_rows = len(z_hat)
    data = np.empty(capacity, np.uint8)
    offsets = np.zeros(num_rows + 1, np.int64)
    for row in range(num_rows):
        begin = offsets[row]
        if begin + max_row_bytes > len(data):
            larger = np.empty(2 * len(data) + max_row_bytes, np.uint8)
            larger[:begin] = data[:begin]
            data = larger
        end, bad_symbol = _encode_row(
            z_hat[row],
            cdf,
            start[bank[row]],
            first_upper[bank[row]],
            escape,
            cdf_offset,
            _U(precision),
            data,
            _U(begin),
        )
        if bad_symbol >= 0:
            return data[:0], offsets, row, bad_symbol
        offsets[row + 1] = end
    return data[: offsets[-1]].copy(), offsets, -1, -1


@jit
def _encode_row(z_hat, cdf, start, first_upper, escape, cdf_offset, shift, data, end):
    """Encode a row at `data[end:]`; return the new end, and the index of a value that cannot be coded or -1."""
    num_symbols = _U(len(z_hat))
    num_dims = _U(len(cdf_offset))
    base = _U(0)
    size = _FULL_SIZE
    for first_symbol in range(_U(0), num_symbols, num_dims):
        for dim in range(num_dims):
            value = z_hat[first_symbol + dim]
            if value == cdf_offset[dim]:
                # The first value, mostly 0, is by far the most frequent one. It leaves `base` as it is.
                size = (size * _U(first_upper[dim])) >> shift
                if size <= _MIN_SIZE:
                    data[end] = base >> _U(24)
                    data[end + _U(1)] = (base >> _U(16)) & _U(0xFF)
                    end += _U(2)
                    base = (base << _U(16)) & _LOW_32_BITS
                    size <<= _U(16)
                continue
            index = np.int64(value) - np.int64(cdf_offset[dim])
            escape_index = np.int64(escape[dim])
            escaped = index < 0 or index >= escape_index
            interval = _U(start[dim]) + _U(escape_index if escaped else index)
            lower = (size * _U(cdf[interval])) >> shift
            size = ((size * _U(cdf[interval + _U(1)])) >> shift) - lower
            base += lower
            if base > _LOW_32_BITS:
                _carry(data, end)
                base &= _LOW_32_BITS
            # Whether 16 bits leave now is anyone's guess, the processor's too: do it without a branch.
            bits = _U(16) if size <= _MIN_SIZE else _U(0)
            data[end] = base >> _U(24)
            data[end + _U(1)] = (base >> _U(16)) & _U(0xFF)
            end += bits >> _U(3)
            base = (base << bits) & _LOW_32_BITS
            size <<= bits
            if escaped:
                distance = -index if index < 0 else index - escape_index + 1
                if distance >> MAX_ESCAPE_BITS:
                    return end, np.int64(first_symbol + dim)
                end, base, size = _encode_escape(data, end, base, size, distance, index < 0)
    return _finish_row(data, end, base, size), -1


@jit
def _carry(data, end):
    """Add 1 to the last byte written. The number stays below 1, so that the carry ends within the row."""
    end -= _U(1)
    while data[end] == 0xFF:
        data[end] = 0
        end -= _U(1)
    data[end] += 1


@jit
def _encode_bit(data, end, base, size, bit):
    half = size >> _U(1)
    if bit:
        base += half
        size -= half
        if base > _LOW_32_BITS:
            _carry(data, end)
            base &= _LOW_32_BITS
    else:
        size = half
    if size <= _MIN_SIZE:
        data[end] = base >> _U(24)
        data[end + _U(1)] = (base >> _U(16)) & _U(0xFF)
        end += _U(2)
        base = (base << _U(16)) & _LOW_32_BITS
        size <<= _U(16)
    return end, base, size


@jit
def _encode_escape(data, end, base, size, distance, negative):
    """Write the Elias gamma code of `distance` >= 1: a zero for each bit after its first, then its bits; the sign."""
    num_zeros = 0
    while distance >> (num_zeros + 1):
        num_zeros += 1
        end, base, size = _encode_bit(data, end, base, size, False)
    for bit in range(num_zeros, -1, -1):
        end, base, size = _encode_bit(data, end, base, size, (distance >> bit) & 1 == 1)
    return _encode_bit(data, end, base, size, negative)


@jit
def _finish_row(data, end, base, size):
    """Write the fewest bytes that stand for a number in [base, base + size); return the row's end."""
    if base + size > _FULL_SIZE:
        # The number 2^32 is in the interval: a carry, and no bytes after the last one that is not zero.
        _carry(data, end)
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
def decode_rows(data, offsets, bank, cdf, start, first_upper, escape, cdf_offset, precision, z_hat, damaged):
    """Decode rows two at a time, to fill the time that one waits for its product with the other.

    `ahead` is the distance of the code from `base`, always in [0, size): the tables end with 2^precision, so that
    some interval holds it, damaged or not. `base` itself is not needed before the end. The two halves of the loop are
    the same but for the names: with one function for both, which costs reference counts of the arrays, decoding took
    1.5 to 1.9 times as long (`benchmarks/range_coder.py`).
    """
    num_rows, num_symbols = z_hat.shape
    num_dims = _U(len(cdf_offset))
    shift = _U(precision)
    for row in range(0, num_rows, 2):
        row_a = _U(row)
        row_b = _U(min(row + 1, num_rows - 1))  # an odd last row is decoded twice
        bank_a = _U(bank[row_a])
        bank_b = _U(bank[row_b])
        end_a = _U(offsets[row_a + _U(1)])
        end_b = _U(offsets[row_b + _U(1)])
        next_a = _U(offsets[row_a]) + _U(4)
        next_b = _U(offsets[row_b]) + _U(4)
        ahead_a = _last_32_bits(data, next_a, end_a)
        ahead_b = _last_32_bits(data, next_b, end_b)
        size_a = _FULL_SIZE
        size_b = _FULL_SIZE
        for first_symbol in range(_U(0), _U(num_symbols), num_dims):
            for dim in range(num_dims):
                symbol = first_symbol + dim
                # The first value, mostly 0, is by far the most frequent one: see whether it is that.
                upper = (size_a * _U(first_upper[bank_a, dim])) >> shift
                if ahead_a < upper:
                    z_hat[row_a, symbol] = cdf_offset[dim]
                    size_a = upper
                    if size_a <= _MIN_SIZE:
                        size_a <<= _U(16)
                        ahead_a = (ahead_a << _U(16)) | _next_16_bits(data, next_a, end_a)
                        next_a += _U(2)
                else:
                    # The second and the third value without a branch, the others by binary search.
                    first = _U(start[bank_a, dim])
                    interval = first + _U(1)
                    upper_1 = (size_a * _U(cdf[interval + _U(1)])) >> shift
                    upper_2 = (size_a * _U(cdf[interval + _U(2)])) >> shift
                    is_above = ahead_a >= upper_1
                    interval += _U(is_above)
                    lower = upper_1 if is_above else upper
                    upper = upper_2 if is_above else upper_1
                    last = first + _U(escape[dim])
                    if ahead_a >= upper:
                        interval = _search(cdf, interval + _U(1), last + _U(1), size_a, ahead_a, shift)
                        lower = (size_a * _U(cdf[interval])) >> shift
                        upper = (size_a * _U(cdf[interval + _U(1)])) >> shift
                    ahead_a -= lower
                    size_a = upper - lower
                    bits = _U(16) if size_a <= _MIN_SIZE else _U(0)
                    incoming = _next_16_bits(data, next_a, end_a) & ((_U(1) << bits) - _U(1))
                    ahead_a = (ahead_a << bits) | incoming
                    size_a <<= bits
                    next_a += bits >> _U(3)
                    index = np.int64(interval - first)
                    if interval == last:
                        index, next_a, ahead_a, size_a = _decode_escape(index, data, next_a, end_a, ahead_a, size_a)
                        damaged[row_a] |= index == _DAMAGE
                    z_hat[row_a, symbol] = index + cdf_offset[dim]
                upper = (size_b * _U(first_upper[bank_b, dim])) >> shift
                if ahead_b < upper:
                    z_hat[row_b, symbol] = cdf_offset[dim]
                    size_b = upper
                    if size_b <= _MIN_SIZE:
                        size_b <<= _U(16)
                        ahead_b = (ahead_b << _U(16)) | _next_16_bits(data, next_b, end_b)
                        next_b += _U(2)
                else:
                    first = _U(start[bank_b, dim])
                    interval = first + _U(1)
                    upper_1 = (size_b * _U(cdf[interval + _U(1)])) >> shift
                    upper_2 = (size_b * _U(cdf[interval + _U(2)])) >> shift
                    is_above = ahead_b >= upper_1
                    interval += _U(is_above)
                    lower = upper_1 if is_above else upper
                    upper = upper_2 if is_above else upper_1
                    last = first + _U(escape[dim])
                    if ahead_b >= upper:
                        interval = _search(cdf, interval + _U(1), last + _U(1), size_b, ahead_b, shift)
                        lower = (size_b * _U(cdf[interval])) >> shift
                        upper = (size_b * _U(cdf[interval + _U(1)])) >> shift
                    ahead_b -= lower
                    size_b = upper - lower
                    bits = _U(16) if size_b <= _MIN_SIZE else _U(0)
                    incoming = _next_16_bits(data, next_b, end_b) & ((_U(1) << bits) - _U(1))
                    ahead_b = (ahead_b << bits) | incoming
                    size_b <<= bits
                    next_b += bits >> _U(3)
                    index = np.int64(interval - first)
                    if interval == last:
                        index, next_b, ahead_b, size_b = _decode_escape(index, data, next_b, end_b, ahead_b, size_b)
                        damaged[row_b] |= index == _DAMAGE
                    z_hat[row_b, symbol] = index + cdf_offset[dim]
        damaged[row_a] |= not _is_finished(data, next_a, end_a, ahead_a, size_a)
        damaged[row_b] |= not _is_finished(data, next_b, end_b, ahead_b, size_b)


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
def _decode_bit(data, position, end, ahead, size):
    half = size >> _U(1)
    bit = ahead >= half
    if bit:
        ahead -= half
        size -= half
    else:
        size = half
    if size <= _MIN_SIZE:
        size <<= _U(16)
        ahead = (ahead << _U(16)) | _next_16_bits(data, position, end)
        position += _U(2)
    return np.int64(bit), position, ahead, size


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
