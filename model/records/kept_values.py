"""Context features of a record that are kept as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from vidpress.model.kept_columns import KeptColumn
from vidpress.model.records import examples
from vidpress.model.records.examples import KindError, RecordError
from vidpress.model.records.message_places import BYTES, FLOATS, INTEGERS

# Limits for a record: a thumbnail and a transcript fit, and a batch of 1024 videos fits into memory.
MAX_VALUES = 16_384
MAX_BYTES = 2**20

# What to write instead of the kind that does not fit, by the kind that is found.
KIND_OF = {BYTES: "string", FLOATS: "float", INTEGERS: "int64"}

# The values of a kept column in a record; None if it does not have the key.
KeptValues: TypeAlias = list[str] | list[bytes] | np.ndarray | None


def kept_values(context: Mapping[str, bytes | memoryview], columns: Sequence[KeptColumn]) -> tuple[KeptValues, ...]:
    """Return the values of each column.

    Args:
      context: The serialized context features of a record, by name.
      columns: What to keep of them.

    Returns:
      For each column a list of strings or bytes, int64[num_values] or float32[num_values]; None without such a feature.

    Raises:
      RecordError: If a feature is of another kind, or has more than `MAX_VALUES` values, or if what is kept of the
        record takes more than `MAX_BYTES`.
    """
    found = [context.get(column.key) for column in columns]
    num_bytes = sum(len(feature) for feature in found if feature is not None)
    if num_bytes > MAX_BYTES:  # nothing of it is copied
        raise RecordError(f"what is kept of it takes {num_bytes:,} bytes; {MAX_BYTES:,} are possible: keep less of it")
    return tuple(
        None if feature is None else _values(feature, column) for feature, column in zip(found, columns, strict=True)
    )


def _values(feature: bytes | memoryview, column: KeptColumn) -> KeptValues:
    try:
        if column.kind == "int64":
            return examples.int64_values(feature, max_values=MAX_VALUES)
        if column.kind == "float":
            values = examples.float_values(feature)
            if len(values) > MAX_VALUES:
                raise RecordError(f"has {len(values):,} values, more than {MAX_VALUES:,}")
            return values.copy()  # the buffer is the whole record
        strings = examples.bytes_values(feature, max_values=MAX_VALUES)
        return strings if column.kind == "bytes" else [string.decode() for string in strings]
    except UnicodeDecodeError as error:
        fix = f"keep it with --keep {column.key}:bytes"
        raise RecordError(f"{column.key!r} is kept as text, but is not UTF-8; {fix}") from error
    except KindError as error:
        fix = f"keep it with --keep {column.key}:{KIND_OF[error.found]}"
        raise RecordError(f"{column.key!r} is kept as {column.kind}, but {error}; {fix}") from error
    except RecordError as error:
        raise RecordError(f"{column.key!r} {error}") from error
