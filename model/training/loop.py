"""The training loop: from options and videos to a trained network, with checkpoints on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.networks import classifiers, many_rates
from vidpress.model.networks.bottleneck import bottleneck_of
from vidpress.model.networks.reconstruction import Decoder
from vidpress.model.networks.teacher import Teacher
from vidpress.model.training import checkpoints, progress, warm_start
from vidpress.model.training.checkpoints import TrainingError
from vidpress.model.training.options import TrainingOptions, json_defaults
from vidpress.model.training.steps import Group, TrainingStep
from vidpress.model.training.training_data import LabelledVideos, training_batches

# How many steps a point in TensorBoard and a number in the progress bar average over.
_REPORT_EVERY = 50
_KEEP_CHECKPOINTS = 2

# Options that may change when a training run resumes, because they do not change its result up to there.
_FREE_OPTIONS = ("steps", "checkpoint_every", "validate_every")

# What backends say when there is too little memory.
_NO_MEMORY = re.compile(r"\bOOM\b|RESOURCE_EXHAUSTED|out of memory|can't allocate memory")


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """A training run was asked to stop, and stopped.

    Attributes:
      step: Its last step, of which there is a checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def train(
    options: TrainingOptions,
    spec: FeatureSpec,
    videos: LabelledVideos,
    work_dir: str,
    *,
    validation: LabelledVideos | None = None,
    teachers: Sequence[FrozenModel] = (),
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> keras.Model:
    """Train a network, or resume the training run in `work_dir`.

    With teachers, the network does not learn the labels. It learns the teachers' class probabilities for mixtures of
    two videos (`training_batches`), which never occur twice. A network that starts as its teachers (`warm_start`)
    is one that can be frozen already: `steps` may be 0.

    A training run that is stopped and resumed ends with exactly the same weights as one that is never stopped: batches
    are a function of seed and step, noise is one of seed and call, and everything else is in the checkpoint. (This
    holds on the same machine; with another number of threads, sums are in another order.)

    Args:
      options: How to train.
      spec: What `x` is made of.
      videos: The training data.
      work_dir: A folder, local or on `gs://`, for `checkpoints/` and `tensorboard/`.
      validation: Videos on which metrics are measured during training, if given.
      teachers: Models trained on the same task without a rate, if the network is to learn from them.
      asked_to_stop: Called after each step; says whether to stop there.

    Returns:
      The trained network (`classifiers.build_network`).

    Raises:
      TrainingError: If `work_dir` contains a training run with other options or data, or cannot be written, or if the
        loss is not finite.
      TrainingStopped: If it was asked to stop.
      TeacherError: If a model cannot teach this network.
    """
    teacher = None
    if teachers:
        teacher = Teacher(
            teachers,
            spec,
            options.num_classes,
            activations=bool(options.reconstruction),
            mixed_precision=options.mixed_precision,
        )
    _check_training(options, spec, videos, teachers, work_dir)
    network = build_network(options, spec, videos.class_frequencies(options.num_classes))
    decoder = build_decoder(network, options, teacher)
    step_forward = build_step(network, options, teacher, decoder)
    if warm_start.can_start_as(options, teachers):
        if not checkpoints.checkpoint_paths(work_dir):
            warm_start.start_as(network, decoder, options, teachers, videos.x)
            what = "scores" if options.score_bottleneck else "principal components of the activations"
            print(f"Starting as the {what} of {', '.join(model.model_id for model in teachers)}.", file=sys.stderr)
            if not options.steps:
                checkpoints.save(work_dir, 0, step_forward.state, max_to_keep=_KEEP_CHECKPOINTS)
    elif not options.steps:
        raise TrainingError(
            "steps=0 leaves the weights random: the network cannot start as its teachers. Give it hidden layers as "
            "wide as theirs together, and a score_bottleneck, or a linear_bottleneck and reconstruction, or more steps."
        )
    first_step = checkpoints.restore_newest(work_dir, step_forward.state) or 0
    if options.lmbda_range is not None:
        many_rates.select_lmbda(network, options.lmbda)
    if first_step:
        print(f"Resuming from step {first_step:,} in {work_dir}.", file=sys.stderr)
    if first_step > options.steps:
        raise TrainingError(
            f"{work_dir} contains a training run at step {first_step}, beyond steps={options.steps}: give at least as "
            "many steps, or name another folder."
        )
    if first_step == options.steps:
        return network
    batches = training_batches(
        videos,
        num_classes=options.num_classes,
        batch_size=options.batch_size,
        seed=options.seed,
        mix=teacher is not None,
        first_step=first_step,
        num_steps=options.steps - first_step,
    )
    with (
        enough_memory(),
        contextlib.closing(progress.tensorboard_writer(f"{work_dir}/tensorboard")) as writer,
        tqdm(total=options.steps, initial=first_step, unit="step", desc="train", disable=None) as bar,
    ):
        watched = progress.Progress(network, options, bar, writer)
        for step, (x, labels) in enumerate(batches, first_step + 1):
            watched.add(step_forward(x, labels))
            bar.update()
            last = step == options.steps
            if step % _REPORT_EVERY == 0 or last:
                watched.report(step)
            if validation is not None and (step % options.validate_every == 0 or last):
                watched.validate(step, validation)
            stop = asked_to_stop() and not last
            if step % options.checkpoint_every == 0 or last or stop:
                watched.note(step)
                checkpoints.save(work_dir, step, step_forward.state, max_to_keep=_KEEP_CHECKPOINTS)
            if stop:
                raise TrainingStopped(step)
    return network


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What the folder of a training run contains.

    Attributes:
      network: The network at the last checkpoint.
      options: How it was trained; `steps` is that of the checkpoint. For a network for many rates, `lmbda` is the
        geometric mean of the range, and the network is set to it.
      spec: What `x` is made of.
      training_data: The SHA-256 of the training data's fingerprint.
      teachers: The teachers' model ids.
    """

    network: keras.Model
    options: TrainingOptions
    spec: FeatureSpec
    training_data: str
    teachers: list[str]


@dataclasses.dataclass(frozen=True)
class _Begun:
    """What the folder of a training run records besides the options."""

    features: str
    training_data: str
    teachers: list[str]
    id_keys: tuple[str, ...] = FeatureSpec.id_keys
    labels_key: str = FeatureSpec.labels_key
    lmbda_range: tuple[float, float] | None = None


def load_trained(work_dir: str) -> Trained:
    """Load the network of a training run's last checkpoint.

    Args:
      work_dir: As for `train`.

    Raises:
      TrainingError: If the folder does not contain a training run, or contains one that has no checkpoint or is
        damaged.
    """
    path = f"{work_dir}/{checkpoints.OPTIONS_FILE}"
    values = checkpoints.read_options(work_dir)
    if not checkpoints.checkpoint_paths(work_dir):
        raise TrainingError(f"{work_dir} contains a training run without a checkpoint: resume it first.")
    try:
        begun = strict_json.decode(json.dumps(values), _Begun)
        if begun.lmbda_range is not None:
            values["lmbda"] = math.sqrt(abs(math.prod(begun.lmbda_range)))
        options = strict_json.decode(json.dumps(values), TrainingOptions)
        spec = FeatureSpec.parse(begun.features)
        spec = dataclasses.replace(spec, id_keys=begun.id_keys, labels_key=begun.labels_key)
    except ValueError as error:
        raise checkpoints.damaged(path, error) from error
    network = build_network(options, spec, None)
    step = checkpoints.restore_newest(work_dir, {"network": network.variables})
    options = dataclasses.replace(options, steps=step or 0)
    if options.lmbda_range is not None:
        many_rates.select_lmbda(network, options.lmbda)
    return Trained(network, options, spec, begun.training_data, begun.teachers)


def build_network(options: TrainingOptions, spec: FeatureSpec, class_frequencies: np.ndarray | None) -> keras.Model:
    """Return the network of a training run (`classifiers.build_network`)."""
    return classifiers.build_network(
        spec.input_size,
        (*options.widths, options.num_classes) if options.score_bottleneck else options.widths,
        options.num_classes,
        lmbda=options.lmbda,
        lmbda_range=options.lmbda_range,
        weight_decay=options.weight_decay,
        class_frequencies=class_frequencies,
        prior_banks=options.prior_banks,
        mixed_precision=options.mixed_precision,
        input_dropout=options.input_dropout,
        linear_bottleneck=options.linear_bottleneck,
        seed=options.seed,
    )


def _check_training(
    options: TrainingOptions,
    spec: FeatureSpec,
    videos: LabelledVideos,
    teachers: Sequence[FrozenModel],
    work_dir: str,
) -> None:
    free = _FREE_OPTIONS if options.lmbda_range is None else (*_FREE_OPTIONS, "lmbda")
    wanted = {name: value for name, value in options.to_json().items() if name not in free}
    wanted |= {"features": str(spec), "training_data": videos.fingerprint["sha256"]}
    wanted["teachers"] = [model.model_id for model in teachers]
    # An earlier version did not record the keys of records: any will do.
    keys = {"id_keys": list(spec.id_keys), "labels_key": spec.labels_key}
    checkpoints.check_work_dir(work_dir, wanted | keys, json_defaults(TrainingOptions) | {"teachers": []} | keys)


def build_decoder(network: keras.Model, options: TrainingOptions, teacher: Teacher | None = None) -> Decoder | None:
    """Return what gives back the input or the teacher's activations in a training run, if it learns that."""
    if not options.reconstruction:
        return None
    size = network.input.shape[1] if teacher is None else teacher.num_activations
    decoder = Decoder(options.reconstruction, size, seed=options.seed, name="decoder")
    decoder.build(classifiers.with_features(network).output[1].shape)
    return decoder


def build_step(
    network: keras.Model,
    options: TrainingOptions,
    teacher: Teacher | None = None,
    decoder: Decoder | None = None,
) -> TrainingStep:
    """Return the step of a training run: Adam, on the task's loss and all of the network's penalties.

    The loss of a decoder is added, if there is one. It gives back the whole input, of which the network may have seen a
    part, or the teachers' activations.
    """
    model = classifiers.with_features(network)

    def losses(x: Any, labels: Any) -> tuple[Any, Any]:
        if teacher is not None:
            labels = teacher(x)
        logits, features = model(x, training=True)
        task = classifiers.task_loss(labels, logits)
        penalties = sum(model.losses)
        if decoder is not None:
            penalties += decoder.loss(features, x if teacher is None else teacher.activations(x))
        return task, task + penalties

    groups = adam_groups(network, options)
    decoder_variables = [] if decoder is None else decoder.trainable_variables
    optimizer, weights = groups["optimizer"]
    groups["optimizer"] = (optimizer, [*weights, *decoder_variables])
    return TrainingStep(
        network,
        losses,
        groups,
        frozen=[] if teacher is None else teacher.variables,
        others={"decoder": decoder_variables} if decoder_variables else {},
    )


def adam_groups(network: keras.Model, options: TrainingOptions, share: float = 1.0) -> dict[str, Group]:
    """Return Adam for each group of a training run's variables (`optimizer_groups`), with falling learning rates.

    Args:
      network: The network.
      options: What the learning rates are at the start, and how they fall.
      share: What they are multiplied by.
    """

    def adam(learning_rate: float, name: str) -> keras.optimizers.Optimizer:
        schedule = keras.optimizers.schedules.ExponentialDecay(
            share * learning_rate, options.decay_steps, options.decay_rate, staircase=True
        )
        return keras.optimizers.Adam(schedule, name=name)

    prior_optimizer = adam(options.prior_learning_rate, "prior_optimizer")
    return optimizer_groups(network, adam(options.learning_rate, "optimizer"), prior_optimizer)


def optimizer_groups(
    network: keras.Model, optimizer: keras.optimizers.Optimizer, prior_optimizer: keras.optimizers.Optimizer
) -> dict[str, Group]:
    """Return what each optimizer moves: the bottleneck's prior, if there is one, has an optimizer of its own."""
    bottleneck = bottleneck_of(network)
    prior = [] if bottleneck is None else bottleneck.trainable_variables
    of_prior = {id(variable) for variable in prior}
    weights = [variable for variable in network.trainable_variables if id(variable) not in of_prior]
    groups: dict[str, Group] = {"optimizer": (optimizer, weights)}
    if prior:
        groups["prior_optimizer"] = (prior_optimizer, prior)
    return groups


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Explain the error of a backend that runs out of memory.

    Raises:
      TrainingError: If it does.
    """
    try:
        yield
    except Exception as error:
        of_a_backend = not isinstance(error, VidpressError | OSError)
        if isinstance(error, MemoryError) or (of_a_backend and _NO_MEMORY.search(str(error))):
            raise TrainingError("Not enough memory: lower batch_size, or use a larger machine.") from error
        raise
