"""Training on images: steps, checkpoints, progress."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from vidpress.model.bottleneck import Bottleneck
from vidpress.model.image_batches import training_batches
from vidpress.model.image_experiments import Experiment, Images, ImageTrainingOptions
from vidpress.model.image_networks import build_image_network
from vidpress.model.training import TrainingError

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
    _check_work_dir(experiment, options, data, folder)
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
    manager = tf.train.CheckpointManager(state, str(folder / "checkpoints"), max_to_keep=1)
    if manager.latest_checkpoint:
        restored = state.restore(manager.latest_checkpoint)
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
    task, bits = tf.keras.metrics.Mean(), _bits_of(network)
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
                manager.save(step)
                text = ", ".join(f"{name} {value}" for name, value in numbers.items())
                tqdm.write(f"step {step:,} of {last_step:,}: {text}", file=sys.stderr)
    return network


def num_steps(options: ImageTrainingOptions, data: Images) -> int:
    """Return how many steps a training takes: as many whole batches as its epochs have, and at least one."""
    return max(1, options.epochs * len(data) // options.batch_size)


def _check_work_dir(experiment: Experiment, options: ImageTrainingOptions, data: Images, folder: pathlib.Path) -> None:
    """Write down what is trained in a folder, or compare it with what was begun there."""
    wanted = {"experiment": experiment.name, "training_data": data.fingerprint["sha256"], **options.to_json()}
    path = folder / "options.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1))
    found = json.loads(path.read_text())
    for name, value in wanted.items():
        if found.get(name) != value:
            raise TrainingError(
                f"{folder} holds a training with {name}={found.get(name)}, not {value}: give the same to go on, or "
                "name another folder, or remove this one."
            )


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
    prior = [v for layer in network.layers if isinstance(layer, Bottleneck) for v in layer.trainable_variables]
    prior_refs = {variable.ref() for variable in prior}
    weights = [variable for variable in network.trainable_variables if variable.ref() not in prior_refs]
    kernels = [variable for variable in weights if "kernel" in variable.name]

    @tf.function
    def training_step(pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = network(pixels, training=True)
            task = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            decay = options.weight_decay * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
            loss = tf.add_n([task, decay, *network.losses])
        gradients = tape.gradient(loss, weights + prior)
        optimizer.apply_gradients(zip(gradients[: len(weights)], weights, strict=True))
        if prior:
            prior_optimizer.apply_gradients(zip(gradients[len(weights) :], prior, strict=True))
        return task

    state = tf.train.Checkpoint(
        network=network,
        optimizer=optimizer,
        prior_optimizer=prior_optimizer,
        step=tf.Variable(0, dtype=tf.int64, trainable=False),
    )
    return training_step, state


def _bits_of(network: tf.keras.Model) -> tf.keras.metrics.Mean | None:
    return next((layer.bits for layer in network.layers if isinstance(layer, Bottleneck)), None)


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
