"""Thrift's compact protocol, in which Parquet writes a file's footer and each page's header.

Read before Arrow reads it: Arrow allocates what a few bytes claim. See
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

_MAX_DEPTH = 10
_MAX_FIELD = 100  # Parquet's structs have 17 at most
_TYPE_BITS = 4
_LOW_BITS = 0x0F
_MORE_FOLLOWS = 0x80
_DOUBLE_BYTES = 8

# The values of a struct's fields by `key` of field and type: a field of another type than is looked for is not there,
# as it is not for Arrow. Values of binary type are bytes, lists and sets are lists; Parquet has no maps.
Struct: TypeAlias = dict[int, Any]


class ThriftError(ValueError):
    """Bytes that are none of the protocol's, or hold more than they may."""


def key(number: int, kind: int) -> int:
    """Return what a field of a type has in a `Struct`."""
    return number << _TYPE_BITS | kind


class CompactReader:
    """Reads values one after the other.

    Attributes:
      position: Where the next value begins in the data.
      values_left: How many more values may be read: what a reader of hostile bytes may take, in memory and time.
    """

    def __init__(self, data: bytes | memoryview, *, position: int = 0, max_values: int):
        self._data = data
        self.position = position
        self.values_left = max_values

    def varint(self) -> int:
        """Read an unsigned integer of at most 64 bits.

        Raises:
          ThriftError: If it is longer, or the data end.
        """
        data, position = self._data, self.position
        value = shift = 0
        while position < len(data) and shift < 64:
            byte = data[position]
            position += 1
            value |= (byte & ~_MORE_FOLLOWS) << shift
            if byte < _MORE_FOLLOWS:
                self.position = position
                return value
            shift += 7
        raise ThriftError("it is cut short" if shift < 64 else "it holds a number of more than 64 bits")

    def zigzag(self) -> int:
        """Read a signed integer.

        Raises:
          ThriftError: As `varint` does.
        """
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the number and the type of each field of a struct; the caller reads its value before the next one.

        Raises:
          ThriftError: If the data end, or fields are not in the order of their numbers, so that none is there twice.
        """
        number = 0
        while byte := self._byte():
            step = byte >> _TYPE_BITS
            following = number + step if step else self.zigzag()
            if not number < following <= _MAX_FIELD:
                raise ThriftError(f"its field {following} follows its field {number}")
            number = following
            yield number, byte & _LOW_BITS

    def list_header(self) -> tuple[int, int]:
        """Read how many elements a list has, and of which type.

        Raises:
          ThriftError: If there are more than bytes.
        """
        byte = self._byte()
        size = byte >> _TYPE_BITS
        if size == _LOW_BITS:
            size = self.varint()
        if size > len(self._data) - self.position:
            raise ThriftError(f"it claims a list of {size:,} elements")
        return size, byte & _LOW_BITS

    def struct(self, depth: int = 0) -> Struct:
        """Read a struct with all that is in it.

        Raises:
          ThriftError: If it is none, or holds more values than may be read, or nests too deeply.
        """
        fields: Struct = {}
        for number, kind in self.fields():
            fields[number << _TYPE_BITS | kind] = self.value(kind, depth)
        return fields

    def value(self, kind: int, depth: int = 0, *, is_element: bool = False) -> Any:
        """Read a value of a type.

        Args:
          kind: The type.
          depth: How many structs and lists it is in.
          is_element: Whether it is an element of a list: a Boolean then takes a byte, and none in a struct.

        Raises:
          ThriftError: As `struct` does.
        """
        self.values_left -= 1
        if self.values_left < 0 or depth > _MAX_DEPTH:
            raise ThriftError("it holds more values, or nests them deeper, than a shard's do")
        if I16 <= kind <= I64:
            return self.zigzag()
        if kind == BINARY:
            return self._bytes(self.varint())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            size, element = self.list_header()
            return [self.value(element, depth + 1, is_element=True) for _ in range(size)]
        if kind in (TRUE, FALSE):
            return self._byte() == TRUE if is_element else kind == TRUE
        if kind == I8:
            return self._byte()
        if kind == DOUBLE:
            return self._bytes(_DOUBLE_BYTES)
        raise ThriftError(f"it holds a value of type {kind}")

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise ThriftError("it is cut short")
        self.position += 1
        return self._data[self.position - 1]

    def _bytes(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise ThriftError("it is cut short")
        start, self.position = self.position, end
        return bytes(self._data[start:end])
