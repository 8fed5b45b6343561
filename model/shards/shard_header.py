"""What a shard says of all its rows, in the metadata of its Parquet file."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.kept_columns import KeptColumn, columns_from_json
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Version 2 has banks of tables, and the column `bank`; 3 has kept columns, and is written only where there are some.
FORMAT_VERSION = 3
_WITHOUT_COLUMNS = 2
_READABLE_VERSIONS = ("1", "2", "3")

METADATA_PREFIX = "vidpress."
CHECKSUMS_KEY = f"{METADATA_PREFIX}row_group_crc32"
# An Arrow schema in Arrow's own form, from which it would rebuild types of other packages. A shard has none.
ARROW_SCHEMA_KEY = "ARROW:schema"
_MODEL_ID = re.compile(r"[0-9a-f]{16}")

_MESSAGE_LENGTH = 300


class ShardError(VidpressError, ValueError):
    """A file that is not a usable vidpress shard: the message names it and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class ShardHeader:
    """What a shard's metadata says of all its rows.

    Attributes:
      model_id: The frozen model that encoded the videos.
      spec: The features that were encoded.
      tables: The range coding tables of the codes.
      columns: The columns of the input that are kept.
    """

    model_id: str
    spec: FeatureSpec
    tables: RangeCodingTables
    columns: tuple[KeptColumn, ...] = ()

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """The header as Parquet key-value metadata."""
        values = {
            "format_version": str(FORMAT_VERSION if self.columns else _WITHOUT_COLUMNS),
            "model_id": self.model_id,
            "feature_spec": json.dumps(self.spec.to_json(), sort_keys=True),
            "range_coding_tables": base64.b64encode(self.tables.to_bytes()).decode(),
        }
        if self.columns:
            values["columns"] = json.dumps([dataclasses.asdict(column) for column in self.columns], sort_keys=True)
        return {METADATA_PREFIX + key: value for key, value in values.items()}

    def with_banks(self, banks: np.ndarray) -> ShardHeader:
        """Return the header with some of the banks of tables, for a shard that uses no others."""
        return dataclasses.replace(self, tables=self.tables.with_banks(banks))

    def united(self, other: ShardHeader) -> ShardHeader:
        """Return the header with the banks of tables of both.

        Raises:
          ShardError: If they are of different models.
        """
        try:
            return dataclasses.replace(self, tables=self.tables.union(other.tables))
        except ValueError as error:
            raise ShardError(
                f"A shard of model {self.model_id} has other tables than one of model {other.model_id}: fetch or "
                "encode them again."
            ) from error

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, *, name: str) -> ShardHeader:
        """Read back what `metadata` gives.

        Raises:
          ShardError: If the metadata is not a shard's, is damaged, or is of another format version.
        """
        values = text(metadata)
        version = values.get(f"{METADATA_PREFIX}format_version")
        if version is None:
            raise ShardError(f"{name} is a Parquet file, but not one that `vidpress encode` wrote.")
        if version not in _READABLE_VERSIONS:
            raise ShardError(
                f"{name} has format version {one_line(version)}; this vidpress reads {', '.join(_READABLE_VERSIONS)}: "
                "install the version that wrote it, or a later one."
            )
        try:
            model_id = values[f"{METADATA_PREFIX}model_id"]
            if not _MODEL_ID.fullmatch(model_id):
                raise ValueError("model_id is not 16 hexadecimal digits")
            return cls(
                model_id=model_id,
                spec=FeatureSpec.from_json(
                    strict_json.decode(values[f"{METADATA_PREFIX}feature_spec"], dict[str, Any])
                ),
                tables=_parse_tables(values[f"{METADATA_PREFIX}range_coding_tables"]),
                columns=_parse_columns(values[f"{METADATA_PREFIX}columns"]) if int(version) >= FORMAT_VERSION else (),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{name} has damaged metadata ({one_line(error)}): fetch or encode it again.") from error


def _parse_columns(encoded: str) -> tuple[KeptColumn, ...]:
    columns = columns_from_json(strict_json.decode(encoded, list[dict[str, Any]]))
    if not columns:
        raise ValueError("it is of the version for shards with kept columns, and has none")
    return columns


@functools.lru_cache(maxsize=4)
def _parse_tables(encoded: str) -> RangeCodingTables:
    """Return tables; those of a data set's shards are mostly the same, and take milliseconds to unpack."""
    return RangeCodingTables.from_bytes(base64.b64decode(encoded, validate=True))


def text(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Return key-value metadata as text."""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in (metadata or {}).items()}


def one_line(message: object) -> str:
    """Return a message of someone else's, which may quote the file, as part of a line of ours."""
    line = " ".join(str(message).split()).encode("unicode_escape").decode()
    return line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}..."
