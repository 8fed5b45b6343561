"""Where a shard's rows lie in its file, and what reading them takes, before Arrow allocates what the file claims.

A few bytes of Parquet can stand for gigabytes: a page may claim any number of values and any size, a dictionary's entry
may be repeated, ids that are front-coded share prefixes of any length. What a shard holds is narrower (docs/format.md),
and what is outside of that is refused. The numbers of fields, types and encodings are those of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidpress.model.compiled import jit
from vidpress.model.shards.thrift_compact import BINARY, I32, I64, LIST, STRUCT, CompactReader, Struct, ThriftError, key

MAGIC = b"PAR1"
# The footer's length, and the magic once more.
TAIL_SIZE = 4 + len(MAGIC)

# 67 million videos, and 32 MiB: half of that is for tables, with 256 banks of 8,192 dimensions they take 2 MB.
MAX_ROW_GROUPS = 2**14
MAX_FOOTER_BYTES = 2**25
# Of all videos of a row group together: of 4096, 2,048 labels and an id of 8 KB each.
MAX_ROW_GROUP_LABELS = 2**23
MAX_ROW_GROUP_ID_BYTES = 2**25
# Of an id alone; new ones are shorter still (`vidpress.model.records.videos.MAX_ID_BYTES`).
MAX_ID_BYTES = 2**16

# A row group of a shard has some 250 values in the footer, a page's header some 15.
_MAX_VALUES_OF_ROW_GROUP = 1024
_MAX_VALUES_OF_PAGE = 64
_MAX_VALUES_BESIDE = 1024  # the schema, the metadata, and what later versions of Parquet add

_FOOTER_NUM_ROWS = key(3, I64)
_SCHEMA, _ROW_GROUPS, _KEY_VALUES = 2, 4, 5
_KEY, _VALUE = key(1, BINARY), key(2, BINARY)
_COLUMNS, _NUM_ROWS = key(1, LIST), key(3, I64)
_FILE_PATH, _COLUMN_METADATA = key(1, BINARY), key(3, STRUCT)
_PATH, _CODEC, _NUM_VALUES, _SIZE = key(3, LIST), key(4, I32), key(5, I64), key(7, I64)
_DATA_OFFSET, _DICTIONARY_OFFSET, _STATISTICS = key(9, I64), key(11, I64), key(12, STRUCT)
_GREATEST, _LEAST = key(5, BINARY), key(6, BINARY)
_PAGE_TYPE, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = key(1, I32), key(2, I32), key(3, I32)
_DATA_PAGE_HEADER, _DICTIONARY_PAGE_HEADER = key(5, STRUCT), key(7, STRUCT)
_PAGE_NUM_VALUES, _PAGE_ENCODING = key(1, I32), key(2, I32)

_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY = 0, 6, 7
_UNCOMPRESSED = 0

# Columns of strings are not compressed, have neither dictionaries nor levels, and only ids may be front-coded.
_STRING_ENCODINGS = {
    "id": (_PLAIN, _DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY),
    "code": (_PLAIN, _DELTA_LENGTH_BYTE_ARRAY),
}
_REPEATED = "labels"
# An int32 with its levels takes less than this in a page, and a page less than that besides.
_MOST_BYTES_OF_VALUE = 16
_MOST_BYTES_OF_PAGE = 4096
_MAX_DELTA_BLOCK = 2**10  # Arrow's have 128 values in 4 miniblocks
_MAX_MINIBLOCKS = 2**5
_MAX_WIDTH = 32
_MORE_FOLLOWS, _LOW_7_BITS = 0x80, 0x7F


class LayoutError(ValueError):
    """A Parquet file that is damaged, or is laid out as no shard is."""


class Chunk(NamedTuple):
    """What a row group holds of a column.

    Attributes:
      name: The column; of a nested one the outermost name.
      start: Where its first page begins in the file.
      size: Bytes of all its pages with their headers.
      num_values: How many values it has; of `labels` at least one a row.
      codec: How its pages are compressed; 0 if they are not.
      least: Its least value, if the footer says it.
      greatest: Its greatest value, likewise.
    """

    name: str
    start: int
    size: int
    num_values: int
    codec: int
    least: bytes | None = None
    greatest: bytes | None = None


class RowGroup(NamedTuple):
    """What the footer says of a row group."""

    num_rows: int
    columns: tuple[Chunk, ...]

    @property
    def start(self) -> int:
        """Where its first page begins in the file."""
        return self.columns[0].start

    @property
    def end(self) -> int:
        """Where its last page ends in the file."""
        return self.columns[-1].start + self.columns[-1].size


@dataclasses.dataclass(frozen=True)
class Footer:
    """What is at the end of a Parquet file.

    Attributes:
      num_rows: Rows of the file.
      row_groups: The row groups.
      metadata: Key-value metadata.
    """

    num_rows: int
    row_groups: tuple[RowGroup, ...]
    metadata: dict[bytes, bytes]


def footer_size(tail: bytes | memoryview, num_bytes: int) -> int:
    """Return the length of the footer of a file of `num_bytes`, from the file's last `TAIL_SIZE` bytes or more.

    Raises:
      LayoutError: If there is no footer, or one that is too long.
    """
    end = bytes(tail[-TAIL_SIZE:])
    if len(end) < TAIL_SIZE or end[-len(MAGIC) :] != MAGIC:
        raise LayoutError("it does not end with a footer")
    size = int.from_bytes(end[:4], "little")
    if size > num_bytes - TAIL_SIZE - len(MAGIC):
        raise LayoutError(f"its footer of {size:,} bytes is longer than the file")
    if size > MAX_FOOTER_BYTES:
        raise LayoutError(f"its footer has {size:,} bytes, more than the {MAX_FOOTER_BYTES:,} that are read")
    return size


def parse_footer(data: bytes) -> Footer:
    """Read a footer.

    Args:
      data: The footer, without its length.

    Raises:
      LayoutError: If it is damaged, or holds more than a shard's.
    """
    reader = CompactReader(data, max_values=_MAX_VALUES_BESIDE)
    rest: Struct = {}
    row_groups: list[RowGroup] = []
    metadata: list[Struct] = []
    try:
        for number, kind in reader.fields():
            if number == _ROW_GROUPS and kind == LIST:
                row_groups = _parse_row_groups(data, reader)
            elif number == _KEY_VALUES and kind == LIST:
                metadata = reader.value(kind)
            else:
                rest[key(number, kind)] = reader.value(kind)
        return Footer(
            num_rows=rest[_FOOTER_NUM_ROWS],
            row_groups=tuple(row_groups),
            metadata={entry[_KEY]: entry.get(_VALUE, b"") for entry in metadata},
        )
    except ThriftError as error:
        raise LayoutError(f"of its footer, {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeError) as error:
        raise LayoutError("its footer is not that of a Parquet file") from error


def _parse_row_groups(data: bytes, reader: CompactReader) -> list[RowGroup]:
    size, kind = reader.list_header()
    if kind != STRUCT:
        raise LayoutError("its footer is not that of a Parquet file")
    if size > MAX_ROW_GROUPS:
        raise LayoutError(f"its footer lists {size:,} row groups, more than the {MAX_ROW_GROUPS:,} that are read")
    row_groups = []
    for _ in range(size):
        inner = CompactReader(data, position=reader.position, max_values=_MAX_VALUES_OF_ROW_GROUP)
        fields = inner.struct()
        reader.position = inner.position
        row_groups.append(RowGroup(fields[_NUM_ROWS], tuple(map(_parse_chunk, fields[_COLUMNS]))))
    return row_groups


def _parse_chunk(fields: Struct) -> Chunk:
    if _FILE_PATH in fields:
        raise LayoutError("its footer says that rows are in another file")
    column = fields[_COLUMN_METADATA]
    start = column[_DATA_OFFSET]
    if 0 < column.get(_DICTIONARY_OFFSET, 0) < start:
        start = column[_DICTIONARY_OFFSET]
    statistics = column.get(_STATISTICS, {})
    return Chunk(
        name=column[_PATH][0].decode(),
        start=start,
        size=column[_SIZE],
        num_values=column[_NUM_VALUES],
        codec=column[_CODEC],
        least=statistics.get(_LEAST),
        greatest=statistics.get(_GREATEST),
    )


def check_footer(footer: Footer, names: Sequence[str], end: int, max_rows: int) -> None:
    """See that the row groups are a shard's, follow each other, and hold no more than can be read.

    Args:
      footer: The footer.
      names: The columns, in order.
      end: Where in the file the footer begins.
      max_rows: How many rows a row group may have.

    Raises:
      LayoutError: If not.
    """
    if not footer.row_groups:
        raise LayoutError("it has no rows")
    position = len(MAGIC)
    for index, row_group in enumerate(footer.row_groups):
        if not 1 <= row_group.num_rows <= max_rows:
            raise LayoutError(f"row group {index} has {row_group.num_rows:,} rows, not 1 to {max_rows:,}")
        if [chunk.name for chunk in row_group.columns] != list(names):
            raise LayoutError(f"row group {index} does not have the columns {', '.join(names)}")
        for chunk in row_group.columns:
            if chunk.start != position or not 0 < chunk.size <= end - position:
                raise LayoutError(f"row group {index}: the pages of {chunk.name} do not follow what is before them")
            position += chunk.size
            most = MAX_ROW_GROUP_LABELS if chunk.name == _REPEATED else row_group.num_rows
            if not row_group.num_rows <= chunk.num_values <= most:
                raise LayoutError(
                    f"row group {index} has {chunk.num_values:,} values of {chunk.name} in {row_group.num_rows:,} "
                    f"rows; {most:,} are possible"
                )
            # Ids differ, so each adds a byte at least: a file has no more rows than bytes.
            if chunk.name == "id" and chunk.size < row_group.num_rows:
                raise LayoutError(f"row group {index}: {chunk.size:,} bytes cannot hold {row_group.num_rows:,} ids")
    if sum(row_group.num_rows for row_group in footer.row_groups) != footer.num_rows:
        raise LayoutError(f"its footer says {footer.num_rows:,} rows, which are not those of its row groups")


def check_pages(data: bytes, chunk: Chunk) -> None:
    """See that Arrow can read the pages of a column without taking much more than they do.

    Args:
      data: The pages, `chunk.size` bytes.
      chunk: What the footer says of them.

    Raises:
      LayoutError: If it cannot, or they are damaged.
    """
    encodings = _STRING_ENCODINGS.get(chunk.name)
    if encodings and chunk.codec != _UNCOMPRESSED:
        raise LayoutError(f"{chunk.name} is compressed")
    position = num_values = shared = 0
    try:
        while position < len(data):
            reader = CompactReader(data, position=position, max_values=_MAX_VALUES_OF_PAGE)
            header = reader.struct()
            start, position = reader.position, reader.position + header[_COMPRESSED_SIZE]
            if not start <= position <= len(data):
                raise LayoutError(f"a page of {chunk.name} claims {header[_COMPRESSED_SIZE]:,} bytes")
            page = header[_DICTIONARY_PAGE_HEADER if header[_PAGE_TYPE] == _DICTIONARY_PAGE else _DATA_PAGE_HEADER]
            values = page[_PAGE_NUM_VALUES]
            if header[_PAGE_TYPE] == _DATA_PAGE:
                num_values += values
            elif header[_PAGE_TYPE] != _DICTIONARY_PAGE or encodings or num_values:
                raise LayoutError(f"{chunk.name} has a page of a type that a shard's does not have")
            # A page of no values would cost nothing, and there could be as many as bytes.
            if not 1 <= values <= chunk.num_values or num_values > chunk.num_values:
                raise LayoutError(f"a page of {chunk.name} claims {values:,} of {chunk.num_values:,} values")
            if chunk.codec == _UNCOMPRESSED:
                most = header[_COMPRESSED_SIZE]
            else:
                most = _MOST_BYTES_OF_PAGE + _MOST_BYTES_OF_VALUE * values
            if not 0 <= header[_UNCOMPRESSED_SIZE] <= most:
                raise LayoutError(
                    f"a page of {chunk.name} claims {header[_UNCOMPRESSED_SIZE]:,} bytes for {values:,} values"
                )
            if encodings:
                shared += _check_strings(data[start:position], chunk.name, page[_PAGE_ENCODING], values)
            if shared > MAX_ROW_GROUP_ID_BYTES:
                raise LayoutError(f"its ids share {shared:,} bytes; {MAX_ROW_GROUP_ID_BYTES:,} are possible")
    except ThriftError as error:
        raise LayoutError(f"of a page's header of {chunk.name}, {error}") from error
    except (KeyError, TypeError) as error:
        raise LayoutError(f"a page of {chunk.name} has not the header of a page") from error
    if num_values != chunk.num_values:
        raise LayoutError(f"{chunk.name} has {num_values:,} values, its footer says {chunk.num_values:,}")


def _check_strings(page: bytes, name: str, encoding: int, num_values: int) -> int:
    """See that a page of strings is encoded as in a shard; return how many bytes the strings share."""
    if encoding not in _STRING_ENCODINGS[name]:
        raise LayoutError(f"{name} is encoded as a shard's is not (encoding {encoding})")
    reader = CompactReader(page, max_values=0)
    shared = _sum_of_deltas(page, reader, num_values) if encoding == _DELTA_BYTE_ARRAY else 0
    if encoding != _PLAIN:
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


def _sum_of_deltas(page: bytes, reader: CompactReader, num_values: int) -> int:
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
