"""Where the parts of a serialized Example or SequenceExample stand, found without a copy; compiled by Numba.

Messages are read as protocol buffers read them, in whatever form they were encoded: unknown fields are passed over, of
two kinds in a `Feature` the last one counts, and parts of one message that come apart belong together. Groups, which no
writer has used for these messages, are not read. Nothing is allocated but places, and those are counted first.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit

# Kinds of `Feature`, which are the numbers of its fields.
NO_KIND, BYTES, FLOATS, INTEGERS = range(4)

MAX_ENTRIES = 4096  # features of a record, of which a few are wanted

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MALFORMED = -1


@jit
def locate_entries(message: np.ndarray) -> tuple[np.ndarray, int]:
    """Find the map entries in the outer messages' field 1 of fields 1 (context) and 2 (feature lists).

    Args:
      message: uint8[num_bytes], the serialized message.

    Returns:
      int64[num_places, 6]: the outer field, the entry's number, and where its key and its value begin and end; a value
      that comes in parts has a place for each. And how many entries there are; -1 if it is no such message. Places are
      missing if there are more than `MAX_ENTRIES`.
    """
    places = np.empty((64, 6), np.int64)
    count = 0
    num_entries = 0
    outer_end = 0
    while outer_end < len(message):
        outer, wire, entry_end, outer_end = _field(message, outer_end, len(message))
        if outer == 0:
            return places[:0], -1
        if wire != _LENGTH_DELIMITED or outer > 2:
            continue
        while entry_end < outer_end:
            number, wire, begin, entry_end = _field(message, entry_end, outer_end)
            if number == 0:
                return places[:0], -1
            if wire != _LENGTH_DELIMITED or number != 1:
                continue
            first = count
            key_begin = key_end = 0
            while begin < entry_end:
                number, wire, value_begin, begin = _field(message, begin, entry_end)
                if number == 0:
                    return places[:0], -1
                if wire == _LENGTH_DELIMITED and number == 1:
                    key_begin, key_end = value_begin, begin
                elif wire == _LENGTH_DELIMITED and number == 2 and count < MAX_ENTRIES:
                    places = _grown(places, count)
                    places[count, 4], places[count, 5] = value_begin, begin
                    count += 1
            if count == first and count < MAX_ENTRIES:  # without a value, it is an empty one
                places = _grown(places, count)
                places[count, 4] = places[count, 5] = 0
                count += 1
            places[first:count, 0] = outer
            places[first:count, 1] = num_entries
            places[first:count, 2] = key_begin
            places[first:count, 3] = key_end
            num_entries += 1
    return places[:count], num_entries if count < MAX_ENTRIES else MAX_ENTRIES + 1


@jit
def survey_feature(feature: np.ndarray) -> tuple[int, int, int]:
    """Tell what a serialized `Feature` holds.

    Args:
      feature: uint8[num_bytes].

    Returns:
      Its kind, -1 if it is no such message; how many values it has; and from where on they stand.
    """
    kind = count = start = end = 0
    while end < len(feature):
        position = end
        number, wire, begin, end = _field(feature, position, len(feature))
        if number == 0:
            return _MALFORMED, 0, 0
        if wire != _LENGTH_DELIMITED or number > INTEGERS:
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
        number, wire, begin, end = _field(feature, end, len(feature))
        if wire != _LENGTH_DELIMITED or number != kind:
            continue
        while begin < end:
            number, wire, value, begin = _field(feature, begin, end)
            if number != 1:
                continue
            if kind == BYTES and wire == _LENGTH_DELIMITED:
                places[found, 0], places[found, 1] = value, begin
                found += 1
            elif kind == FLOATS and wire in (_FIXED32, _LENGTH_DELIMITED):
                for position in range(value, begin, 4):
                    places[found, 0], places[found, 1] = position, position + 4
                    found += 1
            elif kind == INTEGERS and wire in (_VARINT, _LENGTH_DELIMITED):
                while value < begin:
                    _, after = _varint(feature, value, begin)
                    places[found, 0], places[found, 1] = value, after
                    found += 1
                    value = after
    return places


@jit
def read_floats(feature: np.ndarray, count: int, start: int) -> np.ndarray:
    """Return the values of a `Feature` of floats as they stand there, uint8[count, 4]."""
    values = np.empty((count, 4), np.uint8)
    places = locate_values(feature, FLOATS, count, start)
    for index in range(count):
        values[index] = feature[places[index, 0] : places[index, 1]]
    return values


@jit
def read_integers(feature: np.ndarray, count: int, start: int) -> np.ndarray:
    """Return the values of a `Feature` of integers, int64[count]."""
    values = np.empty(count, np.int64)
    places = locate_values(feature, INTEGERS, count, start)
    for index in range(count):
        values[index] = np.int64(_varint(feature, places[index, 0], places[index, 1])[0])
    return values


@jit
def survey_frames(feature_list: np.ndarray, kind: int, size: int) -> tuple[int, int, int, int, int]:
    """Count the frames of a serialized `FeatureList`, and see whether they are alike.

    Args:
      feature_list: uint8[num_bytes].
      kind: What each frame must be: one string of `BYTES`, or `FLOATS`.
      size: How many bytes the string must have, or how many floats there must be.

    Returns:
      The number of frames, -1 if it is no such message; and of the first frame that is otherwise, -1 if none is: its
      number, kind, how many values it has, and the first one's size in bytes.
    """
    num_frames = 0
    bad, bad_kind, bad_count, bad_bytes = -1, 0, 0, 0
    end = 0
    while end < len(feature_list):
        number, wire, begin, end = _field(feature_list, end, len(feature_list))
        if number == 0:
            return -1, bad, bad_kind, bad_count, bad_bytes
        if wire != _LENGTH_DELIMITED or number != 1:
            continue
        if bad < 0:
            frame = feature_list[begin:end]
            found, count, start = survey_feature(frame)
            num_bytes = 0
            if found == BYTES and count == 1:
                place = locate_values(frame, BYTES, 1, start)
                num_bytes = place[0, 1] - place[0, 0]
            right = count == 1 and num_bytes == size if kind == BYTES else count == size
            if found != kind or not right:
                bad, bad_kind, bad_count, bad_bytes = num_frames, found, count, num_bytes
        num_frames += 1
    return num_frames, bad, bad_kind, bad_count, bad_bytes


@jit
def copy_frames(feature_list: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Copy the bytes of frames that are alike, as `survey_frames` found them, to uint8[num_frames, bytes a frame]."""
    index = end = 0
    while end < len(feature_list):
        number, wire, begin, end = _field(feature_list, end, len(feature_list))
        if wire != _LENGTH_DELIMITED or number != 1:
            continue
        frame = feature_list[begin:end]
        _, count, start = survey_feature(frame)
        places = locate_values(frame, kind, count, start)
        column = 0
        for value in range(count):
            for position in range(places[value, 0], places[value, 1]):
                out[index, column] = frame[position]
                column += 1
        index += 1


@jit
def all_begin_with(rows: np.ndarray, header: np.ndarray) -> bool:
    """Return whether each of `rows`, uint8[n, m], begins with `header`, uint8[k], k <= m."""
    for i in range(len(rows)):
        for j in range(len(header)):
            if rows[i, j] != header[j]:
                return False
    return True


@jit
def _count_values(feature, begin, end, kind):
    """Return how many values the list at `begin` to `end` has, -1 if it is no such message."""
    count = 0
    while begin < end:
        number, wire, value, begin = _field(feature, begin, end)
        if number == 0:
            return -1
        if number != 1:
            continue
        if kind == BYTES:
            count += wire == _LENGTH_DELIMITED
        elif kind == FLOATS:
            count += wire == _FIXED32
            if wire == _LENGTH_DELIMITED:
                if (begin - value) % 4:
                    return -1
                count += (begin - value) // 4
        else:
            count += wire == _VARINT
            while wire == _LENGTH_DELIMITED and value < begin:
                _, after = _varint(feature, value, begin)
                if after == value:
                    return -1
                count += 1
                value = after
    return count


@jit
def _field(message, begin, end):
    """Return number and wire type of the field at `begin`, and where its value begins and ends; number 0 if none is."""
    tag, position = _varint(message, begin, end)
    if position == begin or position > begin + 5 or tag > 0xFFFFFFFF:
        return 0, 0, end, end
    number, wire = np.int64(tag >> np.uint64(3)), np.int64(tag & np.uint64(7))
    begin = position
    if wire == _LENGTH_DELIMITED:
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
