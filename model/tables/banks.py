"""Banks of range coding tables: fitting them, and choosing one for each video.

One factorised prior cannot see that a cooking video and a car video switch on different dimensions. A bank of tables
for each kind of video can: a clustering of `z_hat` by code length, where a cluster's centre is how likely each
dimension is to be switched on, that is to differ from its likeliest value.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.tables.limits import MAX_BANKS
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.model.tables.widths import MAX_TILT, TILT_STEPS_PER_BIT, UNITS_PER_BIT, code_lengths

# To a bank's counts, this many rows of the shared tables' are added. Of 5 to 80, this is slightly the best on held-out
# YouTube-8M videos with 64 banks.
_SHARED_ROWS = 20.0
# A bank starts from a single video, which says little about each dimension.
_SHARED_ROWS_AT_FIRST = 2.0
_MAX_ITERATIONS = 30
_FEW_CHANGES = 1e-3

_UNITS_PER_TILT = UNITS_PER_BIT // TILT_STEPS_PER_BIT


def choose_banks(tables: RangeCodingTables, z_hat: np.ndarray) -> np.ndarray:
    """Return the bank with the shortest code for each row; if several are equally short, the first of them.

    Only dimensions that are switched on have to be looked at: a bank multiplies the odds of all values of a dimension,
    except the likeliest, by the same factor. With integers, this is off by thousandths of a bit.

    Args:
      tables: The tables.
      z_hat: int32[n, ..., num_dims].

    Returns:
      uint8[n].
    """
    if tables.num_banks == 1:
        return np.zeros(len(z_hat), np.uint8)
    rows = np.ascontiguousarray(z_hat, np.int32).reshape(len(z_hat), math.prod(z_hat.shape[1:]))
    return _choose(rows, tables.likeliest_value, *_costs(tables))


def fit_banks(tables: RangeCodingTables, z_hat: np.ndarray, num_banks: int, *, seed: int = 0) -> RangeCodingTables:
    """Fit banks to data, by hard expectation maximisation.

    Args:
      tables: Tables fitted to data like these, whose banks are replaced.
      z_hat: Integers [n, ..., num_dims], n >= 1; a few hundred rows for each bank are enough.
      num_banks: A power of two, 1 to 256. The footers of shards hold the banks, and every row names its bank.
      seed: Seed of the first banks, which are fitted to random rows.

    Returns:
      The tables with `num_banks` banks.

    Raises:
      ValueError: If `num_banks` is out of range, or there are fewer rows.
    """
    check_num_banks(num_banks)
    shared = tables.shared
    if num_banks == 1:
        return shared
    if len(z_hat) < num_banks:
        raise ValueError(
            f"{num_banks} banks cannot be fitted to {len(z_hat)} rows: give more rows, or use fewer banks."
        )
    rows = np.ascontiguousarray(z_hat, np.int32).reshape(len(z_hat), math.prod(z_hat.shape[1:]))
    seeds = np.random.default_rng(seed).choice(len(rows), num_banks, replace=False)
    bank = np.arange(num_banks, dtype=np.uint8)
    tables = _maximise(shared, rows[seeds], bank, num_banks, _SHARED_ROWS_AT_FIRST)
    bank = choose_banks(tables, rows)
    for _ in range(_MAX_ITERATIONS):
        tables = _maximise(shared, rows, bank, num_banks, _SHARED_ROWS)
        previous, bank = bank, choose_banks(tables, rows)
        if (bank != previous).mean() < _FEW_CHANGES:
            break
    return tables


def check_num_banks(num_banks: int) -> None:
    """Check that a number of banks is possible.

    Raises:
      ValueError: If not.
    """
    if not 1 <= num_banks <= MAX_BANKS or num_banks & (num_banks - 1):
        raise ValueError(f"There cannot be {num_banks} banks of tables: use a power of two from 1 to {MAX_BANKS}.")


def _maximise(
    shared: RangeCodingTables, rows: np.ndarray, bank: np.ndarray, num_banks: int, shared_rows: float
) -> RangeCodingTables:
    """Return the shared tables with the banks that fit rows best, where each row's bank is given."""
    counts = _count_switched_on(rows, shared.likeliest_value, bank, num_banks)
    positions = rows.shape[1] // shared.num_dims
    num_rows = np.bincount(bank, minlength=num_banks)[:, None] * positions
    shared_p = 1 - 2.0**-shared.precision * _likeliest_widths(shared)[0]
    p = (counts + shared_rows * shared_p) / (num_rows + shared_rows)
    tilt = np.log2(p / (1 - p)) - np.log2(shared_p / (1 - shared_p))
    tilt = np.clip(np.rint(tilt * TILT_STEPS_PER_BIT), -MAX_TILT, MAX_TILT).astype(np.int8)
    return dataclasses.replace(shared, bank_tilt=tilt)


@functools.lru_cache(maxsize=1)
def _costs(tables: RangeCodingTables) -> tuple[np.ndarray, np.ndarray]:
    """Return `likeliest_cost` and `tilt` as `_choose` takes them, computed once for all batches of a model."""
    likeliest_cost = code_lengths(_likeliest_widths(tables), tables.precision)
    # A bank that was left out must not be chosen.
    likeliest_cost = np.where(tables.has_bank, likeliest_cost.sum(axis=1), np.iinfo(np.int64).max >> 20)
    # A copy is always writable: one type for the compiler.
    return likeliest_cost, tables.bank_tilt.T.copy()


def _likeliest_widths(tables: RangeCodingTables) -> np.ndarray:
    """Return the width of the likeliest value's interval, int64[num_banks, num_dims]."""
    arrays = tables.coder_arrays
    interval = arrays.start + (tables.likeliest_value - tables.cdf_offset)
    return arrays.cdf[interval + 1].astype(np.int64) - arrays.cdf[interval]


@jit
def _choose(rows, likeliest_value, likeliest_cost, tilt):
    """Choose by the cost of a position of likeliest values, int64[num_banks], and tilts, int8[num_dims, num_banks]."""
    num_dims, num_banks = tilt.shape
    positions = rows.shape[1] // num_dims
    chosen = np.zeros(len(rows), np.uint8)
    is_on = np.empty(num_dims, np.uint8)
    on = np.empty(num_dims, np.uint32)
    tilts = np.empty(num_banks, np.int32)
    for row in range(len(rows)):
        tilts[:] = 0
        for first in range(0, rows.shape[1], num_dims):
            num_on = list_switched_on(rows[row, first : first + num_dims], likeliest_value, is_on, on)
            for dim in on[:num_on]:
                for bank in range(num_banks):
                    tilts[bank] += tilt[dim, bank]
        lowest_cost = likeliest_cost[0] * positions - _UNITS_PER_TILT * tilts[0]
        for bank in range(1, num_banks):
            cost = likeliest_cost[bank] * positions - _UNITS_PER_TILT * tilts[bank]
            if cost < lowest_cost:
                lowest_cost = cost
                chosen[row] = bank
    return chosen


@jit
def list_switched_on(z_hat, likeliest_value, is_on, on):
    """List the dimensions of int32[num_dims] that differ from their likeliest values in `on`; return how many.

    A processor cannot predict which ones do, so there is no branch. `is_on` uint8[num_dims] and `on` uint32[num_dims]
    are working space.
    """
    for dim in range(len(z_hat)):
        is_on[dim] = z_hat[dim] != likeliest_value[dim]
    num_on = np.uint64(0)
    for dim in range(np.uint64(len(z_hat))):
        on[num_on] = dim
        num_on += np.uint64(is_on[dim])
    return num_on


@jit
def _count_switched_on(rows, likeliest_value, banks, num_banks):
    num_dims = len(likeliest_value)
    counts = np.zeros((num_banks, num_dims), np.int64)
    for row in range(len(rows)):
        for first in range(0, rows.shape[1], num_dims):
            for dim in range(num_dims):
                counts[banks[row], dim] += rows[row, first + dim] != likeliest_value[dim]
    return counts
