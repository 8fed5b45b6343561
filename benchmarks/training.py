"""Time a training step: without a rate, with one, for many rates; a plain Keras loop; and what the machine allows.

All train the same layers on the same made-up videos, and take turns. The plain loop is `keras.Model.train_on_batch` of
a network of Keras layers alone, with Keras's loss and Adam. The bound is the step's matrix products in NumPy, and what
Adam has to move between processor and memory: weights, two moments and gradients read, weights and moments written.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from results import Report, parser

from vidpress.model.features import FeatureSpec
from vidpress.model.training.loop import build_network, build_step
from vidpress.model.training.options import TrainingOptions
from vidpress.pipeline.launching import machine

TARGET = 1 / 1.3
LMBDA = 0.002
# What Adam moves a weight: it reads weight, gradient and both moments, and writes weight and moments.
ADAM_BYTES = 7 * 4


def plain_keras(options: TrainingOptions, input_size: int) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Return a step of a network of Keras layers alone."""
    layers = [keras.Input((input_size,))]
    for units in options.hidden:
        dense = keras.layers.Dense(
            units, use_bias=False, kernel_regularizer=keras.regularizers.L2(options.weight_decay)
        )
        layers += [dense, keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers.append(
        keras.layers.Dense(options.num_classes, kernel_regularizer=keras.regularizers.L2(options.weight_decay))
    )
    network = keras.Sequential(layers)
    network.compile(keras.optimizers.Adam(options.learning_rate), keras.losses.BinaryCrossentropy(from_logits=True))
    return network.train_on_batch


def products(options: TrainingOptions, input_size: int, batch_size: int) -> Callable[[], object]:
    """Return what does a step's matrix products: each layer's, that of its kernel's gradient, and its input's."""
    rng = np.random.default_rng(0)
    sizes = (input_size, *options.hidden, options.num_classes)
    x = [rng.normal(size=(batch_size, size)).astype(np.float32) for size in sizes]
    kernels = [rng.normal(size=pair).astype(np.float32) for pair in itertools.pairwise(sizes)]

    def multiply() -> None:
        for index, kernel in enumerate(kernels):
            x[index] @ kernel
            x[index].T @ x[index + 1]
            if index:
                x[index + 1] @ kernel.T

    return multiply


def memory(num_weights: int) -> Callable[[], object]:
    """Return what moves as many bytes as Adam does, copying."""
    source = np.zeros(num_weights * ADAM_BYTES // 8, np.float32)  # copying reads and writes
    target = np.zeros_like(source)
    return lambda: np.copyto(target, source)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the steps in turns."""
    command_line = parser(__doc__, repeats=7)
    command_line.add_argument("--hidden", default="6000,2000", help="layer sizes (default: %(default)s)")
    command_line.add_argument("--batch_size", type=int, default=200, help="videos a step (default: %(default)s)")
    command_line.add_argument("--steps", type=int, default=5, help="a turn (default: %(default)s)")
    command_line.add_argument("--mixed_precision", action="store_true", help="multiply in bfloat16")
    args = command_line.parse_args(argv)
    print(machine.describe(), flush=True)
    spec = FeatureSpec.parse("mean_rgb:1024,mean_audio:128")
    hidden = tuple(map(int, args.hidden.split(",")))
    base = {"hidden": hidden, "batch_size": args.batch_size, "mixed_precision": args.mixed_precision}
    kinds = {
        "without a rate": TrainingOptions(lmbda=0.0, **base),
        "with a rate": TrainingOptions(lmbda=LMBDA, **base),
        "for many rates": TrainingOptions(lmbda=LMBDA, lmbda_range=(LMBDA / 4, LMBDA * 4), **base),
    }
    rng = np.random.default_rng(0)
    num_classes = kinds["with a rate"].num_classes
    x = rng.normal(size=(args.batch_size, spec.input_size)).astype(np.float32)
    labels = (rng.random((args.batch_size, num_classes)) < 3 / num_classes).astype(np.float32)
    plain = plain_keras(kinds["with a rate"], spec.input_size)
    work: dict[str, Callable[[], object]] = {"plain Keras, without a rate": lambda: plain(x, labels)}
    for name, options in kinds.items():
        step = build_step(build_network(options, spec, None), options)
        work[name] = lambda step=step: float(step(x, labels))
    sizes = (spec.input_size, *hidden, num_classes)
    num_weights = sum(first * second for first, second in itertools.pairwise(sizes))
    work["bound: matrix products"] = products(kinds["with a rate"], spec.input_size, args.batch_size)
    work["bound: Adam's memory"] = memory(num_weights)
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(args.repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                run()
            if turn:
                taken[name].append((time.perf_counter() - start) / args.steps)
    precision = "bfloat16" if args.mixed_precision else "float32"
    report = Report(f"Training, {spec.input_size}-{args.hidden.replace(',', '-')}-{num_classes}, {precision}")
    report.note(
        f"Batches of {args.batch_size}, Keras {keras.__version__} on {keras.backend.backend()}, {args.repeats} turns "
        f"of {args.steps} steps."
    )
    for name, seconds in taken.items():
        report.row(name, {"ms a step": [1000 * each for each in seconds]}, ".0f")
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    for name in ("with a rate", "for many rates"):
        what = f"training steps a second {name}, as a share of those without, {report.title.partition(', ')[2]}"
        report.target(what, TARGET, medians["without a rate"] / medians[name])
    report.finish(args)


if __name__ == "__main__":
    main()
