"""The encode job as one would write it for one machine: tf.data, Keras and tensorflow-compression, without Beam.

tf.data reads and parses on all cores, and ahead of the network; TensorFlow's own threads share the matrix products.
"""

from __future__ import annotations

import glob
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_compression as tfc

FEATURES = {"rgb": 1024, "audio": 128}
SCHEMA = pa.schema([("id", pa.binary()), ("labels", pa.list_(pa.int32())), ("code", pa.binary())])
BATCH_SIZE = 512


def encode(*, file_pattern: str, frame_level: bool, model: str, tables: str, output: str) -> None:
    """Encode files to one Parquet file.

    Args:
      file_pattern: TFRecord files.
      frame_level: Whether they hold frames, or their means.
      model: A saved Keras model, input vectors to bottleneck activations.
      tables: A .npz file with `cdf` and `cdf_offset` in tensorflow-compression's layout, and `precision`.
      output: Path of the Parquet file.
    """
    network = tf.keras.models.load_model(model, compile=False)
    with np.load(tables) as arrays:
        entropy_model = tfc.ContinuousBatchedEntropyModel(
            prior_shape=arrays["cdf_offset"].shape,
            coding_rank=1,
            compression=True,
            range_coder_precision=int(arrays["precision"]),
            cdf=arrays["cdf"],
            cdf_offset=arrays["cdf_offset"],
            bottleneck_dtype=tf.float32,
            offset_heuristic=False,
        )

    @tf.function(input_signature=[tf.TensorSpec([None, sum(FEATURES.values())], tf.float32)])
    def compress(x: tf.Tensor) -> tf.Tensor:
        return entropy_model.compress(network(x, training=False))

    with pq.ParquetWriter(output, SCHEMA) as writer:
        for ids, labels, x in dataset(file_pattern, frame_level):
            columns = [
                pa.array(ids.numpy(), pa.binary()),
                pa.ListArray.from_arrays(
                    pa.array(labels.row_splits.numpy(), pa.int32()), pa.array(labels.values.numpy(), pa.int32())
                ),
                pa.array(compress(x).numpy(), pa.binary()),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))


def dataset(file_pattern: str, frame_level: bool) -> tf.data.Dataset:
    """Return batches of ids, labels and input vectors."""
    files = sorted(glob.glob(file_pattern))
    records = tf.data.TFRecordDataset(
        files, compression_type="GZIP" if files[0].endswith(".gz") else None, num_parallel_reads=tf.data.AUTOTUNE
    )
    if frame_level:
        batches = records.map(parse_frames, tf.data.AUTOTUNE, deterministic=False).ragged_batch(BATCH_SIZE)
    else:
        batches = records.batch(BATCH_SIZE).map(parse_means, tf.data.AUTOTUNE, deterministic=False)
    return batches.prefetch(tf.data.AUTOTUNE)


def parse_frames(payload: tf.Tensor) -> tuple[Any, Any, Any]:
    """Parse a frame-level record and average its frames."""
    context, frames = tf.io.parse_single_sequence_example(
        payload,
        {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.RaggedFeature(tf.int64)},
        {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in FEATURES},
    )
    means = []
    for name, size in FEATURES.items():
        quantized = tf.cast(tf.io.decode_raw(frames[name], tf.uint8), tf.float32)
        means.append(tf.ensure_shape(tf.reduce_mean(quantized, axis=0), [size]))
    return context["id"], context["labels"], tf.concat(means, 0) * (4 / 255) + (4 / 512 - 2)


def parse_means(payloads: tf.Tensor) -> tuple[Any, Any, Any]:
    """Parse a batch of video-level records."""
    features = {f"mean_{name}": tf.io.FixedLenFeature([size], tf.float32) for name, size in FEATURES.items()}
    parsed = tf.io.parse_example(
        payloads,
        {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.RaggedFeature(tf.int64), **features},
    )
    return parsed["id"], parsed["labels"], tf.concat([parsed[name] for name in features], 1)
