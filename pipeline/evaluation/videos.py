"""Measuring the points of an evaluation: training, freezing, coding, and reading back."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vidpress.model import metrics
from vidpress.model.data_set import rows
from vidpress.model.deflate import deflated_bytes
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.videos import PooledVideo
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import SCHEMA, decode_codes, labels_list
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.tables.bits import bits_by_dim
from vidpress.pipeline.evaluation.points import CodecPoint, Context, ModelPoint
from vidpress.pipeline.evaluation.rivals import ACTIVATIONS, FEATURES, RIVALS, Sample
from vidpress.pipeline.training import jobs
from vidpress.pipeline.training.options import ModelOptions

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

# The training error is that of so many of the training videos at most, as is what the rivals are fitted to.
_TRAINING_SAMPLE = 10_000
_FITTING_SAMPLE = 200_000

_CHUNK = 2048

# Of how many dimensions, at most, a record keeps the bits.
_RANKS = 200


def load_data(context: Context) -> tuple[LabelledVideos, LabelledVideos]:
    """Return the training and the validation videos, read once in a process."""
    return _load(context.input, context), _load(context.validation, context)


def _load(patterns: tuple[str, ...], context: Context) -> LabelledVideos:
    return _load_once(patterns, context.spec, context.classes)


@functools.lru_cache(maxsize=2)
def _load_once(patterns: tuple[str, ...], features: FeatureSpec, classes: int) -> LabelledVideos:
    return jobs.load_videos(patterns, features, classes)


def measure_model(point: ModelPoint, context: Context) -> dict[str, Any]:
    """Train, freeze and measure a network, and return its record."""
    videos, validation = load_data(context)
    options = dict(point.options)
    network_dir = os.path.join(context.work_dir, "trainings", point.network_name(context))
    path = point.model_path(context)
    if os.path.exists(path):
        model = FrozenModel.load(path)
    else:
        model, seconds = jobs.train_model(
            ModelOptions.of(point.resolved_options(context)), context.spec, videos, validation, network_dir
        )
        model = dataclasses.replace(
            model, metadata={**model.metadata, "seconds": training_seconds(network_dir, seconds)}
        )
        model.save(path)
    start = time.monotonic()
    record: dict[str, Any] = {
        "method": point.method,
        "hidden": list(options["hidden"]),
        "source": None,
        "head": "own",
        "lmbda": options["lmbda"],
        "seed": options["seed"],
        "steps": model.metadata.get("steps"),
        "options": _jsonable(options),
        "model_id": model.model_id,
    }
    sample = videos.sample(_TRAINING_SAMPLE)
    if options["lmbda"]:
        record |= measure_shard(model, validation)
        record["training"] = task_metrics(lambda x: model.logits(model.quantize(x)), sample)
    else:
        record["validation"] = task_metrics(_network_logits(model), validation)
        record["training"] = task_metrics(_network_logits(model), sample)
        z = np.concatenate([model.bottleneck(validation.x[rows_]) for rows_ in _chunks(len(validation))])
        record["bytes_per_video"] = deflated_bytes(z) / len(validation)
        record["rounded"] = measure_shard(model, validation)
    record["seconds"] = {"train": model.metadata.get("seconds"), "measure": round(time.monotonic() - start, 1)}
    return record


def training_seconds(network_dir: str, seconds: float) -> float:
    """Return how long a training took, which is known to whoever finished it."""
    path = pathlib.Path(network_dir, "seconds.json")
    if not path.exists():
        path.write_text(json.dumps(round(seconds, 1)))
    return json.loads(path.read_text())


def measure_shard(model: FrozenModel, videos: LabelledVideos) -> dict[str, Any]:
    """Encode videos to a shard in memory, decode it, and measure what was read.

    Args:
      model: With its task head.
      videos: Labelled videos that it was not trained on.

    Returns:
      validation: The task's metrics on the decoded features. bytes_per_video: the range coder's codes and the bits that
      tell the bank. stored_bytes_per_video: the columns `code` and `bank` of the Parquet file. tables_bytes: the tables
      in the file's footer. bits_per_video: under the tables. bits_by_rank: pairs of a rank and the bits a video of the
      dimension that has it; the most expensive dimension has rank 1.
    """
    bits = np.zeros(model.num_dims)
    tables, starts = [], range(0, len(videos), _CHUNK)
    for start in starts:
        x = videos.x[start : start + _CHUNK]
        pooled = [
            PooledVideo(str(start + i).encode(), _labels(videos, start + i), values) for i, values in enumerate(x)
        ]
        encoded = rows.encode_videos(model, pooled)
        if encoded.dead_letters:
            raise ValueError(f"Video {start}: {encoded.dead_letters[0].reason}.")
        tables.append(pa.Table.from_batches([encoded.rows]))
    file = io.BytesIO()
    header = ShardHeader(model.model_id, model.spec, model.tables)
    write_shard(file, pa.concat_tables(tables).select(SCHEMA.names), header)
    opened = Shard(file, "the shard in memory")
    num_classes = model.logits(np.zeros((1, model.num_dims))).shape[1]
    accumulator = metrics.MetricsAccumulator(num_classes)
    code_bytes = 0
    for group in range(len(opened.row_group_sizes)):
        batch = opened.read(group)
        z_hat = decode_codes(batch, opened.header.tables)
        bits += bits_by_dim(opened.header.tables, z_hat, batch["bank"].to_numpy()) * len(z_hat)
        code_bytes += sum(map(len, batch["code"].to_pylist()))
        for part in _chunks(len(z_hat)):
            labels = metrics.multi_hot(labels_list(batch["labels"].take(part)), num_classes)
            accumulator.update(model.logits(z_hat[part]), labels)
    num_videos = len(videos)
    stored = opened.column_bytes
    return {
        "validation": _rounded(dataclasses.asdict(accumulator.result())),
        "bytes_per_video": code_bytes / num_videos + np.log2(model.tables.num_banks) / 8,
        "stored_bytes_per_video": (stored["code"] + stored["bank"]) / num_videos,
        "tables_bytes": len(opened.header.tables.to_bytes()),
        "bits_per_video": float(bits.sum() / num_videos),
        "bits_by_rank": by_rank(np.sort(bits / num_videos)[::-1]),
    }


def by_rank(values: np.ndarray) -> list[list[float]]:
    """Return enough `[rank, value]` of many for a curve over the logarithm of the rank."""
    ranks = np.unique(np.rint(np.geomspace(1, len(values), _RANKS)).astype(int))
    return [[int(rank), float(f"{values[rank - 1]:.4g}")] for rank in ranks]


def measure_codecs(points: Sequence[CodecPoint], context: Context) -> Iterator[tuple[CodecPoint, dict[str, Any]]]:
    """Fit, train heads and measure: yield the record of each point, those of one codec after another.

    Args:
      points: Of one source.
      context: What all points share.
    """
    if not points:
        return
    videos, validation = load_data(context)
    videos = videos.sample(_FITTING_SAMPLE)
    source = points[0].source
    baseline = None if source is None else FrozenModel.load(source.model_path(context))
    z, z_validation = (_features(baseline, part) for part in (videos, validation))

    def measure_head(point: CodecPoint, restored: np.ndarray, restored_validation: np.ndarray) -> dict[str, Any]:
        return _measure_head(point, baseline, (videos, restored), (validation, restored_validation), context)

    yield from codec_records(points, z, z_validation, measure_head)


def codec_records(
    points: Sequence[CodecPoint],
    z: np.ndarray,
    z_validation: np.ndarray,
    measure_head: Callable[[CodecPoint, np.ndarray, np.ndarray], dict[str, Any]],
    bytes_key: str = "bytes_per_video",
) -> Iterator[tuple[CodecPoint, dict[str, Any]]]:
    """Yield the record of each codec's points.

    Args:
      points: Of one source.
      z: float32[num_examples, num_dims], what codecs are fitted to.
      z_validation: float32[num_others, num_dims], what they are measured on.
      measure_head: Takes a point and what was restored of both, and returns the metrics and more of its record.
      bytes_key: What an example's bytes are called in a record.
    """
    source = points[0].source
    sample = Sample(z)
    for method, size in dict.fromkeys((point.method, point.size) for point in points):
        start = time.monotonic()
        codec = RIVALS[method].fit(sample, size or 0)
        codes = codec.encode(z_validation)
        num_bytes = codec.num_bytes(codes) / len(z_validation)
        restored, restored_validation = codec.decode(codec.encode(z)), codec.decode(codes)
        error = float(np.mean((restored_validation - z_validation) ** 2) / np.mean((z_validation - z.mean(0)) ** 2))
        fitted = round(time.monotonic() - start, 1)
        for point in points:
            if (point.method, point.size) == (method, size):
                start = time.monotonic()
                measured = measure_head(point, restored, restored_validation)
                yield (
                    point,
                    {
                        "method": method,
                        "size": size,
                        "hidden": None if source is None else list(dict(source.options)["hidden"]),
                        "source": FEATURES if source is None else ACTIVATIONS,
                        "head": point.head,
                        bytes_key: num_bytes,
                        "unexplained_variance": float(f"{error:.4g}"),
                        **measured,
                        "seconds": {"fit": fitted, "measure": round(time.monotonic() - start, 1)},
                    },
                )


def _measure_head(
    point: CodecPoint,
    baseline: FrozenModel | None,
    training: tuple[LabelledVideos, np.ndarray],
    validation: tuple[LabelledVideos, np.ndarray],
    context: Context,
) -> dict[str, Any]:
    """Return the metrics of a head on restored features, and what the head is."""
    # Heads are measured on videos whose `x` is what was stored and read back.
    (videos, restored), (validation_videos, restored_validation) = training, validation
    stored = dataclasses.replace(videos, x=restored, fingerprint={**videos.fingerprint, "sha256": point.name(context)})
    stored_validation = dataclasses.replace(validation_videos, x=restored_validation)
    about: dict[str, Any] = {}
    logits: Callable[[np.ndarray], np.ndarray]
    if point.head == "network":
        network_dir = os.path.join(context.work_dir, "trainings", point.name(context))
        model, seconds = jobs.train_model(ModelOptions.of(dict(point.options)), context.spec, stored, None, network_dir)
        about["train_seconds"] = training_seconds(network_dir, seconds)
        logits = _network_logits(model)
    elif point.head == "logistic":
        from vidpress.model.training import task_heads

        initial = None if baseline is None else baseline.head
        head = task_heads.train_head(restored, videos, context.classes, initial=initial)
        logits, about["rounds"] = head.logits, head.rounds
    elif baseline is None:
        raise ValueError("Input features have no baseline's head: train one.")
    else:
        logits = baseline.logits
    return {
        "validation": task_metrics(logits, stored_validation),
        "training": task_metrics(logits, stored.sample(_TRAINING_SAMPLE)),
        **about,
    }


def _network_logits(model: FrozenModel) -> Callable[[np.ndarray], np.ndarray]:
    """Return the logits of an input without rounding, as those of a network without a rate are meant."""
    return lambda x: model.logits(model.bottleneck(x))


def task_metrics(logits: Callable[[np.ndarray], np.ndarray], videos: LabelledVideos) -> dict[str, float]:
    """Return the task's metrics of `logits` of the videos' `x`: gap, hit_at_1, perr, mean_ap and num_videos."""
    accumulator = None
    for chunk in _chunks(len(videos)):
        scores = logits(np.asarray(videos.x[chunk]))
        accumulator = accumulator or metrics.MetricsAccumulator(scores.shape[1])
        accumulator.update(scores, videos.multi_hot(chunk, scores.shape[1]))
    if accumulator is None:
        raise ValueError("Metrics need at least one video with labels; there was none.")
    return _rounded(dataclasses.asdict(accumulator.result()))


def _features(baseline: FrozenModel | None, videos: LabelledVideos) -> np.ndarray:
    """Return float32[num_videos, num_dims]: the activations of a baseline, or the input."""
    if baseline is None:
        return np.asarray(videos.x)
    return np.concatenate([baseline.bottleneck(videos.x[chunk]) for chunk in _chunks(len(videos))])


def _labels(videos: LabelledVideos, row: int) -> np.ndarray:
    return videos.labels[videos.label_start[row] : videos.label_start[row + 1]]


def _chunks(num_rows: int) -> Iterator[np.ndarray]:
    for start in range(0, num_rows, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, num_rows))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _jsonable(options: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
