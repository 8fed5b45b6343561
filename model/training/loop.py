"""The training loop: steps, checkpoints, progress, TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from tensorboard.summary import Writer
from tqdm import tqdm

from vidpress.model import strict_json
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.metrics import Metrics, MetricsAccumulator
from vidpress.model.networks import classifiers
from vidpress.model.networks.bottleneck import bottleneck_of
from vidpress.model.networks.teacher import Teacher
from vidpress.model.training import checkpoints
from vidpress.model.training.checkpoints import TrainingError
from vidpress.model.training.steps import TrainingStep
from vidpress.model.training.training_data import LabelledVideos, training_batches

# How many steps a line in TensorBoard and the progress bar averages over.
_REPORT_EVERY = 50
_KEEP_CHECKPOINTS = 2
_EVALUATION_BATCH = 1024

# Validation in the course of training looks at so many videos at most; after it, at all.
_MAX_VALIDATION_VIDEOS = 10_000

# What may change between a run and its continuation without changing the result up to there.
_FREE_OPTIONS = ("steps", "checkpoint_every", "validate_every")


# What backends say where memory is too little.
_NO_MEMORY = ("OOM", "RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """A training that was asked to stop, and did so.

    Attributes:
      step: Its last one, at which there is a checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained. The defaults are those of Singh et al. (ICIP 2020) for YouTube-8M, where they say.

    Attributes:
      hidden: Units of the hidden layers; the paper's are (2000,) and (6000, 2000).
      lmbda: What a bit costs in nats of the task's loss; 0 trains the baseline without rate and rounding.
      lmbda_range: The least and the greatest lmbda of a network for many rates (`classifiers.build_network`). What is
        trained does not depend on `lmbda` then, which is that of validation and of the network at the end.
      steps: Training steps (paper).
      num_classes: Classes of the task; 3862 are those of YouTube-8M's version of May 2018.
      batch_size: Videos a step (paper).
      learning_rate: Adam's, at first. The paper sweeps 0.04, 0.02, 0.002, 0.001 and 0.0005.
      prior_learning_rate: Adam's for the prior, at first. The prior must follow the activations, whose
        distribution every other weight moves.
      decay_rate: Factor on both learning rates (paper).
      decay_steps: Every so many steps. 0 becomes 1000 (paper), or a 50th of `steps` if that is less: a short training,
        too, then ends with small steps.
      weight_decay: L2 penalty on the dense kernels (paper). Ten passes over tens of thousands of videos want more: see
        the README.
      input_dropout: The share of the input's numbers that each step sets to 0. Not of the paper: few videos want it.
      prior_banks: Banks of the bottleneck's prior: the network learns for a coder that has as many banks of tables. 1
        is the paper's.
      mixed_precision: Multiply in bfloat16, which AMX, GPUs and TPUs do faster. What is frozen multiplies in float32.
      seed: Of weights, noise and the order of the data.
      checkpoint_every: Steps between checkpoints.
      validate_every: Steps between validations.
    """

    hidden: tuple[int, ...]
    lmbda: float
    lmbda_range: tuple[float, float] | None = None
    steps: int = 300_000
    num_classes: int = 3862
    batch_size: int = 100
    learning_rate: float = 0.001
    prior_learning_rate: float = 0.01
    decay_rate: float = 0.94
    decay_steps: int = 0
    weight_decay: float = classifiers.WEIGHT_DECAY
    input_dropout: float = 0.0
    prior_banks: int = 1
    mixed_precision: bool = False
    seed: int = 0
    checkpoint_every: int = 1000
    validate_every: int = 1000

    def __post_init__(self) -> None:
        if self.decay_steps == 0:
            object.__setattr__(self, "decay_steps", max(1, min(1000, self.steps // 50)))
        for name in (
            "steps",
            "num_classes",
            "batch_size",
            "prior_banks",
            "learning_rate",
            "prior_learning_rate",
            "decay_rate",
            "decay_steps",
            "checkpoint_every",
            "validate_every",
        ):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be above 0.")
        for name in ("lmbda", "weight_decay", "seed"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must not be negative.")
        if self.seed >= 2**32:
            raise ValueError(f"seed={self.seed} must be below {2**32:,}.")
        if self.lmbda_range is not None:
            low, high = self.lmbda_range
            object.__setattr__(self, "lmbda_range", (low, high))  # which an option gives as a list
            if not (0 < low < high and math.isfinite(high)):
                raise ValueError(f"lmbda_range={low} {high} must be two values above 0, the lower one first.")
            if not low <= self.lmbda <= high:
                raise ValueError(f"lmbda={self.lmbda} must lie in lmbda_range={low} {high}.")
        if not 0 <= self.input_dropout < 1:
            raise ValueError(f"input_dropout={self.input_dropout} must lie in [0, 1).")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden={self.hidden} must be one or more positive sizes, such as 6000,2000.")

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


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
    """Train a network, or go on with what `work_dir` holds.

    With teachers, the task is not to give the labels but the teachers' class probabilities, of mixtures of two videos
    (`training_batches`), which never come twice.

    A training that is stopped and goes on ends with the same weights, to the bit, as one that never stopped: batches
    are a function of seed and step, noise one of seed and call, and everything else is in the checkpoint. (On the same
    machine; another number of threads adds up in another order.)

    Args:
      options: How to train.
      spec: What `x` is made of.
      videos: The training data.
      work_dir: A folder, local or on `gs://`, for `checkpoints/` and `tensorboard/`.
      validation: Videos on which metrics are measured along the way, if given.
      teachers: Models trained on the same task without a rate, if the network shall learn from them.
      asked_to_stop: Says after each step whether that is to be the last one for now.

    Returns:
      The trained network (`classifiers.build_network`).

    Raises:
      TrainingError: If `work_dir` holds a training with other options or data or cannot be written, or the loss is
        not finite.
      TrainingStopped: If it was asked to stop.
      TeacherError: If a model cannot teach this network.
    """
    teacher = None
    if teachers:
        teacher = Teacher(teachers, spec, options.num_classes, mixed_precision=options.mixed_precision)
    _check_training(options, spec, videos, teachers, work_dir)
    network = build_network(options, spec, videos.class_frequencies(options.num_classes))
    step_forward = build_step(network, options, teacher)
    first_step = checkpoints.restore_newest(work_dir, step_forward.state) or 0
    if first_step:
        if options.lmbda_range is not None:
            classifiers.select_lmbda(network, options.lmbda)
        print(f"Going on from step {first_step:,} in {work_dir}.", file=sys.stderr)
    if first_step > options.steps:
        raise TrainingError(
            f"{work_dir} holds a training at step {first_step}, beyond steps={options.steps}: give at least as many, "
            "or name another folder."
        )
    if first_step == options.steps:
        return network
    batches = training_batches(
        videos,
        num_classes=options.num_classes,
        batch_size=options.batch_size,
        seed=options.seed,
        input_dropout=options.input_dropout,
        mix=teacher is not None,
        first_step=first_step,
        num_steps=options.steps - first_step,
    )
    with (
        enough_memory(),
        contextlib.closing(_tensorboard_writer(f"{work_dir}/tensorboard")) as writer,
        tqdm(total=options.steps, initial=first_step, unit="step", desc="train", disable=None) as bar,
    ):
        progress = _Progress(network, options, bar, writer)
        for step, (x, labels) in enumerate(batches, first_step + 1):
            progress.add(step_forward(x, labels))
            bar.update()
            last = step == options.steps
            if step % _REPORT_EVERY == 0 or last:
                progress.report(step)
            if validation is not None and (step % options.validate_every == 0 or last):
                progress.validate(step, validation)
            stop = asked_to_stop() and not last
            if step % options.checkpoint_every == 0 or last or stop:
                progress.note(step)
                checkpoints.save(work_dir, step, step_forward.state, max_to_keep=_KEEP_CHECKPOINTS)
            if stop:
                raise TrainingStopped(step)
    return network


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a training's folder holds.

    Attributes:
      network: As it was at the last checkpoint.
      options: How it was trained; `steps` are those of the checkpoint. Of a network for many rates, `lmbda` is the
        geometric mean of the range, which the network is at.
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
    """What a training's folder says beside the options."""

    features: str
    training_data: str
    teachers: list[str]
    lmbda_range: tuple[float, float] | None = None


def load_trained(work_dir: str) -> Trained:
    """Load the network of a training's last checkpoint.

    Args:
      work_dir: As `train` takes it.

    Raises:
      TrainingError: If that folder does not hold a training, or one without a checkpoint, or that is damaged.
    """
    path = f"{work_dir}/{checkpoints.OPTIONS_FILE}"
    values = checkpoints.read_options(work_dir)
    if not checkpoints.checkpoint_paths(work_dir):
        raise TrainingError(f"{work_dir} holds a training without a checkpoint: go on with it first.")
    try:
        begun = strict_json.decode(json.dumps(values), _Begun)
        if begun.lmbda_range is not None:
            values["lmbda"] = math.sqrt(abs(math.prod(begun.lmbda_range)))
        options = strict_json.decode(json.dumps(values), TrainingOptions)
        spec = FeatureSpec.parse(begun.features)
    except ValueError as error:
        raise checkpoints.damaged(path, error) from error
    network = build_network(options, spec, None)
    step = checkpoints.restore_newest(work_dir, {"network": network.variables})
    options = dataclasses.replace(options, steps=step or 0)
    if options.lmbda_range is not None:
        classifiers.select_lmbda(network, options.lmbda)
    return Trained(network, options, spec, begun.training_data, begun.teachers)


def build_network(options: TrainingOptions, spec: FeatureSpec, class_frequencies: np.ndarray | None) -> keras.Model:
    """Return the network of a training (`classifiers.build_network`)."""
    return classifiers.build_network(
        spec.input_size,
        options.hidden,
        options.num_classes,
        lmbda=options.lmbda,
        lmbda_range=options.lmbda_range,
        weight_decay=options.weight_decay,
        class_frequencies=class_frequencies,
        prior_banks=options.prior_banks,
        mixed_precision=options.mixed_precision,
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
    checkpoints.check_work_dir(work_dir, wanted)


def build_step(network: keras.Model, options: TrainingOptions, teacher: Teacher | None = None) -> TrainingStep:
    """Return what makes a step of a training: Adam, on the task's loss and all of the network's penalties."""

    def adam(learning_rate: float, name: str) -> keras.optimizers.Optimizer:
        schedule = keras.optimizers.schedules.ExponentialDecay(
            learning_rate, options.decay_steps, options.decay_rate, staircase=True
        )
        return keras.optimizers.Adam(schedule, name=name)

    def losses(x: Any, labels: Any) -> tuple[Any, Any]:
        if teacher is not None:
            labels = teacher(x)
        task = classifiers.task_loss(labels, network(x, training=True))
        return task, task + sum(network.losses)

    weights, prior = split_prior(network)
    groups = {"optimizer": (adam(options.learning_rate, "optimizer"), weights)}
    if prior:
        groups["prior_optimizer"] = (adam(options.prior_learning_rate, "prior_optimizer"), prior)
    return TrainingStep(network, losses, groups, frozen=[] if teacher is None else teacher.variables)


def split_prior(network: keras.Model) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """Return a network's trainable variables, those of its bottleneck's prior apart."""
    bottleneck = bottleneck_of(network)
    prior = [] if bottleneck is None else bottleneck.trainable_variables
    of_prior = {id(variable) for variable in prior}
    return [variable for variable in network.trainable_variables if id(variable) not in of_prior], prior


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Explain what a backend says where there is too little memory.

    Raises:
      TrainingError: If so.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
            raise TrainingError("Not enough memory: lower batch_size, or take a larger machine.") from error
        raise


def _tensorboard_writer(folder: str) -> Writer:
    """Return what writes down curves. It loads TensorFlow where that is installed, unless told that there is none."""
    if keras.backend.backend() != "tensorflow":
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    return Writer(folder)


class _Progress:
    """What a person watches: the progress bar, a line now and then, and TensorBoard."""

    def __init__(self, network: keras.Model, options: TrainingOptions, bar: tqdm, writer: Writer) -> None:
        self._network = network
        self._options = options
        self._bottleneck = bottleneck_of(network)
        self._bar = bar
        self._writer = writer
        self._tasks: list[Any] = []
        self._numbers: dict[str, str] = {}

    def add(self, task: Any) -> None:
        self._tasks.append(task)

    def report(self, step: int) -> None:
        task = float(np.mean([float(each) for each in self._tasks]))
        self._tasks.clear()
        if not math.isfinite(task):
            raise TrainingError(
                f"The loss is {task} at step {step}: lower learning_rate={self._options.learning_rate} "
                f"or prior_learning_rate={self._options.prior_learning_rate}."
            )
        decay = self._options.decay_rate ** ((step - 1) // self._options.decay_steps)
        self._write("train/task_loss", task, step)
        self._write("train/learning_rate", self._options.learning_rate * decay, step)
        self._numbers["task"] = f"{task:.3f}"
        if self._bottleneck is not None:
            self._numbers["bits"] = f"{self._write_bits('train', step):.0f}"
        self._bar.set_postfix(self._numbers)

    def validate(self, step: int, validation: LabelledVideos) -> None:
        metrics = evaluate_network(self._network, validation, max_videos=_MAX_VALIDATION_VIDEOS)
        for name in ("gap", "hit_at_1", "perr", "mean_ap"):
            self._write(f"validation/{name}", getattr(metrics, name), step)
        if self._bottleneck is not None:
            self._write_bits("validation", step)
        self._numbers["GAP"] = f"{metrics.gap:.4f}"
        self._bar.set_postfix(self._numbers)

    def _write(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def _write_bits(self, part: str, step: int) -> float:
        """Write down the mean bits of a video since they were written last."""
        assert self._bottleneck is not None
        bits = float(self._bottleneck.bits.result())
        self._write(f"{part}/bits_per_video", bits, step)
        self._bottleneck.bits.reset_state()
        return bits

    def note(self, step: int) -> None:
        numbers = ", ".join(f"{name} {value}" for name, value in self._numbers.items())
        tqdm.write(f"step {step:,} of {self._options.steps:,}: {numbers}", file=sys.stderr)


def evaluate_network(network: keras.Model, videos: LabelledVideos, *, max_videos: int | None = None) -> Metrics:
    """Return a network's metrics, on rounded activations if it has a bottleneck.

    Args:
      network: The network.
      videos: Labelled videos.
      max_videos: Of more videos, take so many at even distances.

    Returns:
      The metrics.
    """
    num_classes = network.output_shape[-1]
    if max_videos is not None:
        videos = videos.sample(max_videos)
    accumulator = MetricsAccumulator(num_classes)
    for start in range(0, len(videos), _EVALUATION_BATCH):
        chunk = np.arange(start, min(start + _EVALUATION_BATCH, len(videos)))
        logits = ops.convert_to_numpy(ops.cast(network(videos.x[chunk], training=False), "float32"))
        accumulator.update(logits, videos.multi_hot(chunk, num_classes))
    return accumulator.result()
