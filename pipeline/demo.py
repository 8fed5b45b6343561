"""The demo: all of vidpress on a small data set, and what it gains, in a few minutes."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidpress.model import synthetic
from vidpress.model.dataset import VideoDataset
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen_model import FrozenModel
from vidpress.model.manifest import Manifest
from vidpress.pipeline import decode, encode, train

if TYPE_CHECKING:
    from vidpress.model.training_data import LabelledVideos

_HIDDEN = 512
_LMBDA = 0.0005
_STEPS = 1000
# So few steps want a higher rate than the default, which suits thousands.
_LEARNING_RATE = 0.002
_CLASSIFIER_EPOCHS = 4
_CLASSIFIER_LEARNING_RATE = 0.002

# Float32 features and multi-hot labels, a batch at a time.
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


class DemoData(NamedTuple):
    """The demo's input.

    Attributes:
      train: Glob of the training files.
      validation: Glob of the validation files.
      num_classes: How many classes there are.
      description: What the data are.
    """

    train: str
    validation: str
    num_classes: int
    description: str


def find_data(output: pathlib.Path) -> DemoData:
    """Return the real YouTube-8M where `VIDPRESS_DATA` or `../shared/data` holds it, else made-up videos."""
    folder = pathlib.Path(os.environ.get("VIDPRESS_DATA", "../shared/data")) / "yt8m_v2_video"
    if folder.is_dir():
        return DemoData(
            train=str(folder / "validate00[0-9][0-9].tfrecord"),
            validation=str(folder / "validate01[0-9][0-9].tfrecord"),
            num_classes=3862,
            description=f"YouTube-8M v2, video level, from {folder}",
        )
    print("No real data at $VIDPRESS_DATA or ../shared/data: making up synthetic videos.")
    num_classes = 100
    synthetic.write_shards(output / "synthetic", 6, 800, num_classes=num_classes, frames=(8, 16))
    return DemoData(
        train=str(output / "synthetic" / "synthetic-0000[0-4]*.tfrecord"),
        validation=str(output / "synthetic" / "synthetic-00005*.tfrecord"),
        num_classes=num_classes,
        description="SYNTHETIC videos, frame level, made up with planted classes",
    )


def classifier_gap(train_epoch: Callable[[], Batches], validation: Callable[[], Batches]) -> float:
    """Train a linear classifier on features, as a user's training job would, and return its GAP on others.

    Args:
      train_epoch: Gives one epoch of training batches.
      validation: Gives the validation batches.
    """
    import tensorflow as tf

    from vidpress.model.metrics import MetricsAccumulator

    tf.keras.utils.set_random_seed(0)
    features, labels = next(train_epoch())
    classifier = tf.keras.Sequential([tf.keras.layers.BatchNormalization(), tf.keras.layers.Dense(labels.shape[1])])
    classifier.build((None, features.shape[1]))
    optimizer = tf.keras.optimizers.legacy.Adam(_CLASSIFIER_LEARNING_RATE)

    @tf.function(reduce_retracing=True)
    def step(features: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = classifier(features, training=True)
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
            loss = tf.reduce_mean(tf.reduce_sum(losses, axis=1))
        variables = classifier.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(_CLASSIFIER_EPOCHS):
        for features, labels in train_epoch():
            step(tf.constant(features), tf.constant(labels))
    metrics = MetricsAccumulator(labels.shape[1])
    for features, labels in validation():
        metrics.update(classifier(features, training=False).numpy(), labels)
    return metrics.result().gap


def _shuffled(x: np.ndarray, videos: LabelledVideos, num_classes: int) -> Callable[[], Batches]:
    rng = np.random.default_rng(0)

    def epoch() -> Batches:
        order = rng.permutation(len(x))
        for start in range(0, len(x), 100):
            rows = order[start : start + 100]
            yield x[rows], videos.multi_hot(rows, num_classes).astype(np.float32)

    return epoch


def _batches(dataset: VideoDataset) -> Callable[[], Batches]:
    return lambda: ((batch.features, np.asarray(batch.labels)) for batch in dataset)


def run(output: pathlib.Path, steps: int) -> str:
    """Run the demo into a new folder.

    Args:
      output: The folder.
      steps: Training steps of each of the two networks.

    Returns:
      The table to print.
    """
    start = time.monotonic()
    data = find_data(output)
    print(f"Data: {data.description}")
    paths = {lmbda: output / f"model-lmbda{lmbda:g}.safetensors" for lmbda in (0.0, _LMBDA)}
    for lmbda, path in paths.items():
        print(f"\nTraining a 2-layer network, {'without rate' if not lmbda else f'lmbda {lmbda}'}:", flush=True)
        train.main(
            [
                *("--input", data.train, "--validation", data.validation, "--output", str(path)),
                *(
                    "--lmbda",
                    str(lmbda),
                    "--learning_rate",
                    str(_LEARNING_RATE),
                    "--hidden",
                    str(_HIDDEN),
                    "--classes",
                    str(data.num_classes),
                ),
                *("--steps", str(steps), "--validate_every", str(steps), "--checkpoint_every", str(steps)),
            ]
        )
    for name, glob in (("train", data.train), ("validation", data.validation)):
        print(f"\nEncoding the {name} videos:", flush=True)
        encode.main(["--input", glob, "--model", str(paths[_LMBDA]), "--output", str(output / f"compact-{name}")])
    print("\nDecoding the validation videos:", flush=True)
    decode.main(["--input", str(output / "compact-validation"), "--output", str(output / "features-validation")])

    print("\nTraining a classifier on the decoded features, and one on the baseline's:", flush=True)
    from vidpress.model import freezing, training_data

    spec = FeatureSpec()
    sets = {
        name: training_data.load_videos(training_data.match_files([glob]), spec, data.num_classes)
        for name, glob in (("train", data.train), ("validation", data.validation))
    }
    baseline = FrozenModel.load(paths[0.0])
    z = {name: baseline.bottleneck(np.asarray(videos.x)) for name, videos in sets.items()}
    epochs = {name: _shuffled(z[name], videos, data.num_classes) for name, videos in sets.items()}
    compact = {
        name: VideoDataset(output / f"compact-{name}", 100, shuffle=name == "train", num_classes=data.num_classes)
        for name in sets
    }
    manifest = Manifest.load(output / "compact-validation")
    stored = sum(entry.bytes for entry in manifest.shards) / manifest.counts.videos
    rows = [
        ("features x, float32 + zlib", freezing.deflated_bytes(sets["validation"].x) / len(sets["validation"]), None),
        (
            "activations without rate, float32 + zlib",
            freezing.deflated_bytes(z["validation"]) / len(z["validation"]),
            classifier_gap(epochs["train"], epochs["validation"]),
        ),
        (
            "vidpress, whole Parquet file",
            stored,
            classifier_gap(_batches(compact["train"]), _batches(compact["validation"])),
        ),
    ]
    lines = [
        f"\n{manifest.counts.videos:,} validation videos of {data.description}:\n",
        f"  {'':<42}{'bytes a video':>14}{'GAP':>9}",
    ]
    lines += [f"  {name:<42}{size:>14,.1f}{'' if gap is None else f'{gap:9.4f}'}" for name, size, gap in rows]
    lines.append(f"\n  vidpress takes {stored / rows[1][1]:.1%} of the bytes. The codes alone are ")
    lines[-1] += f"{manifest.counts.code_bytes / manifest.counts.videos:,.1f} bytes a video."
    lines.append("  GAP: of a linear classifier trained on the features that were read back.\n")
    lines.append(f"Done in {time.monotonic() - start:.0f} s. The models, data sets and features lie in {output}/")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo with command-line options."""
    parser = argparse.ArgumentParser(
        prog="vidpress demo",
        description="Train a small bottleneck, freeze it, encode, decode, train a classifier on the decoded features "
        "and compare; on real YouTube-8M at $VIDPRESS_DATA or ../shared/data, else on synthetic videos.",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("demo-output"),
        help="folder, replaced (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=_STEPS, help="training steps (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.output.exists():
        if not (args.output / ".vidpress-demo").exists():
            parser.error(f"--output {args.output} exists and is not a demo's: name another folder.")
        shutil.rmtree(args.output)
    args.output.mkdir(parents=True)
    (args.output / ".vidpress-demo").touch()
    print(run(args.output, args.steps))


if __name__ == "__main__":
    main()
