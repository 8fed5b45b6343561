"""Strings in the pages of a Parquet file: how many there are and what they share, before Arrow allocates."""

from __future__ import annotations

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.shards.thrift_compact import CompactReader

# Of an id alone; new ones are shorter still (`vidpress.model.records.videos.MAX_ID_BYTES`).
MAX_ID_BYTES = 2**16

PLAIN, DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY = 0, 5, 6, 7

_MAX_DELTA_BLOCK = 2**10  # Arrow's have 128 values in 4 miniblocks
_MAX_MINIBLOCKS = 2**5
_MAX_WIDTH = 32
_MORE_FOLLOWS, _LOW_7_BITS = 0x80, 0x7F


class LayoutError(ValueError):
    """A Parquet file that is damaged, or is laid out as no shard is."""


def shared_bytes(page: bytes | memoryview, encoding: int, num_values: int) -> int:
    """See that a page has as many strings as it claims; return how many bytes each shares with the one before, in all.

    Args:
      page: The page, without its header.
      encoding: How it is encoded: `PLAIN`, `DELTA_LENGTH_BYTE_ARRAY` or `DELTA_BYTE_ARRAY`.
      num_values: How many strings its header claims.

    Raises:
      LayoutError: If it has others, or an id shares more bytes than an id may have.
    """
    reader = CompactReader(page, max_values=0)
    shared = _sum_of_deltas(page, reader, num_values) if encoding == DELTA_BYTE_ARRAY else 0
    if encoding != PLAIN:
        _delta_header(reader, num_values)
    return shared


def _delta_header(reader: CompactReader, num_values: int) -> tuple[int, int]:
    """Read the header of DELTA_BINARY_PACKED up to the first value; return how many miniblocks, of how many values."""
    block, miniblocks, total = reader.varint(), reader.varint(), reader.varint()
    if total != num_values or not 0 < miniblocks <= _MAX_MINIBLOCKS or not miniblocks <= block <= _MAX_DELTA_BLOCK:
        raise LayoutError(
            f"the lengths of {num_values:,} strings are {total:,}, {miniblocks:,} miniblocks in {block:,}"
        )
    return miniblocks, block // miniblocks


def _sum_of_deltas(page: bytes | memoryview, reader: CompactReader, num_values: int) -> int:
    """Read lengths in DELTA_BINARY_PACKED and return their sum."""
    miniblocks, size = _delta_header(reader, num_values)
    first = reader.zigzag()
    data = np.frombuffer(page, np.uint8)
    position, total, length = _sum_lengths(data, reader.position, num_values, miniblocks, size, first)
    if position < 0:
        raise LayoutError("the lengths of its strings are cut short")
    if not 0 <= length <= MAX_ID_BYTES:
        raise LayoutError(f"an id shares {length:,} bytes with the one before, of {MAX_ID_BYTES:,} that it may have")
    reader.position = position
    return total


@jit
def _sum_lengths(data, position, num_values, miniblocks, size, first):
    """Return where the lengths end, or -1 if they are cut short; their sum; and the last, or one that is too long."""
    length = total = np.int64(first)
    left = num_values - 1
    while left > 0 and 0 <= length <= MAX_ID_BYTES:
        zigzag, shift = np.uint64(0), np.uint64(0)
        byte = np.uint64(_MORE_FOLLOWS)
        while byte & np.uint64(_MORE_FOLLOWS):
            if position >= len(data) or shift >= np.uint64(64):
                return -1, total, length
            byte = np.uint64(data[position])
            zigzag |= (byte & np.uint64(_LOW_7_BITS)) << shift
            shift += np.uint64(7)
            position += 1
        least = np.int64(zigzag >> np.uint64(1)) ^ -np.int64(zigzag & np.uint64(1))
        widths = position
        position += miniblocks
        if position > len(data):
            return -1, total, length
        for miniblock in range(miniblocks):
            if left <= 0:  # there is nothing of those behind the last value
                break
            width = np.int64(data[widths + miniblock])
            end = position + width * size // 8
            if width > _MAX_WIDTH or end > len(data):
                return -1, total, length
            for place in range(min(size, left)):
                bit = place * width
                packed = np.uint64(0)
                for byte_of in range((bit % 8 + width + 7) // 8):
                    if position + bit // 8 + byte_of < end:
                        packed |= np.uint64(data[position + bit // 8 + byte_of]) << np.uint64(8 * byte_of)
                delta = (packed >> np.uint64(bit % 8)) & ((np.uint64(1) << np.uint64(width)) - np.uint64(1))
                length += least + np.int64(delta)
                if not 0 <= length <= MAX_ID_BYTES:
                    return position, total, length
                total += length
            position = end
            left -= size
    return position, total, length
