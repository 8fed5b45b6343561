"""Training on images: steps, checkpoints, progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import keras
from keras import ops
from tqdm import tqdm

from vidpress.model.images.batches import training_batches
from vidpress.model.images.experiments import Experiment, Images, ImageTrainingOptions
from vidpress.model.images.networks import build_image_network, start_as
from vidpress.model.networks.bottleneck import Bottleneck, bottleneck_of
from vidpress.model.networks.many_rates import select_lmbda
from vidpress.model.training import checkpoints
from vidpress.model.training.loop import enough_memory, optimizer_groups
from vidpress.model.training.options import json_defaults, json_values
from vidpress.model.training.progress import mean_loss
from vidpress.model.training.steps import TrainingStep

_REPORT_EVERY = 50
_MOMENTUM = 0.9  # He et al.
# With teachers, the share of the task's loss that is about their probabilities; the rest is about the labels.
_TEACHERS_SHARE = 0.5


def train_on_images(
    experiment: Experiment,
    options: ImageTrainingOptions,
    data: Images,
    work_dir: str | os.PathLike[str],
    *,
    teachers: Mapping[str, keras.Model] = MappingProxyType({}),
) -> keras.Model:
    """Train an experiment's network, or resume the training run in `work_dir`; write a checkpoint after every epoch.

    With teachers, the network starts as the first of them (`networks.start_as`), and learns the mean of their class
    probabilities besides the labels.

    A training run that is stopped and resumed ends with the same weights as one that is never stopped, on the same
    machine.

    Args:
      experiment: Which network, for which images.
      options: How to train.
      data: The training images.
      work_dir: A folder for `checkpoints/`.
      teachers: Networks of the same experiment, trained with `lmbda=0`, by names that tell them apart.

    Returns:
      The trained network (`build_image_network`).

    Raises:
      TrainingError: If `work_dir` contains a training run with other options or data, or if the loss is not finite.
    """
    folder = os.fspath(work_dir)
    fixed = {"experiment": experiment.name, "training_data": data.fingerprint["sha256"], **json_values(options)}
    if options.lmbda_range is not None:
        del fixed["lmbda"]
    fixed["teachers"] = list(teachers)
    checkpoints.check_work_dir(folder, fixed, json_defaults(ImageTrainingOptions) | {"teachers": []})
    network = build_image_network(
        experiment,
        lmbda=options.lmbda,
        lmbda_range=options.lmbda_range,
        prior_banks=options.prior_banks,
        spatial=options.spatial,
        mixed_precision=options.mixed_precision,
        seed=options.seed,
    )
    if teachers:
        start_as(network, next(iter(teachers.values())))
    last_step = num_steps(options, data)
    training_step = _training_step(network, options, last_step, list(teachers.values()))
    first_step = checkpoints.restore_newest(folder, training_step.state) or 0
    if options.lmbda_range is not None:
        select_lmbda(network, options.lmbda)
    if first_step == last_step:
        return network
    batches = training_batches(
        data,
        experiment,
        batch_size=options.batch_size,
        seed=options.seed,
        first_step=first_step,
        num_steps=last_step - first_step,
    )
    epoch_steps = max(1, len(data) // options.batch_size)
    bottleneck = bottleneck_of(network)
    tasks: list[Any] = []
    numbers: dict[str, str] = {}
    with enough_memory(), tqdm(total=last_step, initial=first_step, unit="step", desc="train", disable=None) as bar:
        for step, (pixels, labels) in enumerate(batches, first_step + 1):
            tasks.append(training_step(pixels, labels))
            bar.update()
            if step % _REPORT_EVERY == 0 or step == last_step:
                numbers = _report(options, step, tasks, bottleneck)
                bar.set_postfix(numbers)
            if step % epoch_steps == 0 or step == last_step:
                checkpoints.save(folder, step, training_step.state, max_to_keep=1)
                text = ", ".join(f"{name} {value}" for name, value in numbers.items())
                tqdm.write(f"step {step:,} of {last_step:,}: {text}", file=sys.stderr)
    return network


def num_steps(options: ImageTrainingOptions, data: Images) -> int:
    """Return how many steps a training run takes: as its options say, or as many whole batches as its epochs have."""
    if options.epochs is None:
        return cast(int, options.steps)
    return max(1, options.epochs * len(data) // options.batch_size)


def learning_rates(
    first: float, decays: Sequence[float], last_step: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate of each step of a training run (`ImageTrainingOptions.decays`)."""
    if not decays:
        return keras.optimizers.schedules.CosineDecay(first, last_step)
    # Steps are counted from 0, and a boundary is the last step of what is before it.
    boundaries = [int(share * last_step) - 1 for share in decays]
    values = [first / 10**index for index in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def _training_step(
    network: keras.Model, options: ImageTrainingOptions, last_step: int, teachers: Sequence[keras.Model]
) -> TrainingStep:
    def schedule(learning_rate: float) -> keras.optimizers.schedules.LearningRateSchedule:
        return learning_rates(learning_rate, options.decays, last_step)

    if options.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(schedule(options.learning_rate), momentum=_MOMENTUM, name="optimizer")
    else:
        optimizer = keras.optimizers.Adam(schedule(options.learning_rate), name="optimizer")
    kernels = [variable for variable in network.trainable_variables if "kernel" in variable.name]

    def losses(pixels: Any, labels: Any) -> tuple[Any, Any]:
        logits = network(pixels, training=True)
        task = ops.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
        if teachers:
            taught = sum(ops.softmax(teacher(pixels, training=False)) for teacher in teachers) / len(teachers)
            learned = keras.losses.categorical_crossentropy(ops.stop_gradient(taught), logits, from_logits=True)
            task = _TEACHERS_SHARE * ops.mean(learned) + (1 - _TEACHERS_SHARE) * task
        squares = sum(ops.sum(ops.square(kernel)) for kernel in kernels)
        return task, task + options.weight_decay / 2 * squares + sum(network.losses)

    prior_optimizer = keras.optimizers.Adam(schedule(options.prior_learning_rate), name="prior_optimizer")
    # On a processor, TensorFlow's own convolutions (oneDNN) are faster than XLA's.
    groups = optimizer_groups(network, optimizer, prior_optimizer)
    frozen = [variable for teacher in teachers for variable in teacher.variables]
    return TrainingStep(network, losses, groups, frozen=frozen, jit_compile=False)


def _report(
    options: ImageTrainingOptions, step: int, tasks: list[Any], bottleneck: Bottleneck | None
) -> dict[str, str]:
    """Return the means since the last report, and reset them."""
    loss = mean_loss(tasks, step, options.learning_rate, options.prior_learning_rate)
    tasks.clear()
    numbers = {"task": f"{loss:.3f}"}
    if bottleneck is not None:
        numbers["bits"] = f"{float(bottleneck.bits.result()):.1f}"
        bottleneck.bits.reset_state()
    return numbers
