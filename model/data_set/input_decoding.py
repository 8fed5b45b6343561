"""From the rows of a data set back to the features that were put in, by the decoder that lies beside the shards."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import FeatureSpec
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.model.files.uris import PathError
from vidpress.model.frozen.input_decoder import MAX_FILE_BYTES, DecoderError, DecoderFile, InputDecoder
from vidpress.model.shards.shard_rows import SCHEMA


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


def restored_schema(spec: FeatureSpec) -> pa.Schema:
    """Return the schema of restored rows: what video-level records of a spec hold, and the number of frames."""
    return pa.schema(
        [
            pa.field(spec.id_keys[0], pa.binary(), nullable=False),
            pa.field(spec.labels_key, SCHEMA.field("labels").type, nullable=False),
            SCHEMA.field("num_frames"),
            *(
                pa.field(feature.mean_name, pa.list_(pa.float32(), feature.size), nullable=False)
                for feature in spec.features
            ),
        ]
    )


def restored_rows(decoded: pa.RecordBatch, decoder: InputDecoder, spec: FeatureSpec) -> pa.RecordBatch:
    """Restore the input of decoded rows.

    Args:
      decoded: Rows, of `vidpress.model.shards.shard_rows.decoded_schema`.
      decoder: The data set's.
      spec: What the input is made of, and its keys.

    Returns:
      The rows, of `restored_schema(spec)`.
    """
    z_hat = decoded["z_hat"].flatten().to_numpy().reshape(decoded.num_rows, -1)
    x = decoder.restore(z_hat.astype(np.int32))
    columns = [decoded["id"], decoded["labels"], decoded["num_frames"]]
    start = 0
    for feature in spec.features:
        values = np.ascontiguousarray(x[:, start : start + feature.size]).reshape(-1)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values), feature.size))
        start += feature.size
    return pa.RecordBatch.from_arrays(columns, schema=restored_schema(spec))
