"""From the rows of a data set back to the features that were put in, by the decoder that lies beside the shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.model.files.uris import PathError
from vidpress.model.frozen.input_decoder import MAX_FILE_BYTES, DecoderError, DecoderFile, InputDecoder
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.shards.shard_rows import SCHEMA, kept_fields


class KeyClashError(VidpressError, ValueError):
    """Two things that would have one key in a record of the restored input."""


def load_decoder(data_set: str | os.PathLike[str], manifest: Manifest) -> DecoderFile:
    """Load the decoder of a data set's input.

    Raises:
      FileNotFoundError: If the file is missing; the message names it.
      DecoderError: If the data set has none, or if it is damaged or not the one that the manifest lists.
    """
    if manifest.decoder is None:
        raise DecoderError(
            f"{os.fspath(data_set)} has no decoder of its input: model {manifest.model_id} was frozen without one, by "
            "an earlier vidpress. Freeze it again (`vidpress freeze`) and encode with the new model, or use z_hat."
        )
    uri = join(data_set, manifest.decoder.name)
    try:
        data = storage.read_bytes(uri, max_bytes=MAX_FILE_BYTES, links=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri} is missing: fetch it again.") from error
    except PathError as error:
        raise DecoderError(str(error)) from error
    return parse_decoder(data, uri, manifest)


def parse_decoder(data: bytes, uri: str, manifest: Manifest) -> DecoderFile:
    """Return the decoder in the bytes of the file that a manifest lists.

    Raises:
      DecoderError: If it is damaged or not the one that is listed.
    """
    if manifest.decoder is None or hashlib.sha256(data).hexdigest() != manifest.decoder.sha256:
        raise DecoderError(f"{uri} is not the file that its manifest lists: its SHA-256 differs. Fetch it again.")
    file = DecoderFile.from_bytes(data, name=uri)
    wanted = manifest.model_id, manifest.num_dims
    if (file.model_id, file.decoder.num_dims) != wanted:
        raise DecoderError(
            f"{uri} is the decoder of model {file.model_id} with {file.decoder.num_dims} dimensions, not of model "
            f"{wanted[0]} with {wanted[1]}: fetch it again."
        )
    return file


def restored_schema(spec: FeatureSpec, columns: Sequence[KeptColumn] = ()) -> pa.Schema:
    """Return the schema of restored rows: what video-level records of a spec hold, and the number of frames.

    Args:
      spec: What the input is made of, and its keys.
      columns: What is kept of it besides, under its own keys. If one of these is that of the labels, because they were
        kept as they are, or `num_frames`, it stands in their place.

    Raises:
      KeyClashError: If a kept key is that of the id or of a feature.
    """
    fields = [
        pa.field(spec.id_keys[0], pa.binary(), nullable=False),
        *(
            pa.field(feature.mean_name, pa.list_(pa.float32(), feature.size), nullable=False)
            for feature in spec.features
        ),
    ]
    keys = [column.key for column in columns]
    for name in (field.name for field in fields if field.name in keys):
        raise KeyClashError(f"{name!r} is the key of a kept column, and of the id or a feature: name another --id_key.")
    others = (SCHEMA.field("labels").with_name(spec.labels_key), SCHEMA.field("num_frames"))
    fields[1:1] = [field for field in others if field.name not in keys]
    kept = zip(kept_fields(columns), keys, strict=True)
    return pa.schema([*fields, *(field.with_name(key) for field, key in kept)])


def restored_rows(
    decoded: pa.RecordBatch, decoder: InputDecoder, spec: FeatureSpec, columns: Sequence[KeptColumn] = ()
) -> pa.RecordBatch:
    """Restore the input of decoded rows.

    Args:
      decoded: Rows, of `vidpress.model.shards.shard_rows.decoded_schema`.
      decoder: The data set's.
      spec: What the input is made of, and its keys.
      columns: The kept columns of the rows.

    Returns:
      The rows, of `restored_schema(spec, columns)`.

    Raises:
      KeyClashError: If a kept key is that of the id, a feature, or labels that there are.
    """
    schema = restored_schema(spec, columns)
    if spec.labels_key in (column.key for column in columns) and len(decoded["labels"].flatten()):
        raise KeyClashError(
            f"{spec.labels_key!r} is the key of a kept column, and of the labels: name another --labels_key."
        )
    z_hat = decoded["z_hat"].flatten().to_numpy().reshape(decoded.num_rows, -1)
    x = decoder.restore(z_hat.astype(np.int32))
    # What is kept comes last, so that it takes the place of another.
    values = {spec.id_keys[0]: decoded["id"], spec.labels_key: decoded["labels"], "num_frames": decoded["num_frames"]}
    start = 0
    for feature in spec.features:
        part = np.ascontiguousarray(x[:, start : start + feature.size]).reshape(-1)
        values[feature.mean_name] = pa.FixedSizeListArray.from_arrays(pa.array(part), feature.size)
        start += feature.size
    values |= {column.key: decoded[column.name] for column in columns}
    return pa.RecordBatch.from_arrays([values[name] for name in schema.names], schema=schema)
