"""Columns that a data set keeps besides its own: context features of the input records, as they were there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from vidpress.model.features import FeatureSpec, check_name

Kind = Literal["string", "bytes", "int64", "float"]
KINDS: tuple[str, ...] = get_args(Kind)

# So many that a shard's footer stays small.
MAX_COLUMNS = 16

# What data sets and tables call columns of their own, in lower case: SQL does not tell the case of letters.
_TAKEN = frozenset(("id", "labels", "num_frames", "bank", "code", "features", "z_hat", "file", "offset", "is_new"))

_FORM = f"KEY:KIND with a kind of {', '.join(KINDS)}; an example is title:string"


@dataclasses.dataclass(frozen=True)
class KeptColumn:
    """A context feature that is kept: for each video the list of its values, or null if the record does not have it.

    Attributes:
      key: Its name in the records.
      kind: What its values are: 'string' (UTF-8) or 'bytes' of a `bytes_list`, 'int64', or 'float' (float32).
    """

    key: str
    kind: Kind

    def __post_init__(self) -> None:
        check_name("A kept feature", self.key)
        if self.kind not in KINDS:
            raise ValueError(f"{self.key!r} is to be kept as {str(self.kind)[:40]!a}: write {_FORM}.")

    @property
    def name(self) -> str:
        """The name of the column: the key, with `_` for dots; and with the kind behind, if vidpress has such a column.

        A dot in the name of a column stands for the inside of another one.
        """
        name = self.key.replace(".", "_")
        return f"{name}_{self.kind}" if name.lower() in _TAKEN else name

    @classmethod
    def parse(cls, text: str) -> KeptColumn:
        """Read a column from `key:kind`.

        Raises:
          ValueError: If it is anything else.
        """
        key, _, kind = text.strip().rpartition(":")
        if not key or kind not in KINDS:
            raise ValueError(f"{text!r} is not {_FORM}.")
        return cls(key, kind)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.key}:{self.kind}"


def check_columns(columns: Sequence[KeptColumn], spec: FeatureSpec | None = None) -> tuple[KeptColumn, ...]:
    """Return columns as a tuple, after seeing that a data set can keep them.

    Args:
      columns: The columns.
      spec: What is encoded, whose keys of id and features are in the data set anyway.

    Raises:
      ValueError: If there are too many, if two have one name, or if a key is the id's or a feature's.
    """
    others = () if spec is None else (spec.id_keys[0], *(feature.mean_name for feature in spec.features))
    if len(columns) > MAX_COLUMNS:
        raise ValueError(f"{len(columns)} columns are to be kept, at most {MAX_COLUMNS} are possible: keep fewer.")
    keys: dict[str, str] = {}
    for column in columns:
        if column.key in others:
            raise ValueError(f"{column.key!r} is encoded as it is, as id or feature: do not keep it a second time.")
        name = column.name.lower()
        if name in keys:
            raise ValueError(f"{keys[name]!r} and {column.key!r} would be one column, {name!r}: keep one of them.")
        keys[name] = column.key
    return tuple(columns)


def columns_from_json(values: Any) -> tuple[KeptColumn, ...]:
    """Return what `dataclasses.asdict` made of columns.

    Raises:
      ValueError: If they are anything else.
    """
    return check_columns(msgspec.convert(values, tuple[KeptColumn, ...]))


def listed(columns: Iterable[KeptColumn]) -> str:
    """Return columns as an option gives them, for a message."""
    return " ".join(map(str, columns)) or "none"
