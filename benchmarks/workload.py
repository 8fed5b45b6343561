"""What the benchmarks encode, or read: records made around real videos' means, and a network of a given shape."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import glob
import gzip
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vidpress.model.data_set.rows import encode_videos
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.frozen.nearest_rounding import fit_steps
from vidpress.model.records import synthetic
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import read_tfrecords, write_tfrecords
from vidpress.model.records.videos import PooledVideo, parse_video, pool_frames
from vidpress.model.shards.shard_rows import SCHEMA
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables

SPEC = FeatureSpec()
FRAMES = (120, 300)
SHARE_NOT_ZERO = 0.07


class Records(NamedTuple):
    """Records in files.

    Attributes:
      pattern: Of the files.
      num_videos: How many records.
      num_bytes: Of their payloads.
    """

    pattern: str
    num_videos: int
    num_bytes: int


class Encoding(NamedTuple):
    """Videos, and the model that encodes them.

    Attributes:
      source: What the videos are.
      videos: The videos.
      x: Their inputs, float32[num_videos, input_size].
      model: The model.
      model_name: What it is called in a report.
    """

    source: str
    videos: list[PooledVideo]
    x: np.ndarray
    model: FrozenModel
    model_name: str

    def rows(self) -> pa.Table:
        """Return the videos as rows of a shard, in their order."""
        return pa.Table.from_batches([encode_videos(self.model, self.videos).rows]).select(SCHEMA.names)


def add_options(command_line: argparse.ArgumentParser) -> None:
    """Add the options that say what `encoding` returns."""
    command_line.add_argument("--model", help="a frozen model (default: random weights, 1152-2000)")
    command_line.add_argument("--input", help="video-level TFRecords, a pattern (default: YouTube-8M's)")


def encoding(args: argparse.Namespace, num_videos: int, num_banks: int = 1) -> Encoding:
    """Return videos and a model, as the options of `add_options` say.

    Args:
      args: The options.
      num_videos: How many videos.
      num_banks: How many banks of tables the model has, if none is named.
    """
    source, videos = real_videos(args.input, num_videos)
    x = np.stack([video.x for video in videos])
    model = FrozenModel.load(args.model) if args.model else random_model([2000], x, num_banks=num_banks)
    return Encoding(source, videos, x, model, os.path.basename(args.model or "RANDOM WEIGHTS"))


def made_up_ids(number: int) -> list[bytes]:
    """Return so many different ids, whose order says nothing."""
    return [hashlib.blake2b(b"%d" % index, digest_size=8).hexdigest().encode() for index in range(number)]


def real_videos(pattern: str | None, num_videos: int) -> tuple[str, list[PooledVideo]]:
    """Return what the videos are, and the videos.

    Args:
      pattern: TFRecord files; by default YouTube-8M's, video level, under $VIDPRESS_DATA or ../shared/data, or made-up
        ones where these are not at hand.
      num_videos: How many.
    """
    shared = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    data = pathlib.Path(os.environ.get("VIDPRESS_DATA", shared))
    paths = sorted(glob.glob(pattern or f"{data}/yt8m_v2_video/*.tfrecord"))
    if pattern and not paths:
        raise SystemExit(f"--input {pattern} matches no file.")
    payloads = _payloads(paths) if paths else synthetic.make_videos(10**9, spec=SPEC, frames=(8, 8))
    videos = [pool_frames(parse_video(payload, SPEC), SPEC) for payload in itertools.islice(payloads, num_videos)]
    if len(videos) < num_videos:
        raise SystemExit(f"The input holds {len(videos)} videos, fewer than the {num_videos} that are wanted.")
    return "real YouTube-8M videos" if paths else "MADE-UP videos", videos


def _payloads(paths: Sequence[str]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            for _, payload in read_tfrecords(file):
                if isinstance(payload, bytes):
                    yield payload


def write_frame_level(folder: str, videos: Sequence[PooledVideo], num_files: int) -> Records:
    """Write records whose frames are AR(1) noise around the videos' means, as `synthetic.frames_around` makes them."""
    pattern = f"{folder}/frames-*.tfrecord"
    with concurrent.futures.ProcessPoolExecutor() as executor:
        num_bytes = executor.map(
            _write_frames,
            [pattern.replace("*", f"{index:03d}") for index in range(num_files)],
            [videos[index::num_files] for index in range(num_files)],
            range(num_files),
        )
        return Records(pattern, len(videos), sum(num_bytes))


def _write_frames(path: str, videos: Sequence[PooledVideo], seed: int) -> int:
    """Write the records of a file, and return how many bytes they have."""
    rng = np.random.default_rng(seed)
    num_bytes = 0

    def payloads() -> Iterator[bytes]:
        nonlocal num_bytes
        for video in videos:
            q = synthetic.frames_around(video.x, int(rng.integers(FRAMES[0], FRAMES[1] + 1)), rng, SPEC)
            payload = synthetic.serialize_video(video.id, video.labels, q, SPEC)
            num_bytes += len(payload)
            yield payload

    with open(path, "wb") as file:
        write_tfrecords(file, payloads())
    return num_bytes


def write_video_level(folder: str, videos: Sequence[PooledVideo], num_files: int) -> Records:
    """Write records of the videos' means."""
    num_bytes = 0

    def payloads(part: Sequence[PooledVideo]) -> Iterator[bytes]:
        nonlocal num_bytes
        for video in part:
            means = {
                feature.mean_name: x
                for feature, x in zip(
                    SPEC.features, np.split(video.x, np.cumsum([f.size for f in SPEC.features])[:-1]), strict=True
                )
            }
            payload = serialize_record({"id": video.id, "labels": video.labels, **means})
            num_bytes += len(payload)
            yield payload

    pattern = f"{folder}/videos-*.tfrecord"
    for index in range(num_files):
        with open(pattern.replace("*", f"{index:03d}"), "wb") as file:
            write_tfrecords(file, payloads(videos[index::num_files]))
    return Records(pattern, len(videos), num_bytes)


def compress_files(records: Records) -> Records:
    """Write gzip copies of the files, as the dataset's mirrors have them."""
    for path in glob.glob(records.pattern):
        with open(path, "rb") as source, gzip.open(f"{path}.gz", "wb", compresslevel=6) as target:
            while data := source.read(1 << 20):
                target.write(data)
    return records._replace(pattern=f"{records.pattern}.gz")


def random_model(
    hidden: Sequence[int], x: np.ndarray, *, share_not_zero: float = SHARE_NOT_ZERO, num_banks: int = 1
) -> FrozenModel:
    """Return a network of random weights; as in a trained one, more than 90 % of `z_hat` are zero.

    Args:
      hidden: The layers' sizes.
      x: float32[n, input_size], which the tables are fitted to.
      share_not_zero: How many of `z_hat` are not 0, which sets the rate.
      num_banks: How many banks of tables there are.
    """
    rng = np.random.default_rng(0)
    layers = []
    activations = x
    for size, share in zip(hidden, [0.5] * (len(hidden) - 1) + [share_not_zero], strict=True):
        fan_in = activations.shape[1]
        kernel = rng.standard_normal((fan_in, size), np.float32) * np.float32(np.sqrt(2 / fan_in))
        before = activations @ kernel
        # Each unit gets unit variance, and a bias that sets how often it is rounded to more than zero.
        scale = 1 / np.maximum(before.std(axis=0), 1e-6)
        bias = 0.5 - np.quantile(before * scale, 1 - share, axis=0)
        layers.append(((kernel * scale).astype(np.float32), bias.astype(np.float32)))
        activations = np.maximum(before * scale + bias.astype(np.float32), 0)
    tables = RangeCodingTables.fit(np.rint(activations).astype(np.int32))
    hidden = fit_steps(layers, x)
    model = FrozenModel(SPEC, hidden, tables, metadata={"weights": "random"}, rounds_every_layer=True)
    if num_banks == 1:
        return model
    return dataclasses.replace(model, tables=fit_banks(tables, model.quantize(x), num_banks))


def save_stock_model(model: FrozenModel, folder: str) -> None:
    """Write the same network for Keras, and the same tables for tensorflow-compression, which has no banks."""
    import tensorflow as tf

    keras_model = tf.keras.Sequential([tf.keras.Input((model.spec.input_size,))])
    for kernel, bias in model.hidden:
        layer = tf.keras.layers.Dense(kernel.shape[1], activation="relu")
        keras_model.add(layer)
        layer.set_weights([kernel, bias])
    keras_model.save(f"{folder}/stock.keras")
    tables = model.tables.shared
    np.savez(f"{folder}/stock-tables.npz", cdf=tables.lookup, cdf_offset=tables.cdf_offset, precision=tables.precision)
