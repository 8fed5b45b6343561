"""The range coder: `z_hat` to bytes and back, compiled by Numba.

It is the range coder of G. N. N. Martin, "Range coding: an algorithm for removing redundancy from a digitised
message" (Video & Data Recording Conference, 1979), in the form that tensorflow-compression gave it
(`cc/lib/range_coder.{h,cc}` and `cc/kernels/range_coder_kernels.cc`): a code is byte for byte what
`ContinuousBatchedEntropyModel.compress` returns for the same tables. A change to the bytes is a breaking release.

A code is a number in [0, 1), in base 256 without trailing zeros. The coder narrows an interval `[base, base +
size)`, at first [0, 2^32), to the part that the next symbol's interval in its dimension's table stands for; when
`size` is 2^16 or less, the upper 16 bits of `base` are written and both shift up by 16 bits. Symbols use the tables
in turn, starting again after the last. A value outside its table is coded as the escape symbol, followed by the
Elias gamma code of its distance and by its sign, bit by bit.

The loops are those that `coder_loops` chooses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidpress.model.coding import coder_loops
from vidpress.model.errors import VidpressError
from vidpress.model.tables.banks import choose_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables

_ROWS_IN_MESSAGE = 10

# Memory that is new costs almost as much as decoding into it: the system has to clear it first. So decoded values of
# these sizes, in bytes, get memory that was used before. At most four blocks of each of four sizes wait for that.
_LEAST_REUSED, _MOST_REUSED = 2**17, 2**23
_MOST_UNUSED = 4
_ALIGNMENT = 64
_unused: dict[int, list[np.ndarray]] = {}


class DamagedCodeError(VidpressError, ValueError):
    """Codes that no encoder wrote with these tables.

    Attributes:
      rows: The indices of the damaged codes.
    """

    def __init__(self, rows: Sequence[int], num_rows: int) -> None:
        self.rows = tuple(int(row) for row in rows)
        shown = ", ".join(map(str, self.rows[:_ROWS_IN_MESSAGE]))
        more = ", ..." if len(self.rows) > _ROWS_IN_MESSAGE else ""
        super().__init__(
            f"{len(self.rows)} of {num_rows} codes are damaged or belong to other tables: rows {shown}{more}."
        )

    def __reduce__(self) -> tuple:  # worker processes pass errors on as pickles
        return _restore_error, (self.rows, str(self))


def _restore_error(rows: tuple[int, ...], message: str) -> DamagedCodeError:
    error = DamagedCodeError(rows, len(rows))
    error.args = (message,)
    return error


def compress(tables: RangeCodingTables, z_hat: np.ndarray, bank: np.ndarray | None = None) -> list[bytes]:
    """Encode `z_hat` to one string for each row.

    Args:
      tables: The range coding tables.
      z_hat: As for `encode`.
      bank: As for `encode`.

    Returns:
      n strings.

    Raises:
      ValueError: As `encode` does.
    """
    return _strings(*encode(tables, z_hat, bank))


class EncodedRows(NamedTuple):
    """What `encode_cheapest` returns.

    Attributes:
      data: uint8[total], the strings one after the other.
      offsets: int64[n + 1]; row i's string is `data[offsets[i]:offsets[i + 1]]`.
      bank: uint8[n], each row's bank.
    """

    data: np.ndarray
    offsets: np.ndarray
    bank: np.ndarray

    def strings(self) -> list[bytes]:
        """Return the strings, one for each row."""
        return _strings(self.data, self.offsets)


def encode_cheapest(tables: RangeCodingTables, z_hat: np.ndarray) -> EncodedRows:
    """Choose the bank with the shortest code for each row, and encode.

    Args:
      tables: The range coding tables.
      z_hat: As for `encode`.

    Raises:
      ValueError: As `encode` does.
    """
    bank = choose_banks(tables, z_hat)
    return EncodedRows(*encode(tables, z_hat, bank), bank)


def decompress(
    tables: RangeCodingTables,
    codes: Sequence[bytes],
    broadcast_shape: Sequence[int] = (),
    bank: np.ndarray | None = None,
) -> np.ndarray:
    """Decode strings that `compress` or tensorflow-compression wrote.

    Args:
      tables: The tables that the strings were written with.
      codes: n strings.
      broadcast_shape: As for `decode`.
      bank: As for `decode`.

    Returns:
      int32[n, *broadcast_shape, num_dims], `z_hat`.

    Raises:
      DamagedCodeError: As `decode` does.
    """
    offsets = np.zeros(len(codes) + 1, np.int64)
    np.cumsum([len(code) for code in codes], out=offsets[1:])
    return decode(tables, np.frombuffer(b"".join(codes), np.uint8), offsets, broadcast_shape, bank)


def encode(
    tables: RangeCodingTables, z_hat: np.ndarray, bank: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode `z_hat` to one string for each row, all in one array: the layout of Arrow's binary columns.

    Args:
      tables: The range coding tables.
      z_hat: Integers [n, ..., num_dims]; whole numbers of a floating-point type are accepted too. All positions on a
        row's middle axes share the tables.
      bank: uint8[n], each row's bank; None if there is only one.

    Returns:
      `(data, offsets)`: uint8[total] and int64[n + 1]; row i's string is `data[offsets[i]:offsets[i + 1]]`.

    Raises:
      ValueError: If the last axis is not `num_dims` long, if the tables do not have a bank, or if a value is not a
        whole number or is more than about 2^30 away from its table. The message names row, dimension and value.
    """
    symbols = _symbols(tables, z_hat)
    bank = tables.check_bank(bank, len(symbols))
    data, offsets, bad_row, bad_symbol = coder_loops.chosen().encode_rows(
        _read_only(symbols), _read_only(bank), tables.coder_arrays, tables.precision
    )
    if bad_row >= 0:
        raise _value_error(tables, z_hat, bad_row, bad_symbol, "is too far from its table: training diverged?")
    return data, offsets


def decode(
    tables: RangeCodingTables,
    data: np.ndarray,
    offsets: np.ndarray,
    broadcast_shape: Sequence[int] = (),
    bank: np.ndarray | None = None,
) -> np.ndarray:
    """Decode strings that are in one array.

    Damage is noticed where tensorflow-compression's `decode_sanity_check` notices it. Much damage is not noticed and
    decodes to wrong values, so whatever stores the codes needs a checksum.

    Args:
      tables: The tables that the strings were written with.
      data: uint8[...], which contains the strings.
      offsets: int64[n + 1], not decreasing; row i's string is `data[offsets[i]:offsets[i + 1]]`.
      broadcast_shape: The lengths of the axes of `z_hat` between the first and the last.
      bank: uint8[n], each row's bank; None if there is only one.

    Returns:
      int32[n, *broadcast_shape, num_dims], `z_hat`.

    Raises:
      DamagedCodeError: If codes are found to be damaged.
      ValueError: If the offsets do not fit the data, or if the tables do not have a bank.
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
    z_hat = _empty_int32(num_rows, math.prod(broadcast_shape) * tables.num_dims)
    damaged = np.zeros(num_rows, np.bool_)
    strings = _read_only(data), _read_only(offsets), _read_only(tables.check_bank(bank, num_rows))
    coder_loops.chosen().decode_rows(*strings, tables.coder_arrays, tables.precision, z_hat, damaged)
    if damaged.any():
        raise DamagedCodeError(np.flatnonzero(damaged).tolist(), num_rows)
    return z_hat.reshape(num_rows, *broadcast_shape, tables.num_dims)


def _empty_int32(num_rows: int, num_symbols: int) -> np.ndarray:
    """Return an array for decoded values, in memory that an earlier one had, if nothing refers to that any more."""
    size = 4 * num_rows * num_symbols
    if not _LEAST_REUSED <= size <= _MOST_REUSED:
        return np.empty((num_rows, num_symbols), np.int32)
    if size not in _unused and len(_unused) >= _MOST_UNUSED:
        _unused.clear()
    blocks = _unused.setdefault(size, [])
    try:
        block = blocks.pop()
    except IndexError:  # aligned, so that frameworks can take it as it is
        block = np.empty(size + _ALIGNMENT, np.uint8)
        block = block[-block.ctypes.data % _ALIGNMENT :][:size]
    return np.asarray(_Loan(block, blocks)).reshape(num_rows, num_symbols)


class _Loan:
    """Memory that is lent to an array. The array and all of its views refer to this, and with the last it goes back."""

    def __init__(self, block: np.ndarray, blocks: list[np.ndarray]):
        self._block, self._blocks = block, blocks
        self.__array_interface__ = {**block.__array_interface__, "shape": (block.size // 4,), "typestr": "=i4"}
        del self.__array_interface__["descr"]

    def __del__(self) -> None:
        if len(self._blocks) < _MOST_UNUSED:
            self._blocks.append(self._block)


def _strings(data: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    joined = data.tobytes()
    return [joined[start:end] for start, end in itertools.pairwise(offsets.tolist())]


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
    """Return a read-only view: Numba compiles again for every combination of writable and read-only arrays."""
    view = array.view()
    view.flags.writeable = False
    return view
