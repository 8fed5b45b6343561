"""Where the features of a serialized Example or SequenceExample stand, found without a copy; compiled by Numba.

Only the plain form is understood, which every writer of TFRecords uses: a message of `Features` or `FeatureLists`, of
map entries, of a key and a value, each once and in order. It says so where it meets anything else that protocol buffers
allow, for the real parser to decide.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit

_MAX_ENTRIES = 64
_LENGTH_DELIMITED = 2


@jit
def locate_entries(message: np.ndarray) -> tuple[np.ndarray, bool]:
    """Find the map entries in the outer messages' field 1 of fields 1 (context) and 2 (feature lists).

    Args:
      message: uint8[num_bytes], the serialized message.

    Returns:
      int64[num_entries, 5]: the outer field, and where the key and the value begin and end; and whether the message is
      plain, without which the places mean nothing.
    """
    places = np.empty((_MAX_ENTRIES, 5), np.int64)
    count = 0
    outer_end = 0
    while outer_end < len(message):
        outer, entry_end, outer_end = _field(message, outer_end, len(message))
        if outer != 1 and outer != 2:
            return places[:0], False
        while entry_end < outer_end:
            number, begin, entry_end = _field(message, entry_end, outer_end)
            key, key_begin, key_end = _field(message, begin, entry_end)
            value, value_begin, value_end = _field(message, key_end, entry_end)
            if number != 1 or key != 1 or value != 2 or value_end != entry_end or count == _MAX_ENTRIES:
                return places[:0], False
            places[count, 0] = outer
            places[count, 1] = key_begin
            places[count, 2] = key_end
            places[count, 3] = value_begin
            places[count, 4] = value_end
            count += 1
    return places[:count], True


@jit
def _field(message, begin, end):
    """Return number, begin and end of the length-delimited field at `begin`; number 0 and `end`, `end` if none is."""
    position = begin + 1
    if position >= end or message[begin] & 7 != _LENGTH_DELIMITED or message[begin] > 0x7F:
        return 0, end, end
    length = np.int64(0)
    for shift in range(0, 35, 7):
        if position >= end:
            return 0, end, end
        byte = message[position]
        position += 1
        length |= np.int64(byte & 0x7F) << shift
        if byte < 0x80:
            if length > end - position:
                break
            return np.int64(message[begin]) >> 3, position, position + length
    return 0, end, end


@jit
def all_begin_with(rows: np.ndarray, header: np.ndarray) -> bool:
    """Return whether each of `rows`, uint8[n, m], begins with `header`, uint8[k], k <= m."""
    for i in range(len(rows)):
        for j in range(len(header)):
            if rows[i, j] != header[j]:
                return False
    return True
