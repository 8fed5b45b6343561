"""Fitting range coding tables to data: how far each dimension's table reaches, and how wide its intervals are."""

from __future__ import annotations

import numpy as np

from vidpress.model.tables.symbol_counts import SymbolCounts
from vidpress.model.tables.widths import check_precision, round_to_widths, shorten

# Added to the count of every value of a table, and of its escape. Chosen on held-out data. Krichevsky's and Trofimov's
# 1/2 is for symbols that are equally likely a priori, which rarely seen values are not.
_VALUE_PSEUDO_COUNT = 0.1
_ESCAPE_PSEUDO_COUNT = 0.5


def fit_widths(counts: SymbolCounts, precision: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the widths of intervals to counts, as `RangeCodingTables.fit` describes.

    Args:
      counts: Counts of the values of each dimension.
      precision: 1 to 16.

    Returns:
      `(widths int64[total], start int64[num_dims + 1], cdf_offset int64[num_dims])`.

    Raises:
      ValueError: If there are no counts, or if the precision is out of range.
    """
    if not counts.num_symbols:
        raise ValueError("Tables cannot be fitted to no data: give at least one row.")
    check_precision(precision)
    value, count = counts.value.astype(np.int64), counts.count
    mode = np.zeros(counts.num_dims, np.int64)
    by_count = np.lexsort((-np.abs(value), count))
    mode[counts.dim[by_count]] = value[by_count]  # the last assignment counts
    distance = value - mode[counts.dim]
    # How many bits an interval of the least width costs all other symbols.
    price = np.log2(np.e) * max(counts.num_symbols / (1 << precision), _VALUE_PSEUDO_COUNT)
    max_values = (1 << precision) - 1
    above = np.minimum(_reach(counts, distance, price), max_values - 1)
    below = np.minimum(_reach(counts, -distance, price), max_values - 1 - above)
    sizes = below + above + 2  # with the mode and the escape
    end = np.cumsum(sizes)
    weights = np.full(end[-1], _VALUE_PSEUDO_COUNT)
    weights[end - 1] = _ESCAPE_PSEUDO_COUNT
    index = distance + below[counts.dim]
    inside = (index >= 0) & (index < sizes[counts.dim] - 1)
    np.add.at(weights, np.where(inside, (end - sizes)[counts.dim] + index, end[counts.dim] - 1), count)
    start = np.append(0, end)
    widths = shorten(round_to_widths(weights, start, precision), start)
    return widths, start, mode - below


def _reach(counts: SymbolCounts, distance: np.ndarray, price: float) -> np.ndarray:
    """Return how far from the most frequent value a table should reach in the direction of positive distances.

    Args:
      counts: The counts.
      distance: int64[k], of each counted value from its dimension's most frequent one.
      price: Bits that a further interval costs.

    Returns:
      int64[num_dims].
    """
    side = np.flatnonzero(distance > 0)
    side = side[np.lexsort((distance[side], counts.dim[side]))]
    dim, distance = counts.dim[side], distance[side]
    # An interval saves at least an escape's Elias gamma code and sign. Here the distance is that from the most frequent
    # value.
    saved = np.cumsum(counts.count[side] * (2 * np.floor(np.log2(distance)) + 2))
    first = np.searchsorted(dim, dim)
    saved -= np.where(first > 0, saved[first - 1], 0) if len(saved) else 0
    gain = saved - price * distance
    by_gain = np.argsort(gain, kind="stable")
    by_gain = by_gain[gain[by_gain] > 0]
    reach = np.zeros(counts.num_dims, np.int64)
    reach[dim[by_gain]] = distance[by_gain]  # the last assignment counts
    return reach
