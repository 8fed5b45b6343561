"""Where the parts of a serialized Example or SequenceExample are, found without a copy; compiled by Numba.

Messages are read as protocol buffers read them, in whatever form they were encoded: unknown fields are skipped; if a
`Feature` has values of two kinds, the last kind counts; and separate parts of one message are merged. Groups, which no
writer has used for these messages, are not read. Only places are allocated, and those are counted first.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit

# Kinds of `Feature`, which are the numbers of its fields.
NO_KIND, BYTES, FLOATS, INTEGERS = range(4)

# Limits for a record, which usually has a few features; error messages quote their names.
MAX_ENTRIES = 4096
MAX_NAME_BYTES = 4096

# What `locate_entries` returns as the number of entries if the message is unusable.
NO_MESSAGE, TOO_MANY_ENTRIES, LONG_NAME = -1, -2, -3

LENGTH_DELIMITED = 2  # the wire type of strings and messages
_VARINT, _FIXED64, _FIXED32 = 0, 1, 5
_MALFORMED = -1


@jit
def locate_entries(message: np.ndarray) -> tuple[np.ndarray, int]:
    """Find the map entries in the outer messages' field 1 of fields 1 (context) and 2 (feature lists).

    Args:
      message: uint8[num_bytes], the serialized message.

    Returns:
      int64[num_places, 6]: the outer field, the entry's number, and where its key and its value begin and end; a value
      that comes in parts has a place for each. And how many entries there are, or below 0 what is wrong.
    """
    places = np.empty((64, 6), np.int64)
    count = 0
    num_entries = 0
    outer_end = 0
    while outer_end < len(message):
        outer, wire, entry_end, outer_end = next_field(message, outer_end, len(message))
        if outer == 0:
            return places[:0], NO_MESSAGE
        if wire != LENGTH_DELIMITED or outer > 2:
            continue
        while entry_end < outer_end:
            number, wire, begin, entry_end = next_field(message, entry_end, outer_end)
            if number == 0:
                return places[:0], NO_MESSAGE
            if wire != LENGTH_DELIMITED or number != 1:
                continue
            first = count
            key_begin = key_end = 0
            while begin < entry_end:
                number, wire, value_begin, begin = next_field(message, begin, entry_end)
                if number == 0:
                    return places[:0], NO_MESSAGE
                if wire == LENGTH_DELIMITED and number == 1:
                    key_begin, key_end = value_begin, begin
                elif wire == LENGTH_DELIMITED and number == 2:
                    if count == MAX_ENTRIES:
                        return places[:0], TOO_MANY_ENTRIES
                    places = _grown(places, count)
                    places[count, 4], places[count, 5] = value_begin, begin
                    count += 1
            if count == first:  # an entry without a value has an empty one
                if count == MAX_ENTRIES:
                    return places[:0], TOO_MANY_ENTRIES
                places = _grown(places, count)
                places[count, 4] = places[count, 5] = 0
                count += 1
            if key_end - key_begin > MAX_NAME_BYTES:
                return places[:0], LONG_NAME
            places[first:count, 0] = outer
            places[first:count, 1] = num_entries
            places[first:count, 2] = key_begin
            places[first:count, 3] = key_end
            num_entries += 1
    return places[:count], num_entries


@jit
def survey_feature(feature: np.ndarray) -> tuple[int, int, int]:
    """Return what a serialized `Feature` holds.

    Args:
      feature: uint8[num_bytes].

    Returns:
      Its kind, or -1 if it is not such a message; how many values it has; and where they begin.
    """
    kind = count = start = end = 0
    while end < len(feature):
        position = end
        number, wire, begin, end = next_field(feature, position, len(feature))
        if number == 0:
            return _MALFORMED, 0, 0
        if wire != LENGTH_DELIMITED or number > INTEGERS:
            continue
        if number != kind:
            kind, count, start = number, 0, position
        added = _count_values(feature, begin, end, kind)
        if added < 0:
            return _MALFORMED, 0, 0
        count += added
    return kind, count, start


@jit
def locate_values(feature: np.ndarray, kind: int, count: int, start: int) -> np.ndarray:
    """Return where each value of a `Feature` begins and ends, int64[count, 2], as `survey_feature` counted them."""
    places = np.empty((count, 2), np.int64)
    found = 0
    end = start
    while end < len(feature):
        number, wire, begin, end = next_field(feature, end, len(feature))
        if wire != LENGTH_DELIMITED or number != kind:
            continue
        while begin < end:
            number, wire, value, begin = next_field(feature, begin, end)
            if number != 1:
                continue
            if kind == BYTES and wire == LENGTH_DELIMITED:
                places[found, 0], places[found, 1] = value, begin
                found += 1
            elif kind == FLOATS and wire in (_FIXED32, LENGTH_DELIMITED):
                for position in range(value, begin, 4):
                    places[found, 0], places[found, 1] = position, position + 4
                    found += 1
            elif kind == INTEGERS and wire in (_VARINT, LENGTH_DELIMITED):
                while value < begin:
                    _, after = _varint(feature, value, begin)
                    places[found, 0], places[found, 1] = value, after
                    found += 1
                    value = after
    return places


@jit
def read_floats(feature: np.ndarray, count: int, start: int) -> np.ndarray:
    """Return the bytes of the values of a `Feature` of floats, uint8[count, 4]."""
    values = np.empty((count, 4), np.uint8)
    places = locate_values(feature, FLOATS, count, start)
    for index in range(count):
        values[index] = feature[places[index, 0] : places[index, 1]]
    return values


@jit
def read_integers(feature: np.ndarray, max_values: int) -> tuple[int, int, np.ndarray, np.int64, np.int64]:
    """Return a `Feature`'s kind and number of values, its integers, and the least and the greatest of them.

    The integers are int64[count]; they are empty if there are more than `max_values`, or values of another kind.
    """
    kind, count, start = survey_feature(feature)
    values = np.empty(count if kind == INTEGERS and count <= max_values else 0, np.int64)
    least = greatest = np.int64(0)
    if len(values):
        places = locate_values(feature, INTEGERS, count, start)
        for index in range(count):
            value = np.int64(_varint(feature, places[index, 0], places[index, 1])[0])
            values[index] = value
            least, greatest = (value, value) if index == 0 else (min(least, value), max(greatest, value))
    return kind, count, values, least, greatest


@jit
def _count_values(feature, begin, end, kind):
    """Return how many values the list from `begin` to `end` has, or -1 if it is not such a message."""
    count = 0
    while begin < end:
        number, wire, value, begin = next_field(feature, begin, end)
        if number == 0:
            return -1
        if number != 1:
            continue
        if kind == BYTES:
            count += wire == LENGTH_DELIMITED
        elif kind == FLOATS:
            count += wire == _FIXED32
            if wire == LENGTH_DELIMITED:
                if (begin - value) % 4:
                    return -1
                count += (begin - value) // 4
        else:
            count += wire == _VARINT
            while wire == LENGTH_DELIMITED and value < begin:
                _, after = _varint(feature, value, begin)
                if after == value:
                    return -1
                count += 1
                value = after
    return count


@jit
def next_field(message, begin, end):
    """Return the number and the wire type of the field at `begin`, and where its value begins and ends.

    The number is 0 if there is no field.
    """
    tag, position = _varint(message, begin, end)
    if position == begin or position > begin + 5 or tag > 0xFFFFFFFF:
        return 0, 0, end, end
    number, wire = np.int64(tag >> np.uint64(3)), np.int64(tag & np.uint64(7))
    begin = position
    if wire == LENGTH_DELIMITED:
        length, begin = _varint(message, position, end)
        if begin == position or length > np.uint64(end - begin):
            return 0, 0, end, end
        position = begin + np.int64(length)
    elif wire == _VARINT:
        position = _varint(message, begin, end)[1]
        if position == begin:
            return 0, 0, end, end
    elif wire == _FIXED64:
        position += 8
    elif wire == _FIXED32:
        position += 4
    else:
        return 0, 0, end, end
    if position > end:
        return 0, 0, end, end
    return number, wire, begin, position


@jit
def _varint(message, begin, end):
    """Return the integer at `begin`, uint64, and where it ends; `begin` if there is none."""
    if begin < end and message[begin] < 0x80:
        return np.uint64(message[begin]), begin + 1
    value = np.uint64(0)
    for index in range(min(10, end - begin)):
        byte = message[begin + index]
        value |= np.uint64(byte & 0x7F) << np.uint64(7 * index)
        if byte < 0x80:
            return value, begin + index + 1
    return np.uint64(0), begin


@jit
def _grown(places, count):
    """Return an array of places that has room for another one."""
    if count < len(places):
        return places
    larger = np.empty((2 * len(places), places.shape[1]), np.int64)
    larger[:count] = places
    return larger
