"""How many bits values take under range coding tables, escapes included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vidpress.model.tables.range_coding_tables import RangeCodingTables

_CHUNK = 1 << 20  # symbols worked on at a time


def bits_by_row(tables: RangeCodingTables, z_hat: np.ndarray, bank: np.ndarray | None = None) -> np.ndarray:
    """Return each row's information under the tables.

    Args:
      tables: The range coding tables.
      z_hat: Integers [n, ..., num_dims].
      bank: uint8[n], each row's bank; None if there is only one.

    Returns:
      float64[n], bits.

    Raises:
      ValueError: If `z_hat` has another shape or type.
    """
    positions = [chunk.sum(axis=1) for chunk in _symbol_bits(tables, z_hat, bank)]
    shape = (len(z_hat), int(np.prod(np.shape(z_hat)[1:-1], dtype=np.int64)))
    return np.concatenate([np.empty(0), *positions]).reshape(shape).sum(axis=1)


def bits_by_dim(tables: RangeCodingTables, z_hat: np.ndarray, bank: np.ndarray | None = None) -> np.ndarray:
    """Return each dimension's mean information under the tables.

    Args:
      tables: The range coding tables.
      z_hat: Integers [n, ..., num_dims], n >= 1.
      bank: uint8[n], each row's bank; None if there is only one.

    Returns:
      float64[num_dims], bits a symbol.

    Raises:
      ValueError: If `z_hat` has another shape or type, or is empty.
    """
    total = np.zeros(tables.num_dims)
    for chunk in _symbol_bits(tables, z_hat, bank):
        total += chunk.sum(axis=0)
    if not np.size(z_hat):
        raise ValueError("An empty z_hat has no mean: give at least one row.")
    return total * (tables.num_dims / np.size(z_hat))


def _symbol_bits(tables: RangeCodingTables, z_hat: np.ndarray, bank: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield the bits of the symbols in chunks float64[some positions, num_dims]."""
    z_hat = np.asarray(z_hat)
    if z_hat.ndim < 2 or z_hat.shape[-1] != tables.num_dims or z_hat.dtype.kind not in "iu":
        raise ValueError(
            f"z_hat is {z_hat.dtype}{list(z_hat.shape)}; these tables take integers [n, ..., {tables.num_dims}]."
        )
    bank = tables.check_bank(bank, len(z_hat))
    rows = z_hat.reshape(-1, tables.num_dims)
    bank = np.repeat(bank, len(rows) // max(len(z_hat), 1))
    arrays = tables.coder_arrays
    widths = np.diff(arrays.cdf.astype(np.int64), append=0)  # the differences between two distributions are not used
    interval_bits = tables.precision - np.log2(np.maximum(widths, 1))
    step = max(1, _CHUNK // tables.num_dims)
    for first in range(0, len(rows), step):
        index = rows[first : first + step].astype(np.int64) - tables.cdf_offset
        escaped = (index < 0) | (index >= arrays.escape)
        interval = arrays.start[bank[first : first + step]] + np.where(escaped, arrays.escape, index)
        bits = interval_bits[interval]
        if escaped.any():
            index = index[escaped]
            above = np.broadcast_to(arrays.escape, escaped.shape)[escaped]
            distance = np.where(index < 0, -index, index - above + 1)
            # The Elias gamma code takes 2 floor(log2(distance)) + 1 bits, the sign 1.
            bits[escaped] += 2 * (np.frexp(distance.astype(np.float64))[1] - 1) + 2
        yield bits
