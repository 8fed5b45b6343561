"""Widths of the intervals of range coding tables: from probabilities to integers that add up to a power of two.

All functions take the widths of all dimensions one after the other; `start` says where those of each dimension begin.
"""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np

# Fitted widths have this many significant bits after the first: rounding to them costs 0.02 % of the bits, and saves a
# fifth of the bytes.
SIGNIFICANT_BITS = 3

# Tilts are in halves of a bit. On YouTube-8M, whole bits cost 0.4 % more code bytes, and quarters save 0.1 %.
TILT_STEPS_PER_BIT = 2
# The odds change by at most 2^12 either way: all products stay below 2^63.
MAX_TILT = 12 * TILT_STEPS_PER_BIT
_TILT_FACTOR_BITS = 15
_HALF_BIT = 46341  # 2^(15 + 1/2)

# More bits than the number of intervals in a dimension has.
_RANK_BITS = 17

# Code lengths are compared in integers, so that every machine decides alike.
UNITS_PER_BIT = 1024


def code_lengths(widths: np.ndarray, precision: int) -> np.ndarray:
    """Return what intervals of some widths, of 2^precision in all, take in units of 1/`UNITS_PER_BIT` bit, int64."""
    # A logarithm's last bit may differ between machines. None of the 65,536 comes near enough to a half to matter.
    return np.rint((precision - np.log2(widths)) * UNITS_PER_BIT).astype(np.int64)


def check_precision(precision: int) -> None:
    """Raise a ValueError if probabilities cannot be multiples of 2^-precision."""
    if not 1 <= precision <= 16:
        raise ValueError(f"precision is {precision}: the range coder takes 1 to 16.")


def check_dims(fine: np.ndarray, values: np.ndarray, what: str) -> None:
    """Raise a ValueError that names the first dimension that is not fine, and says `what` is wrong with its value."""
    if not fine.all():
        dim = int(np.argmin(fine))
        raise ValueError(f"Dimension {dim} has {what.format(values[dim])}.")


def round_to_widths(weights: np.ndarray, start: np.ndarray, precision: int) -> np.ndarray:
    """Return intervals of at least 1 that add up to 2^precision in each dimension, at nearly the least code length.

    The code length is least if every interval is `max(1, scale * weight)`. These are rounded down, and what is left
    goes to the intervals that gain most from it.

    Args:
      weights: float64[total], not negative, proportional to the probabilities.
      start: int64[num_dims + 1], where each dimension's begin.
      precision: 1 to 16.

    Returns:
      int64[total].
    """
    _check_num_values(start, precision)
    sizes = np.diff(start)
    total = 1 << precision
    # So that a dimension of no weight at all is split evenly.
    sums = np.add.reduceat(weights, start[:-1])
    weights = weights + np.repeat(np.where(sums > 0, 0.0, 1.0), sizes)
    widest = np.maximum.reduceat(weights, start[:-1])
    narrow = np.zeros(len(weights), bool)
    while True:
        remaining = np.add.reduceat(np.where(narrow, 0.0, weights), start[:-1])
        room = total - np.add.reduceat(narrow.astype(np.int64), start[:-1])
        scale = np.divide(room, remaining, out=np.zeros(len(sizes)), where=remaining > 0)
        scaled = weights * np.repeat(scale, sizes)
        # The widest interval takes what is left, so it is never a narrow one.
        newly = (scaled < 1) & ~narrow & (weights < np.repeat(widest, sizes))
        if not newly.any():
            break
        narrow |= newly
    widths = np.where(narrow, 1, np.maximum(np.floor(scaled * (1 - 1e-12)), 1)).astype(np.int64)
    missing = total - np.add.reduceat(widths, start[:-1])
    gain = weights * np.log1p(1 / widths)
    dim = np.repeat(np.arange(len(sizes)), sizes)
    by_gain = np.lexsort((-gain, dim))
    rank = np.arange(len(weights)) - np.repeat(start[:-1], sizes)
    widths[by_gain] += rank < np.repeat(missing, sizes)
    return widths


def round_one_by_one(weights: np.ndarray, start: np.ndarray, precision: int) -> np.ndarray:
    """Return intervals of at least 1 that add up to 2^precision in each dimension: tensorflow-compression's.

    Each weight is rounded by itself. Then one interval after the other gives or takes 1, each time the one where that
    costs least or gains most, until the sum is right.

    Args:
      weights: float32[total], probabilities that add up to about 1 in each dimension.
      start: int64[num_dims + 1], where each dimension's begin.
      precision: 1 to 16.

    Returns:
      int64[total].
    """
    _check_num_values(start, precision)
    total = 1 << precision
    widths = np.maximum(np.rint(weights * np.float32(total)), 1).astype(np.int64)
    excess = np.add.reduceat(widths, start[:-1]) - total
    for dim in np.flatnonzero(excess):
        step = -1 if excess[dim] > 0 else 1
        part = slice(start[dim], start[dim + 1])
        weight, width = weights[part].tolist(), widths[part].tolist()

        def cost(index: int, step: int = step, weight: list = weight, width: list = width) -> float:
            """Return how many bits of the expected code length the step costs."""
            if width[index] + step < 1:
                return math.inf
            return weight[index] * (math.log2(width[index]) - math.log2(width[index] + step))

        # If several intervals are equally good, the one that has waited longest comes first.
        turn = itertools.count()
        queue = [(cost(index), next(turn), index) for index in range(len(width))]
        heapq.heapify(queue)
        for _ in range(abs(excess[dim])):
            index = queue[0][2]
            width[index] += step
            heapq.heapreplace(queue, (cost(index), next(turn), index))
        widths[part] = width
    return widths


def _check_num_values(start: np.ndarray, precision: int) -> None:
    check_precision(precision)
    most = (1 << precision) - 1
    num_values = np.diff(start) - 1
    check_dims(
        num_values <= most, num_values, f"{{}} values, which do not fit precision {precision}: use {most} or fewer"
    )


def shorten(widths: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Round widths to few significant bits, which take fewer bytes; the widest of a dimension keeps the sum right."""
    sizes = np.diff(start)
    dim = np.repeat(np.arange(len(sizes)), sizes)
    widest = np.lexsort((widths, dim))[start[1:] - 1]
    shift = rounding_shift(widths)
    rounded = (widths + (1 << shift >> 1)) >> shift << shift
    rounded[widest] = widths[widest]
    rest = np.add.reduceat(widths, start[:-1]) - np.add.reduceat(rounded, start[:-1])
    rounded[widest] += rest
    # In tables of many equally wide intervals, the widest one might not be wide enough for that.
    return np.where(np.repeat(np.abs(rest) * 8 > widths[widest], sizes), widths, rounded)


def rounding_shift(widths: np.ndarray) -> np.ndarray:
    """Return how many low bits of each width are not significant."""
    return np.maximum(np.frexp(widths.astype(np.float64))[1].astype(np.int64) - 1 - SIGNIFICANT_BITS, 0)


def tilt_widths(widths: np.ndarray, start: np.ndarray, tilt: np.ndarray, precision: int) -> np.ndarray:
    """Multiply the odds of all but the likeliest value of each dimension, in integers: every machine gets the same.

    Args:
      widths: int64[total].
      start: int64[num_dims + 1].
      tilt: int64[num_dims], log2 of the factor on the odds in steps of 1 / `TILT_STEPS_PER_BIT`, within `MAX_TILT`. A
        dimension with 0 keeps its widths.
      precision: The widths of a dimension add up to 2^precision.

    Returns:
      int64[total], at least 1 each, with the same sums.
    """
    sizes = np.diff(start)
    dim = np.repeat(np.arange(len(sizes)), sizes)
    likeliest = likeliest_interval(widths, start)
    bits, half = np.divmod(np.abs(tilt), TILT_STEPS_PER_BIT)
    factor = np.where(half, _HALF_BIT, 1 << _TILT_FACTOR_BITS) << bits
    weights = widths * np.where(tilt > 0, factor, 1 << _TILT_FACTOR_BITS)[dim]
    weights[likeliest] = widths[likeliest] * np.where(tilt < 0, factor, 1 << _TILT_FACTOR_BITS)
    # Each gets 1, and its share of what is left, rounded down; the likeliest takes the remainder.
    room = (1 << precision) - sizes
    tilted = 1 + weights * room[dim] // np.add.reduceat(weights, start[:-1])[dim]
    tilted[likeliest] += (1 << precision) - np.add.reduceat(tilted, start[:-1])
    return np.where((tilt == 0)[dim], widths, tilted)


def likeliest_interval(widths: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the index of each dimension's widest interval, the first if several are equally wide: int64[num_dims]."""
    rank = np.arange(len(widths)) - np.repeat(start[:-1], np.diff(start))
    widest = np.maximum.reduceat((widths << _RANK_BITS) - rank, start[:-1])
    return start[:-1] + -widest % (1 << _RANK_BITS)


def by_rank_order(sizes: np.ndarray) -> np.ndarray:
    """Return the order that puts the first entries of all dimensions before the second ones, and so on."""
    rank = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.argsort(rank, kind="stable")


def cdf_of_widths(widths: np.ndarray, start: np.ndarray, precision: int) -> np.ndarray:
    """Return the cumulative distributions of each dimension's widths: one entry more than widths each."""
    # There is a 0 before each dimension's widths. Before each but the first, it becomes what takes the sum back to 0.
    return np.cumsum(np.insert(widths, start[:-1], np.where(start[:-1] > 0, -(1 << precision), 0)))


def widths_of_cdf(cdf: np.ndarray, cdf_start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `cdf_of_widths` was made of.

    Args:
      cdf: Integers [total], the distributions one after the other.
      cdf_start: Integers [num_dims + 1], where each begins.

    Returns:
      `(widths int64[total - num_dims], start [num_dims + 1])`.
    """
    widths = np.delete(np.diff(cdf), cdf_start[1:-1] - 1)  # without what lies between two distributions
    return widths.astype(np.int64), cdf_start - np.arange(len(cdf_start))
