"""Rounding the bottleneck: to the nearest integers, of all activations or the largest of each row, or to cheaper ones.

Which activations are the largest is decided as rounding is: by fast sums where their bounds decide (`dense_layers`), or
by exact ones (`exact_sums`). So it is the same on every machine. Decoders need not know about it.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.frozen.dense_layers import Dense
from vidpress.model.frozen.nearest_rounding import round_to_nearest
from vidpress.model.frozen.rate_aware_rounding import round_to_cheaper
from vidpress.model.tables.banks import choose_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Some roundings to float64 of numbers that are compared, relative to a bound.
_SLACK = 1 + 2.0**-20


def round_bottleneck(
    layer: Dense, inputs: np.ndarray, tables: RangeCodingTables, *, rounding_lmbda: float, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers that are coded.

    Args:
      layer: The last layer.
      inputs: Its input, float32[n, in], or float64 if that is not rounded.
      tables: The range coding tables.
      rounding_lmbda: Cost of a bit, in squared rounding steps (`rate_aware_rounding`); 0 rounds to the nearest.
      top_k: How many activations of each row are kept, the largest and of equal ones the first; the others become 0,
        and what is 0 stays 0 in rate-aware rounding. With 0, all are kept.

    Returns:
      int32[n, num_dims]; bool[n], which rows could be rounded. If one could not, the integers are of no use.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        z, row_bounds = layer.bounded(inputs.astype(np.float32, copy=False))
    z_hat = np.empty(z.shape, np.int32)
    usable = round_to_nearest(layer, inputs, z, row_bounds, out=z_hat)
    if not usable.all():
        return z_hat, usable
    if top_k:
        z_hat[_all_but_largest(layer, inputs, z, z_hat, row_bounds, top_k)] = 0
    if rounding_lmbda:
        off = z_hat == 0 if top_k else None
        bank = choose_banks(tables, z_hat)
        left = round_to_cheaper(tables, z, z_hat, bank, rounding_lmbda, (row_bounds, layer.column_bounds))
        place = left.row, left.column
        beyond = left.direction * (layer.exact_at(inputs, *place) - z_hat[place])
        z_hat[place] += np.where(beyond > left.threshold, left.direction, 0).astype(np.int32)
        if off is not None:
            z_hat[off] = 0
    return z_hat, usable


def _all_but_largest(
    layer: Dense, inputs: np.ndarray, z: np.ndarray, z_hat: np.ndarray, row_bounds: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the activations that are not among the `top_k` largest, and do not round to 0."""
    dropped_rows, dropped_columns, rows, columns, left = _sort_out(z, z_hat, row_bounds, layer.column_bounds, top_k)
    if not len(rows):
        return dropped_rows, dropped_columns
    exact = layer.exact_at(inputs, rows, columns)
    order = np.lexsort((columns, -exact, rows))
    rows, columns = rows[order], columns[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    beyond = rank >= left[rows]
    return np.append(dropped_rows, rows[beyond]), np.append(dropped_columns, columns[beyond])


@jit
def _sort_out(z, z_hat, row_bounds, column_bounds, top_k):
    """Tell from each other what is among the largest for certain, what is not, and what the bounds leave undecided.

    The exact value that is the k-th largest is at most a bound away from the k-th largest of `z`. So a value that is
    more than two bounds away from that is on the same side of both. If `z` or a bound is not finite, all of a row is
    undecided.

    Returns:
      Rows and columns of what is not among the largest, and of what is undecided; and for each row how many of its
      undecided ones are among the largest.
    """
    num_rows, num_columns = z.shape
    rows, columns = [0 for _ in range(0)], [0 for _ in range(0)]
    undecided_rows, undecided_columns = [0 for _ in range(0)], [0 for _ in range(0)]
    left = np.zeros(num_rows, np.int64)
    on = np.empty(num_columns, np.int64)
    values = np.empty(num_columns, np.float64)
    for row in range(num_rows):
        num_on = 0
        bound = 0.0
        for column in range(num_columns):
            if z_hat[row, column] > 0:
                on[num_on] = column
                values[num_on] = z[row, column]
                num_on += 1
                own_bound = np.float64(row_bounds[row]) * np.float64(column_bounds[column])
                bound = max(bound, own_bound if np.isfinite(own_bound + z[row, column]) else np.inf)
        if num_on <= top_k:
            continue
        if bound == np.inf:
            above, below = np.inf, -np.inf
            values[:num_on] = 0
        else:
            least = np.sort(values[:num_on])[num_on - top_k]
            above, below = least + 2 * _SLACK * bound, least - 2 * _SLACK * bound
        left[row] = top_k - np.sum(values[:num_on] > above)
        num_undecided = np.sum((values[:num_on] >= below) & (values[:num_on] <= above))
        for number in range(num_on):
            if values[number] < below:
                rows.append(row)
                columns.append(on[number])
            elif values[number] <= above and num_undecided > left[row]:
                undecided_rows.append(row)
                undecided_columns.append(on[number])
    return (
        np.array(rows, np.int64),
        np.array(columns, np.int64),
        np.array(undecided_rows, np.int64),
        np.array(undecided_columns, np.int64),
        left,
    )
