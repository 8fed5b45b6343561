"""How a network is trained and frozen: the options, their defaults and their limits. Keras is not needed here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any

from vidpress.model.tables.banks import check_num_banks
from vidpress.model.tables.limits import MAX_DIMS

TABLES = ("empirical", "prior")

# Where the method of Singh et al. (ICIP 2020) differs from the defaults: one prior for all videos, its tables, and
# rounding to the nearest integers.
PAPER = MappingProxyType({"prior_banks": 1, "tables": "prior", "banks": 1, "rounding_lmbda": 0})


def check_positive(options: Any, names: Iterable[str]) -> None:
    """Check that options are above 0 and finite.

    Raises:
      ValueError: If not; the message names the first that is not.
    """
    for name in names:
        value = getattr(options, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} must be above 0.")


def check_not_negative(options: Any, names: Iterable[str]) -> None:
    """Check that options are 0 or more, and finite.

    Raises:
      ValueError: If not; the message names the first that is not.
    """
    for name in names:
        value = getattr(options, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value} must not be negative.")


def check_seed(seed: int) -> None:
    """Check that a seed is below 2^32.

    Raises:
      ValueError: If not.
    """
    if seed >= 2**32:
        raise ValueError(f"seed={seed} must be below {2**32:,}.")


def json_values(options: Any) -> dict[str, Any]:
    """Return the fields of a dataclass of options as JSON values."""
    return _as_json(dataclasses.asdict(options))


def json_defaults(options_class: type) -> dict[str, Any]:
    """Return the defaults of a dataclass of options, of those that have one, as JSON values."""
    fields = dataclasses.fields(options_class)
    return _as_json({field.name: field.default for field in fields if field.default is not dataclasses.MISSING})


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def checked_range(lmbda: float, lmbda_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Return a range of lmbda, which an option gives as a list, as a tuple; or None if there is none.

    Raises:
      ValueError: If it is not a range that lmbda lies in.
    """
    if lmbda_range is None:
        return None
    low, high = lmbda_range
    if not (0 < low < high and math.isfinite(high)):
        raise ValueError(f"lmbda_range={low} {high} must be two values above 0, the lower one first.")
    if not low <= lmbda <= high:
        raise ValueError(f"lmbda={lmbda} must lie in lmbda_range={low} {high}.")
    return low, high


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained. Except `prior_banks`, the defaults are those of Singh et al. (ICIP 2020).

    Attributes:
      hidden: Units of the hidden layers; the paper's are (2000,) and (6000, 2000).
      lmbda: Cost of a bit, in nats of the task's loss; 0 trains the baseline without rate and rounding.
      lmbda_range: The lowest and the highest lmbda of a network for many rates (`classifiers.build_network`). Then what
        is trained does not depend on `lmbda`, which is only that of validation and of the network at the end.
      steps: Training steps (paper). With 0, a network that starts as its teachers stays as it starts.
      num_classes: Classes of the task; 3862 are those of YouTube-8M's version of May 2018.
      batch_size: Videos in a step (paper).
      learning_rate: Adam's learning rate at the start. The paper sweeps 0.04, 0.02, 0.002, 0.001 and 0.0005.
      prior_learning_rate: The same for the prior. The prior must follow the activations, whose distribution every other
        weight changes.
      decay_rate: Factor on both learning rates every `decay_steps` (paper).
      decay_steps: Steps between decays. 0 becomes 1000 (paper), or a 50th of `steps` if that is less, so that a short
        training run ends with a low learning rate, too.
      weight_decay: L2 penalty on the dense kernels (paper). Ten passes over tens of thousands of videos need a higher
        one: see the README.
      input_dropout: The share of the input's numbers that each step sets to 0. Not in the paper; it helps with few
        videos.
      reconstruction: What it is worth to be able to give back the input, or with teachers their activations, from the
        stored features (`reconstruction.Decoder`), in nats of the task's loss. Not in the paper; it keeps what
        other tasks may need.
      width_multiplier: How many times as wide as `hidden` the network's hidden layers are. A network that is as wide as
        its teachers together starts as these side by side (`warm_start`).
      linear_bottleneck: Units of one more layer, without a ReLU, after the hidden ones: its activations are stored, and
        may be negative. With 0 there is none, and those of the last hidden layer are stored (paper).
      score_bottleneck: Add a hidden layer with a unit for each class, and store its activations. A network that is as
        wide as its teachers together starts with their classes' scores there (`warm_start`). No training has improved
        these so far, so give it 0 steps.
      prior_banks: Banks of the bottleneck's prior: the network learns for a coder that has as many banks of tables. The
        paper has 1.
      mixed_precision: Multiply in bfloat16, which AMX, GPUs and TPUs do faster. The frozen model multiplies in float32.
      seed: Seed of the weights, the noise and the order of the data.
      checkpoint_every: Steps between checkpoints.
      validate_every: Steps between validations.
    """

    hidden: tuple[int, ...] = (2000,)
    lmbda: float = 0.002
    lmbda_range: tuple[float, float] | None = None
    steps: int = 300_000
    num_classes: int = 3862
    batch_size: int = 100
    learning_rate: float = 0.001
    prior_learning_rate: float = 0.01
    decay_rate: float = 0.94
    decay_steps: int = 0
    weight_decay: float = 1e-6
    input_dropout: float = 0.0
    reconstruction: float = 0.0
    width_multiplier: int = 1
    linear_bottleneck: int = 0
    score_bottleneck: bool = False
    prior_banks: int = 16
    mixed_precision: bool = False
    seed: int = 0
    checkpoint_every: int = 1000
    validate_every: int = 1000

    def __post_init__(self) -> None:
        if self.decay_steps == 0:
            object.__setattr__(self, "decay_steps", max(1, min(1000, self.steps // 50)))
        counts = (
            "num_classes",
            "batch_size",
            "width_multiplier",
            "prior_banks",
            "decay_steps",
            "checkpoint_every",
            "validate_every",
        )
        check_positive(self, (*counts, "learning_rate", "prior_learning_rate", "decay_rate"))
        check_not_negative(self, ("steps", "lmbda", "weight_decay", "reconstruction", "linear_bottleneck", "seed"))
        check_seed(self.seed)
        object.__setattr__(self, "lmbda_range", checked_range(self.lmbda, self.lmbda_range))
        if not 0 <= self.input_dropout < 1:
            raise ValueError(f"input_dropout={self.input_dropout} must lie in [0, 1).")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden={self.hidden} must be one or more positive sizes, such as 6000,2000.")
        if self.linear_bottleneck and self.score_bottleneck:
            raise ValueError(f"linear_bottleneck={self.linear_bottleneck}, score_bottleneck=True: give one of the two.")
        highest = self.lmbda if self.lmbda_range is None else self.lmbda_range[1]
        if self.score_bottleneck and highest >= 1:
            raise ValueError(f"lmbda={highest} must be below 1 with score_bottleneck: it is a class's probability.")
        name = "linear_bottleneck" if self.linear_bottleneck else "num_classes" if self.score_bottleneck else "hidden"
        if (num_dims := self.num_dims) > MAX_DIMS:
            raise ValueError(f"{name}={num_dims} is too wide to code: the last layer may have {MAX_DIMS:,} units.")

    @property
    def widths(self) -> tuple[int, ...]:
        """The units of the network's hidden layers."""
        return tuple(units * self.width_multiplier for units in self.hidden)

    @property
    def num_dims(self) -> int:
        """Numbers that are coded."""
        return self.linear_bottleneck or (self.num_classes if self.score_bottleneck else self.widths[-1])

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return json_values(self)


@dataclasses.dataclass(frozen=True)
class FreezingOptions:
    """How a trained network is frozen. The paper's are in `PAPER`.

    Attributes:
      tables: "empirical" fits the range coding tables to the counts of `z_hat` on the training data, which the frozen
        model itself computes; "prior" uses those of the trained prior.
      banks: How many banks of tables to fit, a power of two from 1 to 256: each video is coded with the bank that makes
        its code shortest. With 1, codes are those of tensorflow-compression for the tables.
      rounding_lmbda: Cost of a bit in rounding, in squared rounding steps (`FrozenModel`); 0 rounds to the nearest
        integers.
      top_k: How many values of each video are coded, the largest; the others become 0. With 0, all are coded.
    """

    tables: str = "empirical"
    banks: int = 16
    rounding_lmbda: float = 0.03
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.tables not in TABLES:
            raise ValueError(f"tables={self.tables!r} must be {' or '.join(map(repr, TABLES))}.")
        check_num_banks(self.banks)
        check_not_negative(self, ("rounding_lmbda", "top_k"))

    def check_bottleneck(self, training: TrainingOptions) -> None:
        """Check that a network's bottleneck can be frozen with these options.

        Args:
          training: How the network is trained.

        Raises:
          ValueError: If `top_k` cannot be used with it.
        """
        if self.top_k and training.linear_bottleneck:
            raise ValueError("top_k cannot be used with linear_bottleneck: there, 0 does not stand for what is absent.")
        if self.top_k > training.num_dims:
            raise ValueError(f"top_k={self.top_k} must be at most {training.num_dims}, the numbers that are coded.")

    def check_rate(self, lmbda: float, lmbda_range: tuple[float, float] | None = None) -> None:
        """Check that a network that was trained at a rate can be frozen with these options.

        Args:
          lmbda: What a bit cost in its training.
          lmbda_range: The range of a network for many rates.

        Raises:
          ValueError: If tables of its prior are wanted, and there are none.
        """
        if self.tables == "prior" and not lmbda:
            raise ValueError("tables=prior needs lmbda above 0: without a rate no prior is trained.")
        if self.tables == "prior" and lmbda_range is not None:
            raise ValueError("tables=prior cannot be used with lmbda_range: use tables=empirical.")
