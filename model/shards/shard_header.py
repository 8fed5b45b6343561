"""What a shard says of all its rows, in the metadata of its Parquet file."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.kept_columns import KeptColumn, columns_from_json
from vidpress.model.shards.shared_tables import SharedTables, TablesFile
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Version 2 has banks of tables, and the column `bank`; 3 has kept columns; 4 has its tables in a file of the data set.
# Each shard has the lowest version that has what it needs.
FORMAT_VERSION = 4
_WITH_COLUMNS = 3
_WITHOUT_COLUMNS = 2
_READABLE_VERSIONS = ("1", "2", "3", "4")

# A shard carries its tables if they take at most this share of its codes' bytes.
_CARRIED_SHARE = 0.01

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
      tables_file: The file of the data set that has the tables with all banks, if the shard does not carry them.
    """

    model_id: str
    spec: FeatureSpec
    tables: RangeCodingTables
    columns: tuple[KeptColumn, ...] = ()
    tables_file: TablesFile | None = None

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """The header as Parquet key-value metadata."""
        if self.tables_file is None:
            return self._metadata(self.tables.to_bytes())
        return self._metadata(None)

    def metadata_with(self, packed_tables: bytes) -> dict[str, str]:
        """Return the metadata of rows that carry their tables, which are given as `RangeCodingTables.to_bytes`."""
        return dataclasses.replace(self, tables_file=None)._metadata(packed_tables)

    def _metadata(self, packed_tables: bytes | None) -> dict[str, str]:
        carried = _WITH_COLUMNS if self.columns else _WITHOUT_COLUMNS
        values = {
            "format_version": str(carried if self.tables_file is None else FORMAT_VERSION),
            "model_id": self.model_id,
            "feature_spec": json.dumps(self.spec.to_json(), sort_keys=True),
        }
        if packed_tables is not None:
            values["range_coding_tables"] = base64.b64encode(packed_tables).decode()
        if self.tables_file is not None:
            values["tables_file"] = json.dumps(dataclasses.asdict(self.tables_file), sort_keys=True)
        if self.columns:
            values["columns"] = json.dumps([dataclasses.asdict(column) for column in self.columns], sort_keys=True)
        return {METADATA_PREFIX + key: value for key, value in values.items()}

    def for_rows(self, banks: np.ndarray, code_bytes: int) -> ShardHeader:
        """Return the header of a shard with some of the rows.

        A shard carries the banks of tables that its rows use, so that it can be decoded by itself. If there is a file
        of tables, and they would take more than a hundredth of the codes' bytes, it names the file instead.

        Args:
          banks: Integers, the banks that the rows use.
          code_bytes: Bytes of the rows' codes.
        """
        carrying = dataclasses.replace(self, tables=self.tables.with_banks(banks), tables_file=None)
        if self.tables_file is None:
            return carrying
        num_bytes = len(carrying.metadata[f"{METADATA_PREFIX}range_coding_tables"])
        return carrying if num_bytes <= _CARRIED_SHARE * code_bytes else self

    def united(self, other: ShardHeader) -> ShardHeader:
        """Return the header with the banks of tables of both.

        Raises:
          ShardError: If they are of different models.
        """
        try:
            tables = self.tables.union(other.tables)
            return dataclasses.replace(self, tables=tables, tables_file=self.tables_file or other.tables_file)
        except ValueError as error:
            raise ShardError(
                f"A shard of model {self.model_id} has other tables than one of model {other.model_id}: fetch or "
                "encode them again."
            ) from error

    @classmethod
    def from_metadata(
        cls,
        metadata: dict[bytes, bytes] | None,
        *,
        name: str,
        load_tables: Callable[[TablesFile], SharedTables] | None = None,
        wanted_model_id: str | None = None,
    ) -> ShardHeader:
        """Read back what `metadata` gives.

        Args:
          metadata: The key-value metadata.
          name: What has it, for messages.
          load_tables: Loads the tables of a shard that does not carry them.
          wanted_model_id: The model of the shard's data set, if that is known.

        Raises:
          ShardError: If the metadata is not a shard's, is damaged, or is of another format version, or if tables are
            needed and `load_tables` is not given, or if another model than the wanted one encoded it.
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
            spec = FeatureSpec.from_json(strict_json.decode(values[f"{METADATA_PREFIX}feature_spec"], dict[str, Any]))
            encoded = values.get(f"{METADATA_PREFIX}columns")
            columns: tuple[KeptColumn, ...] = ()
            if version == str(_WITH_COLUMNS) or (version == str(FORMAT_VERSION) and encoded is not None):
                columns = _parse_columns(values[f"{METADATA_PREFIX}columns"])
            found: RangeCodingTables | TablesFile
            if version == str(FORMAT_VERSION):
                found = strict_json.decode(values[f"{METADATA_PREFIX}tables_file"], TablesFile)
                found.check()
            else:
                found = _parse_tables(values[f"{METADATA_PREFIX}range_coding_tables"])
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{name} has damaged metadata ({one_line(error)}): fetch or encode it again.") from error
        if wanted_model_id not in (None, model_id):
            raise ShardError(
                f"{name} was encoded by model {model_id}, the data set by {wanted_model_id}: the shard does not belong "
                "to it."
            )
        if isinstance(found, RangeCodingTables):
            return cls(model_id, spec, found, columns)
        return cls(model_id, spec, _load_tables(found, name, load_tables), columns, found)


def _load_tables(
    file: TablesFile, name: str, load_tables: Callable[[TablesFile], SharedTables] | None
) -> RangeCodingTables:
    if load_tables is None:
        raise ShardError(
            f"{name} does not carry its tables: read it in the folder of its data set, which has {file.name}."
        )
    try:
        return load_tables(file).tables
    except ValueError as error:
        raise ShardError(str(error)) from error


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
