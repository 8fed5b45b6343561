"""Where a shard's rows lie in its file, and what reading them takes, before Arrow allocates what the file claims.

A few bytes of Parquet can stand for gigabytes: a page may claim any number of values and any size, a dictionary's entry
may be repeated, ids that are front-coded share prefixes of any length. What a shard holds is narrower (docs/format.md),
and what is outside of that is refused. The numbers of fields, types and encodings are those of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from vidpress.model.kept_columns import MAX_COLUMNS
from vidpress.model.shards.string_pages import (
    DELTA_BINARY_PACKED,
    DELTA_BYTE_ARRAY,
    DELTA_LENGTH_BYTE_ARRAY,
    PLAIN,
    LayoutError,
    shared_bytes,
)
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
# Of all kept columns of a row group together: values, of which a row has one at least, and bytes of strings.
MAX_ROW_GROUP_KEPT_VALUES = 2**22
MAX_ROW_GROUP_KEPT_BYTES = 2**25

# A row group of a shard has some 50 values a column in the footer, a page's header some 15.
_MAX_VALUES_OF_ROW_GROUP = 2048
_MAX_VALUES_OF_PAGE = 64
_MAX_VALUES_BESIDE = 1024  # the schema, the metadata, and what later versions of Parquet add

_FOOTER_NUM_ROWS = key(3, I64)
_SCHEMA, _ROW_GROUPS, _KEY_VALUES = 2, 4, 5
_KEY, _VALUE = key(1, BINARY), key(2, BINARY)
_COLUMNS, _NUM_ROWS = key(1, LIST), key(3, I64)
_FILE_PATH, _COLUMN_METADATA = key(1, BINARY), key(3, STRUCT)
_PATH, _CODEC, _NUM_VALUES, _FULL_SIZE, _SIZE = key(3, LIST), key(4, I32), key(5, I64), key(6, I64), key(7, I64)
_DATA_OFFSET, _DICTIONARY_OFFSET, _STATISTICS = key(9, I64), key(11, I64), key(12, STRUCT)
_GREATEST, _LEAST = key(5, BINARY), key(6, BINARY)
_PAGE_TYPE, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _CRC32 = key(1, I32), key(2, I32), key(3, I32), key(4, I32)
_DATA_PAGE_HEADER, _DICTIONARY_PAGE_HEADER = key(5, STRUCT), key(7, STRUCT)
_PAGE_NUM_VALUES, _PAGE_ENCODING = key(1, I32), key(2, I32)

_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_UNCOMPRESSED = 0

# Columns of strings are not compressed, have neither dictionaries nor levels, and only ids may be front-coded.
_STRING_ENCODINGS = {
    "id": (PLAIN, DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY),
    "code": (PLAIN, DELTA_LENGTH_BYTE_ARRAY),
}
# Kept columns have no dictionaries either.
_KEPT_ENCODINGS = (PLAIN, DELTA_BINARY_PACKED)
_REPEATED = "labels"
# An int32 with its levels takes less than this in a page, and a page less than that besides.
_MOST_BYTES_OF_VALUE = 16
_MOST_BYTES_OF_PAGE = 4096
_MAX_COLUMNS = 5 + MAX_COLUMNS


class Chunk(NamedTuple):
    """What a row group holds of a column.

    Attributes:
      name: The column; of a nested one the outermost name.
      start: Where its first page begins in the file.
      size: Bytes of all its pages with their headers.
      num_values: How many values it has; of `labels` at least one a row.
      codec: How its pages are compressed; 0 if they are not.
      full_size: Bytes of all its pages if they were not.
      least: Its least value, if the footer says it.
      greatest: Its greatest value, likewise.
    """

    name: str
    start: int
    size: int
    num_values: int
    codec: int
    full_size: int
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
        if len(fields[_COLUMNS]) > _MAX_COLUMNS:
            raise LayoutError(f"a row group has more than {_MAX_COLUMNS} columns")
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
        full_size=column[_FULL_SIZE],
        least=statistics.get(_LEAST),
        greatest=statistics.get(_GREATEST),
    )


def check_footer(footer: Footer, names: Sequence[str], end: int, max_rows: int, kept: Collection[str] = ()) -> None:
    """See that the row groups are a shard's, follow each other, and hold no more than can be read.

    Args:
      footer: The footer.
      names: The columns, in order.
      end: Where in the file the footer begins.
      max_rows: How many rows a row group may have.
      kept: Which of the columns are kept ones.

    Raises:
      LayoutError: If not.
    """
    if not footer.row_groups:
        raise LayoutError("it has no rows")
    repeated = {_REPEATED: MAX_ROW_GROUP_LABELS, **dict.fromkeys(kept, MAX_ROW_GROUP_KEPT_VALUES)}
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
            most = repeated.get(chunk.name, row_group.num_rows)
            if not row_group.num_rows <= chunk.num_values <= most:
                raise LayoutError(
                    f"row group {index} has {chunk.num_values:,} values of {chunk.name} in {row_group.num_rows:,} "
                    f"rows; {most:,} are possible"
                )
            # Ids differ, so each adds a byte at least: a file has no more rows than bytes.
            if chunk.name == "id" and chunk.size < row_group.num_rows:
                raise LayoutError(f"row group {index}: {chunk.size:,} bytes cannot hold {row_group.num_rows:,} ids")
        _check_kept([chunk for chunk in row_group.columns if chunk.name in kept], index)
    if sum(row_group.num_rows for row_group in footer.row_groups) != footer.num_rows:
        raise LayoutError(f"its footer says {footer.num_rows:,} rows, which are not those of its row groups")


def _check_kept(chunks: Sequence[Chunk], row_group: int) -> None:
    values = sum(chunk.num_values for chunk in chunks)
    full_size = sum(max(chunk.full_size, 0) for chunk in chunks)
    beside = _MOST_BYTES_OF_VALUE * values + _MOST_BYTES_OF_PAGE * len(chunks)
    if values > MAX_ROW_GROUP_KEPT_VALUES or full_size > MAX_ROW_GROUP_KEPT_BYTES + beside:
        raise LayoutError(
            f"row group {row_group} keeps {values:,} values in {full_size:,} bytes, more than is possible"
        )


def check_pages(data: bytes | memoryview, chunk: Chunk, *, is_kept: bool = False) -> None:
    """See that a column's pages fit their checksums, and that Arrow can read them without taking much more memory.

    Args:
      data: The pages, `chunk.size` bytes.
      chunk: What the footer says of them.
      is_kept: Whether the column is a kept one.

    Raises:
      LayoutError: If it cannot, or they are damaged.
    """
    encodings = _STRING_ENCODINGS.get(chunk.name)
    if encodings and chunk.codec != _UNCOMPRESSED:
        raise LayoutError(f"{chunk.name} is compressed")
    position = num_values = shared = full_size = 0
    try:
        while position < len(data):
            reader = CompactReader(data, position=position, max_values=_MAX_VALUES_OF_PAGE)
            header = reader.struct()
            start, position = reader.position, reader.position + header[_COMPRESSED_SIZE]
            if not start <= position <= len(data):
                raise LayoutError(f"a page of {chunk.name} claims {header[_COMPRESSED_SIZE]:,} bytes")
            # Arrow would check it, too, and take as long for that as for reading the page.
            if _CRC32 in header and zlib.crc32(data[start:position]) != header[_CRC32] % 2**32:
                raise LayoutError(f"a page of {chunk.name} has not the checksum that its header says")
            page = header[_DICTIONARY_PAGE_HEADER if header[_PAGE_TYPE] == _DICTIONARY_PAGE else _DATA_PAGE_HEADER]
            values = page[_PAGE_NUM_VALUES]
            if header[_PAGE_TYPE] == _DATA_PAGE:
                num_values += values
            elif header[_PAGE_TYPE] != _DICTIONARY_PAGE or encodings or is_kept or num_values:
                raise LayoutError(f"{chunk.name} has a page of a type that a shard's does not have")
            # A page of no values would cost nothing, and there could be as many as bytes.
            if not 1 <= values <= chunk.num_values or num_values > chunk.num_values:
                raise LayoutError(f"a page of {chunk.name} claims {values:,} of {chunk.num_values:,} values")
            full_size += header[_UNCOMPRESSED_SIZE]
            if is_kept and (page[_PAGE_ENCODING] not in _KEPT_ENCODINGS or full_size > chunk.full_size):
                raise LayoutError(
                    f"{chunk.name} is encoded as a shard's is not, or unpacks to more than its footer says"
                )
            if chunk.codec == _UNCOMPRESSED:
                most = header[_COMPRESSED_SIZE]
            elif is_kept:
                most = chunk.full_size
            else:
                most = _MOST_BYTES_OF_PAGE + _MOST_BYTES_OF_VALUE * values
            if not 0 <= header[_UNCOMPRESSED_SIZE] <= most:
                raise LayoutError(
                    f"a page of {chunk.name} claims {header[_UNCOMPRESSED_SIZE]:,} bytes for {values:,} values"
                )
            if encodings:
                encoding = page[_PAGE_ENCODING]
                if encoding not in encodings:
                    raise LayoutError(f"{chunk.name} is encoded as a shard's is not (encoding {encoding})")
                shared += shared_bytes(data[start:position], encoding, values)
            if shared > MAX_ROW_GROUP_ID_BYTES:
                raise LayoutError(f"its ids share {shared:,} bytes; {MAX_ROW_GROUP_ID_BYTES:,} are possible")
    except ThriftError as error:
        raise LayoutError(f"of a page's header of {chunk.name}, {error}") from error
    except (KeyError, TypeError) as error:
        raise LayoutError(f"a page of {chunk.name} has not the header of a page") from error
    if num_values != chunk.num_values:
        raise LayoutError(f"{chunk.name} has {num_values:,} values, its footer says {chunk.num_values:,}")
