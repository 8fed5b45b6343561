"""The options of a network and its freezing: from the command line to typed ones, which have defaults and limits."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from vidpress.model.training.options import PAPER, TABLES, FreezingOptions, TrainingOptions

Options = TypeVar("Options")

# Options of the command line whose names differ from those in the code.
_NAMES = {"classes": "num_classes"}


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What is trained, how, and how it is frozen.

    Attributes:
      training: How a network is trained.
      freezing: How it is frozen.
      teacher: Files of the frozen models that it learns from.
    """

    training: TrainingOptions
    freezing: FreezingOptions
    teacher: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelOptions:
        """Return the options in `values`, by the names of `add_model_options`; those that it lacks have their defaults.

        Raises:
          ValueError: If one is out of range, or two do not go together; the message names them.
        """
        named = {_NAMES.get(name, name): value for name, value in values.items()}
        training, freezing = fields_of(TrainingOptions, named), fields_of(FreezingOptions, named)
        freezing.check_rate(training.lmbda, training.lmbda_range)
        freezing.check_bottleneck(training)
        teacher = tuple(named.get("teacher", ()))
        if not (training.steps or teacher):
            raise ValueError("steps=0 leaves the weights random: give more, or a teacher to start as.")
        return cls(training, freezing, teacher)


def fields_of(options: type[Options], values: Mapping[str, Any]) -> Options:
    """Return options made of those values that are theirs.

    Raises:
      ValueError: If one is out of range.
    """
    names = {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    return options(**{name: value for name, value in values.items() if name in names})


def default_values() -> dict[str, Any]:
    """Return the defaults, by the names of `add_model_options`."""
    names = {field: option for option, field in _NAMES.items()}
    fields = (*dataclasses.fields(TrainingOptions), *dataclasses.fields(FreezingOptions))
    return {names.get(field.name, field.name): field.default for field in fields} | {"teacher": []}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained and how, and how it is frozen."""
    network = parser.add_argument_group("network (the defaults are the paper's)")
    network.add_argument("--hidden", type=sizes, help="units of the hidden layers; the last layer is coded")
    network.add_argument("--classes", type=int, help="number of classes of the task")
    network.add_argument(
        "--lmbda", type=float, help="cost of a bit; a higher one gives fewer bytes; 0 trains without rate and rounding"
    )
    network.add_argument(
        "--lmbda_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="train one network for all rates from LOW to HIGH: it is frozen at --lmbda, and `vidpress freeze` can "
        "freeze it at the others",
    )
    network.add_argument(
        "--width_multiplier",
        type=int,
        metavar="N",
        help="make the hidden layers N times as wide as --hidden says, as wide as N teachers together: with "
        "--score_bottleneck, or --linear_bottleneck and --reconstruction, the network then starts as these side by "
        "side",
    )
    network.add_argument(
        "--linear_bottleneck",
        type=int,
        metavar="UNITS",
        help="one more layer after --hidden, without a ReLU, which is coded instead (default: none)",
    )
    network.add_argument(
        "--score_bottleneck",
        action="store_true",
        help="one more layer after --hidden, with a unit for each class, which is coded instead: with --teacher, if it "
        "is as wide as the teachers together, the network starts with their scores there, and --steps 0 is enough",
    )
    training = parser.add_argument_group("training (the defaults are the paper's)")
    training.add_argument(
        "--teacher",
        nargs="+",
        metavar="MODEL.safetensors",
        help="models trained with --lmbda 0, whose class probabilities are learned instead of the labels",
    )
    training.add_argument("--steps", type=int, help="training steps")
    training.add_argument("--batch_size", type=int, help="videos in a step")
    training.add_argument("--learning_rate", type=float, help="Adam's learning rate at the start")
    training.add_argument("--prior_learning_rate", type=float, help="the same for the prior")
    training.add_argument("--decay_rate", type=float, help="factor on both learning rates every --decay_steps")
    training.add_argument(
        "--decay_steps", type=int, help="steps between decays; 0 means 1000, or a 50th of --steps if that is less"
    )
    training.add_argument("--weight_decay", type=float, help="L2 penalty on the dense kernels")
    training.add_argument("--input_dropout", type=float, help="share of the input's numbers that each step sets to 0")
    training.add_argument(
        "--reconstruction",
        type=float,
        metavar="WEIGHT",
        help="also learn to give back the input from what is stored or, with --teacher, the teachers' activations, for "
        "tasks to come: what that is worth, in nats of the task's loss",
    )
    training.add_argument(
        "--mixed_precision",
        action="store_true",
        help="multiply in bfloat16, which GPUs and Intel AMX do faster, and other processors slower",
    )
    training.add_argument("--seed", type=int, help="seed of the weights, the noise and the order of the data")
    training.add_argument("--checkpoint_every", type=int, metavar="STEPS", help="steps between checkpoints")
    training.add_argument("--validate_every", type=int, metavar="STEPS", help="steps between validations")
    coding = parser.add_argument_group("coding (the defaults are not the paper's)")
    coding.add_argument(
        "--prior_banks", type=int, help="banks of the prior in training, ideally as many as --banks; the paper has 1"
    )
    add_freezing_options(coding)
    defaults = default_values()
    parser.set_defaults(**defaults | {"hidden": ",".join(map(str, defaults["hidden"]))})


def add_freezing_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how a trained network is frozen, without their defaults."""
    group.add_argument(
        "--tables",
        choices=TABLES,
        help="range coding tables: fitted to the training data (empirical), or those of the trained prior",
    )
    group.add_argument(
        "--banks",
        type=int,
        help="banks of tables, a power of two up to 256: more banks give shorter codes, and larger shard footers",
    )
    group.add_argument(
        "--rounding_lmbda",
        type=float,
        help="cost of a bit in rounding, in squared rounding steps; 0 rounds to the nearest integers",
    )
    group.add_argument(
        "--top_k",
        type=int,
        metavar="K",
        help="code only the K largest values of each video, such as its best scores with --score_bottleneck; the "
        "others become 0; not with --linear_bottleneck (default: all)",
    )


def paper_options() -> str:
    """Return the options of the paper's method, as on a command line."""
    return " ".join(f"--{name} {value}" for name, value in PAPER.items())


def sizes(text: str) -> tuple[int, ...]:
    """Parse an option such as 6000,2000."""
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes, such as 2000 or 6000,2000") from None
