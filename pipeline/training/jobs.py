"""The steps from TFRecords to a frozen model: reading, training, freezing, and reporting on each."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vidpress.model.features import FeatureSpec
from vidpress.model.files import storage
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.training.options import FreezingOptions, TrainingOptions
from vidpress.pipeline.launching import launch, stopping
from vidpress.pipeline.training.options import ModelOptions

if TYPE_CHECKING:
    import keras

    from vidpress.model.training.training_data import LabelledVideos


def check_output(output: str) -> None:
    """Check, before hours of training, that the model can be written at the end.

    Raises:
      FileExistsError: If the file exists already.
      JobError: If it cannot be written.
    """
    if storage.exists(output):
        raise FileExistsError(f"--output {output} exists already: choose another name or remove it.")
    launch.check_writable(output, os.path.dirname(output) or ".")


def load_videos(patterns: Sequence[str], features: FeatureSpec, num_classes: int | None) -> LabelledVideos:
    """Read the labelled videos of some patterns, or all without their labels, with a progress bar."""
    from vidpress.model.training import training_data

    files = training_data.match_files(patterns)
    with tqdm(unit="video", desc=f"read {launch.count(len(files), 'file')}", disable=None) as bar:
        try:
            return training_data.load_videos(files, features, num_classes, progress=bar.update)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise launch.JobError(
                f"the temporary folder {tempfile.gettempdir()} is full: the means of all videos are kept there. Make "
                "room, or name a larger folder in the environment variable TMPDIR, and run the same command again."
            ) from error


def check_num_videos(num_videos: int, options: FreezingOptions) -> None:
    """Check that there are enough videos to fit the banks to.

    Raises:
      JobError: If not.
    """
    if num_videos < options.banks:
        raise launch.JobError(f"{num_videos} videos are too few for --banks={options.banks}: use fewer banks.")


def train_model(
    options: ModelOptions,
    features: FeatureSpec,
    videos: LabelledVideos,
    validation: LabelledVideos | None,
    work_dir: str,
) -> tuple[FrozenModel, float]:
    """Train a network, or resume the training run in `work_dir`, and freeze it.

    Args:
      options: What is trained, how, and how it is frozen.
      features: What `x` is made of.
      videos: The training data.
      validation: Videos for the metrics in the model's metadata, if given.
      work_dir: As for `vidpress.model.training.loop.train`.

    Returns:
      The model, with its task head and with metadata; and how many seconds the training took.
    """
    from vidpress.model.training import loop

    start = time.monotonic()
    teachers = [FrozenModel.load(path) for path in options.teacher]
    with stopping.finishing() as asked_to_stop:
        try:
            network = loop.train(
                options.training,
                features,
                videos,
                work_dir,
                validation=validation,
                teachers=teachers,
                asked_to_stop=lambda: bool(asked_to_stop()),
            )
        except loop.TrainingStopped as stopped:
            message = f"stopped at step {stopped.step:,}: run the same command again to resume."
            raise stopping.Stopped(asked_to_stop(), message) from stopped
    seconds = time.monotonic() - start
    teacher_ids = [teacher.model_id for teacher in teachers]
    model = freeze_network(
        network, options.training, options.freezing, features, videos, teachers=teacher_ids, validation=validation
    )
    return model, seconds


def freeze_network(
    network: keras.Model,
    training: TrainingOptions,
    options: FreezingOptions,
    features: FeatureSpec,
    videos: LabelledVideos,
    *,
    trained_on: str | None = None,
    teachers: Sequence[str] = (),
    validation: LabelledVideos | None = None,
) -> FrozenModel:
    """Freeze a network, and record where it comes from.

    Args:
      network: The trained network.
      training: How it was trained; it is frozen at `training.lmbda`.
      options: How to freeze it. A baseline's activations, trained without a rate, are rounded to the nearest integers.
      features: What `x` is made of.
      videos: What tables and decoder are fitted to: the training data or, with `trained_on`, other videos.
      trained_on: The SHA-256 of the training data's fingerprint, if these are other videos.
      teachers: The model ids of its teachers.
      validation: Videos for the metrics in the model's metadata, if given.

    Returns:
      The model, with its task head, a decoder of its input, and metadata.
    """
    from vidpress.model.training import freezing

    if not training.lmbda:
        options = dataclasses.replace(options, rounding_lmbda=0.0)
    metadata: dict[str, Any] = {
        "vidpress": importlib.metadata.version("vidpress"),
        "training": training.to_json(),
        "lmbda": training.lmbda,
        "steps": training.steps,
        "seed": training.seed,
        **dataclasses.asdict(options),
        "teachers": list(teachers),
        "training_data": videos.fingerprint if trained_on is None else {"sha256": trained_on},
        **({} if trained_on is None else {"tables_data": videos.fingerprint}),
    }
    model = freezing.with_decoder(freezing.freeze(network, features, videos, options), videos)
    if validation is not None:
        metadata["validation_data"] = validation.fingerprint
        metadata["metrics"] = freezing.measure(model, validation)
        if not training.lmbda:
            metadata["metrics_unrounded"] = freezing.measure_unrounded(model, validation)
    return dataclasses.replace(model, metadata=metadata)


def describe_metrics(model: FrozenModel, validation: LabelledVideos | None) -> list[str]:
    """Return lines about a model's metrics, if it was measured."""
    lines = []
    if validation is not None:
        metrics = model.metadata["metrics"]
        lines += [
            f"On {len(validation):,} other videos ({validation.num_unlabelled:,} without labels left out):",
            f"  GAP {metrics['gap']:.4f}, Hit@1 {metrics['hit_at_1']:.4f}, PERR {metrics['perr']:.4f}, "
            f"mAP {metrics['mean_ap']:.4f}",
            f"  {metrics['bytes_per_video']:.1f} bytes a video ({metrics['bits_per_video'] / 8:.1f} by the tables)",
        ]
        if baseline := model.metadata.get("metrics_unrounded"):
            lines.append(
                f"  not rounded: GAP {baseline['gap']:.4f} at {baseline['bytes_per_video']:.0f} bytes a video "
                "(float32, zlib)"
            )
    return lines
