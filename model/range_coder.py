"""The range coder: `z_hat` to bytes and back, compiled by Numba.

It is the range coder of G. N. N. Martin, "Range coding: an algorithm for removing redundancy from a digitised
message" (Video & Data Recording Conference, 1979), in the form that tensorflow-compression gave it
(`cc/lib/range_coder.{h,cc}` and `cc/kernels/range_coder_kernels.cc`): a code is byte for byte what
`ContinuousBatchedEntropyModel.compress` returns for the same tables. A change to the bytes is a breaking release.

A code is a number in [0, 1), in base 256 without trailing zeros. The coder narrows an interval `[base, base +
size)`, at first [0, 2^32), to the part that the next symbol's interval in its dimension's table stands for; when
`size` is 2^16 or less, the upper 16 bits of `base` leave and both shift up by 16 bits. Symbols go through the
tables in turn, beginning anew after the last. A value outside its table is coded as the escape symbol, followed by
the Elias gamma code of its distance and by its sign, bit by bit.

The kernels release the GIL: batches can run side by side in threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.range_coding_tables import MAX_ESCAPE_BITS, RangeCodingTables

# The arithmetic is in uint64 throughout: Numba turns a mixture of signed and unsigned integers into floats, and
# checks signed indices for being negative.
_U = np.uint64
_MIN_SIZE = np.uint64(1 << 16)
_FULL_SIZE = np.uint64(1 << 32)
_LOW_32_BITS = np.uint64((1 << 32) - 1)

_MAX_BYTES_PER_SYMBOL = 12  # 17 bits for a symbol, and an escape's 2 * MAX_ESCAPE_BITS bits
_ROWS_IN_MESSAGE = 10


class DamagedCodeError(ValueError):
    """Codes that no encoder wrote with these tables.

    Attributes:
      rows: The indices of the damaged codes.
    """

    def __init__(self, rows: Sequence[int], num_rows: int) -> None:
        self.rows = tuple(int(row) for row in rows)
        shown = ", ".join(map(str, self.rows[:_ROWS_IN_MESSAGE]))
        more = ", ..." if len(self.rows) > _ROWS_IN_MESSAGE else ""
        super().__init__(f"{len(self.rows)} of {num_rows} codes are damaged or of other tables: rows {shown}{more}.")

    def __reduce__(self) -> tuple:  # worker processes hand errors on as pickles
        return _restore_error, (self.rows, str(self))


def _restore_error(rows: tuple[int, ...], message: str) -> DamagedCodeError:
    error = DamagedCodeError(rows, len(rows))
    error.args = (message,)
    return error


def compress(tables: RangeCodingTables, z_hat: np.ndarray) -> list[bytes]:
    """Encode `z_hat` to one string a row.

    Args:
      tables: The range coding tables.
      z_hat: As for `encode`.

    Returns:
      n strings.

    Raises:
      ValueError: As `encode` does.
    """
    data, offsets = encode(tables, z_hat)
    joined = data.tobytes()
    return [joined[start:end] for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def decompress(tables: RangeCodingTables, codes: Sequence[bytes], broadcast_shape: Sequence[int] = ()) -> np.ndarray:
    """Decode strings that `compress` or tensorflow-compression wrote.

    Args:
      tables: The tables that the strings were written with.
      codes: n strings.
      broadcast_shape: As for `decode`.

    Returns:
      int32[n, *broadcast_shape, num_dims], `z_hat`.

    Raises:
      DamagedCodeError: As `decode` does.
    """
    offsets = np.zeros(len(codes) + 1, np.int64)
    np.cumsum([len(code) for code in codes], out=offsets[1:])
    return decode(tables, np.frombuffer(b"".join(codes), np.uint8), offsets, broadcast_shape)


def encode(tables: RangeCodingTables, z_hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode `z_hat` to one string a row, all in one array: the layout of Arrow's binary columns.

    Args:
      tables: The range coding tables.
      z_hat: Integers [n, ..., num_dims]; whole numbers of a floating-point type will do. All places of a row's
        middle axes share the tables.

    Returns:
      `(data, offsets)`: uint8[total] and int64[n + 1]; row i's string is `data[offsets[i]:offsets[i + 1]]`.

    Raises:
      ValueError: If the last axis is not `num_dims` long, or a value is not a whole number or is more than about
        2^30 away from its table. The message names row, dimension and value.
    """
    symbols = _symbols(tables, z_hat)
    num_rows, num_symbols = symbols.shape
    max_row_bytes = _MAX_BYTES_PER_SYMBOL * num_symbols + 4
    capacity = max_row_bytes + num_rows * (4 + num_symbols // 8)
    data, offsets, bad_row, bad_symbol = _encode_rows(
        *map(_read_only, (symbols, *tables.coder_arrays)), tables.precision, capacity, max_row_bytes
    )
    if bad_row >= 0:
        raise _value_error(tables, z_hat, bad_row, bad_symbol, "is too far from its table: training diverged?")
    return data, offsets


def decode(
    tables: RangeCodingTables, data: np.ndarray, offsets: np.ndarray, broadcast_shape: Sequence[int] = ()
) -> np.ndarray:
    """Decode strings that stand in one array.

    Damage is seen where tensorflow-compression's `decode_sanity_check` sees it: much of it decodes to wrong values
    in silence, so whatever stores the codes needs a checksum.

    Args:
      tables: The tables that the strings were written with.
      data: uint8[...], holds the strings.
      offsets: int64[n + 1], not decreasing; row i's string is `data[offsets[i]:offsets[i + 1]]`.
      broadcast_shape: The lengths of the axes of `z_hat` between the first and the last.

    Returns:
      int32[n, *broadcast_shape, num_dims], `z_hat`.

    Raises:
      DamagedCodeError: If codes are seen to be damaged.
      ValueError: If the offsets do not fit the data.
    """
    data = np.ascontiguousarray(data)
    offsets = np.ascontiguousarray(offsets, np.int64)
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"data must be uint8[total], not {data.dtype}{list(data.shape)}.")
    if offsets.ndim != 1 or not len(offsets):
        raise ValueError(f"offsets must be int64[n + 1], not of shape {offsets.shape}; no strings have offsets [0].")
    if offsets[0] < 0 or offsets[-1] > len(data) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"offsets must not decrease and must stay in [0, {len(data)}], the data's length.")
    num_rows = len(offsets) - 1
    z_hat = np.empty((num_rows, math.prod(broadcast_shape) * tables.num_dims), np.int32)
    damaged = np.zeros(num_rows, np.bool_)
    _decode_rows(*map(_read_only, (data, offsets, *tables.coder_arrays)), tables.precision, z_hat, damaged)
    if damaged.any():
        raise DamagedCodeError(np.flatnonzero(damaged).tolist(), num_rows)
    return z_hat.reshape(num_rows, *broadcast_shape, tables.num_dims)


def _symbols(tables: RangeCodingTables, z_hat: np.ndarray) -> np.ndarray:
    """Return z_hat as contiguous int32[n, symbols a row]."""
    z_hat = np.asarray(z_hat)
    if z_hat.ndim < 2 or z_hat.shape[-1] != tables.num_dims:
        raise ValueError(
            f"z_hat has shape {z_hat.shape}; these tables take [n, ..., {tables.num_dims}]. Are they another model's?"
        )
    rows = z_hat.reshape(len(z_hat), math.prod(z_hat.shape[1:]))
    if rows.dtype.kind not in "iuf":
        raise ValueError(f"z_hat must be integers, not {rows.dtype}.")
    if not np.can_cast(rows.dtype, np.int32):
        codable = (rows >= -(2**31)) & (rows < 2**31)
        if rows.dtype.kind == "f":
            codable &= rows == np.rint(rows)
        if not codable.all():
            row, symbol = np.argwhere(~codable)[0]
            raise _value_error(tables, z_hat, row, symbol, "cannot be coded: round z first, and check it for NaN.")
    return np.ascontiguousarray(rows, np.int32)


def _value_error(tables: RangeCodingTables, z_hat: np.ndarray, row: int, symbol: int, why: str) -> ValueError:
    value = np.asarray(z_hat)[row].reshape(-1)[symbol]
    return ValueError(f"z_hat of row {row} in dimension {symbol % tables.num_dims} is {value}, which {why}")


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written: Numba compiles anew for every mixture of writable and read-only."""
    view = array.view()
    view.flags.writeable = False
    return view


@jit
def _encode_rows(z_hat, cdf, start, first_upper, cdf_offset, precision, capacity, max_row_bytes):
    """Encode rows; return data, offsets, and the place of the first value that cannot be coded, or -1, -1."""
    num_rows = len(z_hat)
    data = np.empty(capacity, np.uint8)
    offsets = np.zeros(num_rows + 1, np.int64)
    for row in range(num_rows):
        begin = offsets[row]
        if begin + max_row_bytes > len(data):
            larger = np.empty(2 * len(data) + max_row_bytes, np.uint8)
            larger[:begin] = data[:begin]
            data = larger
        end, bad_symbol = _encode_row(z_hat[row], cdf, start, first_upper, cdf_offset, _U(precision), data, _U(begin))
        if bad_symbol >= 0:
            return data[:0], offsets, row, bad_symbol
        offsets[row + 1] = end
    return data[: offsets[-1]].copy(), offsets, -1, -1


@jit
def _encode_row(z_hat, cdf, start, first_upper, cdf_offset, shift, data, end):
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
            escape = np.int64(start[dim + _U(1)]) - np.int64(start[dim]) - 2
            escaped = index < 0 or index >= escape
            interval = _U(start[dim]) + _U(escape if escaped else index)
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
                distance = -index if index < 0 else index - escape + 1
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
def _decode_rows(data, offsets, cdf, start, first_upper, cdf_offset, precision, z_hat, damaged):
    """Decode rows two at a time, to fill the time that one waits for its product with the other.

    `ahead` is the distance of the code from `base`, always in [0, size): the tables end with 2^precision, so that
    some interval holds it, damaged or not. `base` itself is not needed before the end. The two halves of the loop are
    the same but for the names: a function of arrays would cost reference counts.
    """
    num_rows, num_symbols = z_hat.shape
    num_dims = _U(len(cdf_offset))
    shift = _U(precision)
    for row in range(0, num_rows, 2):
        row_a = _U(row)
        row_b = _U(min(row + 1, num_rows - 1))  # an odd last row is decoded twice
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
                factor = _U(first_upper[dim])
                # The first value, mostly 0, is by far the most frequent one: see whether it is that.
                upper = (size_a * factor) >> shift
                if ahead_a < upper:
                    z_hat[row_a, symbol] = cdf_offset[dim]
                    size_a = upper
                    if size_a <= _MIN_SIZE:
                        size_a <<= _U(16)
                        ahead_a = (ahead_a << _U(16)) | _next_16_bits(data, next_a, end_a)
                        next_a += _U(2)
                else:
                    # The second and the third value without a branch, the others by binary search.
                    interval = _U(start[dim]) + _U(1)
                    upper_1 = (size_a * _U(cdf[interval + _U(1)])) >> shift
                    upper_2 = (size_a * _U(cdf[interval + _U(2)])) >> shift
                    is_above = ahead_a >= upper_1
                    interval += _U(is_above)
                    lower = upper_1 if is_above else upper
                    upper = upper_2 if is_above else upper_1
                    escape = _U(start[dim + _U(1)]) - _U(2)
                    if ahead_a >= upper:
                        interval = _search(cdf, interval + _U(1), escape + _U(1), size_a, ahead_a, shift)
                        lower = (size_a * _U(cdf[interval])) >> shift
                        upper = (size_a * _U(cdf[interval + _U(1)])) >> shift
                    ahead_a -= lower
                    size_a = upper - lower
                    bits = _U(16) if size_a <= _MIN_SIZE else _U(0)
                    incoming = _next_16_bits(data, next_a, end_a) & ((_U(1) << bits) - _U(1))
                    ahead_a = (ahead_a << bits) | incoming
                    size_a <<= bits
                    next_a += bits >> _U(3)
                    index = np.int64(interval - _U(start[dim]))
                    if interval == escape:
                        index, next_a, ahead_a, size_a = _decode_escape(index, data, next_a, end_a, ahead_a, size_a)
                        damaged[row_a] |= index == _DAMAGE
                    z_hat[row_a, symbol] = index + cdf_offset[dim]
                upper = (size_b * factor) >> shift
                if ahead_b < upper:
                    z_hat[row_b, symbol] = cdf_offset[dim]
                    size_b = upper
                    if size_b <= _MIN_SIZE:
                        size_b <<= _U(16)
                        ahead_b = (ahead_b << _U(16)) | _next_16_bits(data, next_b, end_b)
                        next_b += _U(2)
                else:
                    interval = _U(start[dim]) + _U(1)
                    upper_1 = (size_b * _U(cdf[interval + _U(1)])) >> shift
                    upper_2 = (size_b * _U(cdf[interval + _U(2)])) >> shift
                    is_above = ahead_b >= upper_1
                    interval += _U(is_above)
                    lower = upper_1 if is_above else upper
                    upper = upper_2 if is_above else upper_1
                    escape = _U(start[dim + _U(1)]) - _U(2)
                    if ahead_b >= upper:
                        interval = _search(cdf, interval + _U(1), escape + _U(1), size_b, ahead_b, shift)
                        lower = (size_b * _U(cdf[interval])) >> shift
                        upper = (size_b * _U(cdf[interval + _U(1)])) >> shift
                    ahead_b -= lower
                    size_b = upper - lower
                    bits = _U(16) if size_b <= _MIN_SIZE else _U(0)
                    incoming = _next_16_bits(data, next_b, end_b) & ((_U(1) << bits) - _U(1))
                    ahead_b = (ahead_b << bits) | incoming
                    size_b <<= bits
                    next_b += bits >> _U(3)
                    index = np.int64(interval - _U(start[dim]))
                    if interval == escape:
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
