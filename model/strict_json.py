"""The one reader of JSON that comes from a file: typed, and limited in size and depth."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")

# Far more than any header or line of vidpress has. Callers that read larger files give another limit.
MAX_BYTES = 2**20


class JsonError(ValueError):
    """Text that is not JSON, or JSON that is too large, too deep or not of the wanted type: the message says which."""


def decode(data: bytes | str, type: type[T], *, max_bytes: int = MAX_BYTES) -> T:
    """Read JSON as a value of a type: a dataclass, or what `msgspec` understands.

    Nothing is converted: a number in quotes is not a number, 1.5 is not an integer. Fields that the type does not have
    are ignored. Depth is limited by the type and, for values of any type, by Python's limit on recursion.

    Args:
      data: The JSON, UTF-8 where it is bytes.
      type: What it must be.
      max_bytes: How long it may be.

    Raises:
      JsonError: If it is anything else.
    """
    if len(data) > max_bytes:
        raise JsonError(f"{len(data):,} bytes of JSON are more than the {max_bytes:,} that are read")
    try:
        return msgspec.json.decode(data, type=type)
    except RecursionError as error:
        raise JsonError("JSON that is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise JsonError(str(error)) from error
