"""Train networks by ideas that did not become options of vidpress, and measure them.

docs/results/yt8m-ideas says what they brought. All networks but those without a rate are for a range of lmbda. What an
idea does not name is as in `vidpress train`.

- `one-model`: nothing else; with other widths, what a wider bottleneck brings by itself.
- `without-a-rate`: a network without a rate and without rounding, for more steps than others have.
- `high-rate-teaches`: in each step, every video goes through the network twice: at the lowest lmbda of the range, where
  it learns the labels, and at another, where it learns the probabilities that the first gives. Each counts a half.
- `soft-then-hard`: in training, layers after the bottleneck get softly rounded values with noise (Agustsson & Theis,
  2020), whose sharpness grows. Then the encoder stays as it is, and the head and the prior are trained on with integers
  (Guo et al., 2021). What the network was before that is measured, too.

What is measured is appended to `--output`, a line for each seed and lmbda; seeds that are there already are not trained
again. At the end, the means of all seeds in that file are printed.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from tqdm import tqdm

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.networks import classifiers, many_rates, noise
from vidpress.model.training import freezing
from vidpress.model.training.loop import adam_groups, build_network, build_step
from vidpress.model.training.options import FreezingOptions, TrainingOptions
from vidpress.model.training.steps import TrainingStep
from vidpress.model.training.training_data import LabelledVideos, training_batches
from vidpress.pipeline.launching import machine
from vidpress.pipeline.training.jobs import load_videos
from vidpress.pipeline.training.options import sizes

METRICS = {"bytes_per_video": ".1f", "gap": ".4f", "hit_at_1": ".4f", "perr": ".4f", "mean_ap": ".4f"}

# Soft rounding is nearly the identity at first, and nearly rounding at the end.
SHARPNESS = (1.0, 8.0)

# With integers, the head and the prior learn for so many steps, at this share of the first learning rates.
HARD_STEPS = 300
HARD_LEARNING_RATE = 0.1


class LowestFirst(many_rates.Rates):
    """In training, the first half of a batch has the lowest lmbda; the other half has lmbda from all of the range."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return the positions, float32[batch, 1]."""
        if not training:
            return super().call(inputs)
        drawn = super().call(inputs[::2], training=True)
        return ops.concatenate([ops.zeros_like(drawn), drawn], axis=0)


class SoftRounding(many_rates.ManyRatesBottleneck):
    """In training, gives softly rounded values with noise, and charges for those."""

    num_steps = 1

    def call(self, inputs: list[Any], training: bool = False) -> Any:
        """Return what a decoder would best make of the noisy values; outside of training, integers."""
        z_hat = super().call(inputs, training)
        if not training:
            return z_hat
        noisy = self._rounded(inputs[0], training=True, count=False)[2]
        # Soft rounding is one to one, and the noise is uniform: this is the middle of what could have become `noisy`.
        return _soft_inverse(noisy - 0.5, self._sharpness()) + 0.5

    def _rounded(self, inputs: Any, training: bool, *, count: bool = True) -> tuple[Any, Any, Any]:
        z = ops.cast(inputs, "float32")
        if not training:
            return super()._rounded(inputs, training)
        if count:
            self._calls.assign(self._calls + 1)
        drawn = noise.uniform(ops.shape(z), self.seed, ops.convert_to_tensor(self._calls))
        return z, ops.round(z), _soft_round(z, self._sharpness()) + drawn - 0.5

    def _sharpness(self) -> Any:
        low, high = SHARPNESS
        share = ops.minimum(ops.cast(self._calls, "float32") / self.num_steps, 1.0)
        return low * ops.exp(share * math.log(high / low))


def _soft_round(z: Any, sharpness: Any) -> Any:
    """Return eq. 7 of Agustsson & Theis (2020)."""
    middle = ops.floor(z) + 0.5
    return middle + ops.tanh(sharpness * (z - middle)) / (2 * ops.tanh(sharpness / 2))


def _soft_inverse(values: Any, sharpness: Any) -> Any:
    """Return what is softly rounded to these values."""
    middle = ops.floor(values) + 0.5
    return middle + ops.arctanh(2 * (values - middle) * ops.tanh(sharpness / 2) * (1 - 1e-6)) / sharpness


@dataclasses.dataclass(frozen=True)
class Task:
    """What networks are trained and measured on."""

    spec: FeatureSpec
    videos: LabelledVideos
    validation: LabelledVideos

    def network(self, options: TrainingOptions) -> keras.Model:
        """Return a network that is not trained yet."""
        return build_network(options, self.spec, self.videos.class_frequencies(options.num_classes))

    def train(self, step: Callable[[Any, Any], Any], options: TrainingOptions, first: int, num_steps: int) -> None:
        """Make steps, from the batch of step `first` on."""
        batches = training_batches(
            self.videos,
            num_classes=options.num_classes,
            batch_size=options.batch_size,
            seed=options.seed,
            first_step=first,
            num_steps=num_steps,
        )
        for x, labels in tqdm(batches, total=num_steps, unit="step", disable=None):
            step(x, labels)

    def measure(self, network: keras.Model, lmbdas: Sequence[float], banks: int) -> Iterator[dict[str, Any]]:
        """Yield what a network reaches at each lmbda; without a rate, what it reaches without rounding."""
        if many_rates.rates_of(network) is None:
            model = self._frozen(network, FreezingOptions(banks=1, rounding_lmbda=0.0))
            yield {"lmbda": 0.0, **freezing.measure_unrounded(model, self.validation)}
            return
        for lmbda in lmbdas:
            many_rates.select_lmbda(network, lmbda)
            model = self._frozen(network, FreezingOptions(banks=banks))
            yield {"lmbda": lmbda, **freezing.measure(model, self.validation)}

    def _frozen(self, network: keras.Model, options: FreezingOptions) -> FrozenModel:
        return freezing.freeze(network, self.spec, self.videos, options)


def one_model(task: Task, options: TrainingOptions) -> Iterator[tuple[str, keras.Model]]:
    """Yield a network as `vidpress train` makes it."""
    network = task.network(options)
    task.train(build_step(network, options), options, 0, options.steps)
    yield "", network


def high_rate_teaches(task: Task, options: TrainingOptions) -> Iterator[tuple[str, keras.Model]]:
    """Yield a network whose high-rate end taught the others."""
    with mock.patch.object(many_rates, "Rates", LowestFirst):
        network = task.network(options)

    def losses(x: Any, labels: Any) -> tuple[Any, Any]:
        logits = network(ops.concatenate([x, x], axis=0), training=True)
        high = ops.split(ops.cast(logits, "float32"), 2, axis=0)[0]
        targets = ops.concatenate([labels, ops.stop_gradient(ops.sigmoid(high))], axis=0)
        loss = classifiers.task_loss(targets, logits)
        return loss, loss + sum(network.losses)

    task.train(TrainingStep(network, losses, adam_groups(network, options)), options, 0, options.steps)
    yield "", network


def soft_then_hard(task: Task, options: TrainingOptions) -> Iterator[tuple[str, keras.Model]]:
    """Yield a network that learned with soft rounding, and then the same with its head trained on."""
    with mock.patch.object(many_rates, "ManyRatesBottleneck", SoftRounding):
        network = task.network(options)
    (bottleneck,) = (layer for layer in network.layers if isinstance(layer, SoftRounding))
    bottleneck.num_steps = options.steps
    task.train(build_step(network, options), options, 0, options.steps)
    yield "soft", network
    after = (
        f"{many_rates.RATE_AFFINE}_{classifiers.BOTTLENECK}",
        classifiers.LOGITS,
        f"{many_rates.RATE_AFFINE}_{classifiers.LOGITS}",
    )
    head = [variable for name in after for variable in network.get_layer(name).trainable_variables]
    groups = adam_groups(network, options, HARD_LEARNING_RATE)
    groups["optimizer"] = (groups["optimizer"][0], head)

    def losses(x: Any, labels: Any) -> tuple[Any, Any]:
        loss = classifiers.task_loss(labels, network(x, training=False))
        return loss, loss + sum(network.losses)

    step = TrainingStep(network, losses, groups)
    rng = np.random.default_rng(options.seed)
    low, high = options.lmbda_range or (options.lmbda, options.lmbda)

    def step_at_any_lmbda(x: Any, labels: Any) -> None:
        many_rates.select_lmbda(network, low * (high / low) ** rng.random())
        step(x, labels)

    task.train(step_at_any_lmbda, options, options.steps, HARD_STEPS)
    yield "then hard", network


IDEAS: dict[str, Callable[[Task, TrainingOptions], Iterator[tuple[str, keras.Model]]]] = {
    "one-model": one_model,
    "without-a-rate": lambda task, options: one_model(task, dataclasses.replace(options, lmbda=0.0, lmbda_range=None)),
    "high-rate-teaches": high_rate_teaches,
    "soft-then-hard": soft_then_hard,
}


def measured_ideas(args: argparse.Namespace, task: Task, seed: int) -> Iterator[dict[str, Any]]:
    """Train a network by an idea, and yield what it reaches at each stage and lmbda."""
    options = TrainingOptions(
        hidden=args.hidden,
        lmbda=args.lmbda_range[0],
        lmbda_range=tuple(args.lmbda_range),
        steps=args.steps,
        num_classes=args.classes,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        input_dropout=args.input_dropout,
        prior_banks=args.banks,
        mixed_precision=True,
        seed=seed,
    )
    for stage, network in IDEAS[args.idea](task, options):
        for reached in task.measure(network, args.lmbda, args.banks):
            yield {"name": args.name, "stage": stage, "seed": seed, **reached}


def summary(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line of a Markdown table for each network and lmbda."""
    by_row = collections.defaultdict(list)
    for record in records:
        by_row[record["name"], record["stage"], record["lmbda"]].append(record)
    yield f"| | seeds | {' | '.join(METRICS)} |"
    yield f"| --- {'| --- ' * (1 + len(METRICS))}|"
    for (name, stage, lmbda), rows in by_row.items():
        cells = []
        for metric, form in METRICS.items():
            values = [row[metric] for row in rows]
            spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}")
        label = ", ".join(filter(None, (name, stage, f"lmbda {lmbda:g}")))
        yield f"| {label} | {len(rows)} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is not in the file yet, and print what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idea", choices=IDEAS)
    parser.add_argument("--name", required=True, help="of the rows in --output")
    parser.add_argument("--input", nargs="+", required=True, help="training data: patterns of TFRecords")
    parser.add_argument("--validation", nargs="+", required=True, help="what is measured on")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON lines, to which is added")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--features", type=FeatureSpec.parse, default=FeatureSpec())
    parser.add_argument("--classes", type=int, default=3862)
    parser.add_argument("--hidden", type=sizes, default=(2000,))
    parser.add_argument("--lmbda_range", type=float, nargs=2, default=(0.001, 0.006), metavar=("LOW", "HIGH"))
    parser.add_argument("--lmbda", type=float, nargs="+", default=[0.001, 0.002, 0.003], help="where it is measured")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=0.0014)
    parser.add_argument("--weight_decay", type=float, default=1e-4)
    parser.add_argument("--input_dropout", type=float, default=0.2)
    parser.add_argument("--banks", type=int, default=64)
    args = parser.parse_args(argv)
    print(machine.describe(), file=sys.stderr, flush=True)
    records = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    done = {record["seed"] for record in records if record["name"] == args.name}
    if seeds := [seed for seed in args.seeds if seed not in done]:
        parts = (load_videos(patterns, args.features, args.classes) for patterns in (args.input, args.validation))
        task = Task(args.features, *parts)
        for seed in seeds:
            reached = list(measured_ideas(args, task, seed))
            records += reached
            with args.output.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in reached)
    print("\n".join(summary(records)))


if __name__ == "__main__":
    main()
