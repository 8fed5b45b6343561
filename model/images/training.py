"""Training on images: steps, checkpoints, progress."""

from __future__ import annotations

import math
import os
import pathlib
import sys
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from vidpress.model.images.batches import training_batches
from vidpress.model.images.experiments import Experiment, Images, ImageTrainingOptions
from vidpress.model.images.networks import build_image_network
from vidpress.model.training.checkpoints import TrainingError, check_work_dir, manager_of, restore_newest, written
from vidpress.model.training.loop import build_training_step
from vidpress.model.training.networks import bottleneck_of

_REPORT_EVERY = 50
_MOMENTUM = 0.9  # He et al.


def train_on_images(
    experiment: Experiment, options: ImageTrainingOptions, data: Images, work_dir: str | os.PathLike[str]
) -> tf.keras.Model:
    """Train an experiment's network, or go on with what `work_dir` holds; after every epoch there is a checkpoint.

    A training that is stopped and goes on ends with the same weights as one that never stopped, on the same machine.

    Args:
      experiment: Which network, for which images.
      options: How to train.
      data: The training images.
      work_dir: A folder for `checkpoints/`.

    Returns:
      The trained network (`build_image_network`).

    Raises:
      TrainingError: If `work_dir` holds a training with other options or data, or the loss is not finite.
    """
    folder = pathlib.Path(work_dir)
    fixed = {"experiment": experiment.name, "training_data": data.fingerprint["sha256"]}
    check_work_dir(str(folder), {**fixed, **options.to_json()})
    network = build_image_network(
        experiment,
        lmbda=options.lmbda,
        prior_banks=options.prior_banks,
        spatial=options.spatial,
        mixed_precision=options.mixed_precision,
        seed=options.seed,
    )
    last_step = num_steps(options, data)
    training_step, state = _training_step(network, options, last_step)
    manager = manager_of(state, str(folder), 1)
    restored = restore_newest(state, str(folder))
    first_step = int(state.step)
    if first_step == last_step:
        restored.expect_partial()  # the optimisers' part is not asked for any more
        return network
    batches = training_batches(
        data,
        experiment,
        batch_size=options.batch_size,
        seed=options.seed,
        first_step=first_step,
        num_steps=last_step - first_step,
    )
    epoch_steps = max(1, last_step // options.epochs)
    bottleneck = bottleneck_of(network)
    task, bits = tf.keras.metrics.Mean(), None if bottleneck is None else bottleneck.bits
    numbers: dict[str, str] = {}
    with tqdm(total=last_step, initial=first_step, unit="step", desc="train", disable=None) as bar:
        for step, (pixels, labels) in enumerate(batches, first_step + 1):
            task.update_state(training_step(pixels, labels))
            state.step.assign(step)
            bar.update()
            if step % _REPORT_EVERY == 0 or step == last_step:
                numbers = _report(options, step, task, bits)
                bar.set_postfix(numbers)
            if step % epoch_steps == 0 or step == last_step:
                with written(str(folder)):
                    manager.save(step)
                text = ", ".join(f"{name} {value}" for name, value in numbers.items())
                tqdm.write(f"step {step:,} of {last_step:,}: {text}", file=sys.stderr)
    return network


def num_steps(options: ImageTrainingOptions, data: Images) -> int:
    """Return how many steps a training takes: as many whole batches as its epochs have, and at least one."""
    return max(1, options.epochs * len(data) // options.batch_size)


def _training_step(
    network: tf.keras.Model, options: ImageTrainingOptions, last_step: int
) -> tuple[Any, tf.train.Checkpoint]:
    """Return the function that makes one step and returns the task's loss, and everything that it changes."""

    def schedule(learning_rate: float) -> tf.keras.optimizers.schedules.LearningRateSchedule:
        # Steps are counted from 0, and a boundary is the last step of what is before it.
        boundaries = [int(share * last_step) - 1 for share in options.decays]
        values = [learning_rate / 10**index for index in range(len(boundaries) + 1)]
        return tf.keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)

    adam = tf.keras.optimizers.legacy.Adam
    if options.optimizer == "sgd":
        optimizer = tf.keras.optimizers.legacy.SGD(schedule(options.learning_rate), momentum=_MOMENTUM)
    else:
        optimizer = adam(schedule(options.learning_rate))
    prior_optimizer = adam(schedule(options.prior_learning_rate))
    kernels = [variable for variable in network.trainable_variables if "kernel" in variable.name]

    def losses(pixels: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = network(pixels, training=True)
        task = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        decay = options.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
        return task, tf.add_n([task, decay, *network.losses])

    return build_training_step(network, losses, optimizer, prior_optimizer)


def _report(
    options: ImageTrainingOptions, step: int, task: tf.keras.metrics.Mean, bits: tf.keras.metrics.Mean | None
) -> dict[str, str]:
    """Return the means since the last report, and begin anew."""
    loss = float(task.result())
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss is {loss} at step {step}: lower --learning_rate={options.learning_rate} or "
            f"--prior_learning_rate={options.prior_learning_rate}."
        )
    numbers = {"task": f"{loss:.3f}"}
    task.reset_state()
    if bits is not None:
        numbers["bits"] = f"{float(bits.result()):.1f}"
        bits.reset_state()
    return numbers
