"""Sorted ids, and where others are among them, in compiled code."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from vidpress.model.compiled import jit


class SortedIds:
    """Ids in ascending order, which other sorted ids are looked for in.

    Args:
      column: The ids, one at least, without nulls.
    """

    def __init__(self, column: pa.BinaryArray):
        _, offsets, data = column.buffers()
        self._offsets = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
        self._data = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        for array in (self._offsets, self._data):  # Numba compiles again for arrays that can be written
            array.flags.writeable = False

    def places(self, wanted: SortedIds, start: int, stop: int) -> np.ndarray:
        """Find ids `start` to `stop` of others among these.

        Returns:
          int64[stop - start], the place of each; -1 if it is not among these.
        """
        return _places(self._data, self._offsets, wanted._data, wanted._offsets, start, stop)


@jit
def _places(data, offsets, wanted, wanted_offsets, start, stop):
    places = np.full(stop - start, -1, np.int64)
    first = 0
    for index in range(start, stop):
        begin, length = wanted_offsets[index], wanted_offsets[index + 1] - wanted_offsets[index]
        last = len(offsets) - 1
        while first < last:  # the first id that is not less
            middle = (first + last) // 2
            if _compare(data, offsets[middle], offsets[middle + 1] - offsets[middle], wanted, begin, length) < 0:
                first = middle + 1
            else:
                last = middle
        if first < len(offsets) - 1:
            of_first = offsets[first + 1] - offsets[first]
            if _compare(data, offsets[first], of_first, wanted, begin, length) == 0:
                places[index - start] = first
    return places


@jit
def _compare(a, begin_a, length_a, b, begin_b, length_b):
    """Return less than 0, 0 or more than 0, as a string of `a` is less than one of `b`, equal, or greater."""
    for place in range(min(length_a, length_b)):
        if a[begin_a + place] != b[begin_b + place]:
            return np.int64(a[begin_a + place]) - np.int64(b[begin_b + place])
    return np.int64(length_a) - np.int64(length_b)
