"""New tasks: classes that no encoder has seen, by which its features are measured."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import Any

import numpy as np

from vidpress.model.errors import VidpressError
from vidpress.pipeline.launching import launch


class NewTaskError(VidpressError, ValueError):
    """New tasks that cannot be measured: the message names the cause and the fix."""


@dataclasses.dataclass(frozen=True)
class NewTasks:
    """Which classes are new, and which videos have their labels.

    Attributes:
      held_out: A share of the classes, to be chosen; or the chosen classes, which networks do not see; or None if the
        new classes are those of other data.
      input: Globs of the videos that heads for the new classes are trained on; empty for the training data.
      validation: Globs of those that they are measured on; empty for the validation data.
      num_classes: How many classes the labels of these videos have.
      seed: Seed of the choice.
    """

    held_out: float | tuple[int, ...] | None
    input: tuple[str, ...]
    validation: tuple[str, ...]
    num_classes: int
    seed: int

    def resolved(self, counts: np.ndarray) -> NewTasks:
        """Return the same with the chosen classes instead of their share.

        Args:
          counts: int64[num_classes], how many training videos have each class.

        Raises:
          NewTaskError: If a class does not exist, or none is left that is old or new.
        """
        held_out = self.held_out
        if held_out is None:
            return self
        if isinstance(held_out, float):
            held_out = stratified_classes(counts, held_out, self.seed)
        elif held_out[-1] >= len(counts):
            raise NewTaskError(f"--new_tasks lists class {held_out[-1]}, but there are {len(counts)} classes.")
        if not 0 < len(held_out) < len(counts):
            raise NewTaskError(
                f"--new_tasks makes {len(held_out)} of {len(counts)} classes new: leave some on each side."
            )
        return dataclasses.replace(self, held_out=held_out)

    def old_classes(self, num_classes: int) -> np.ndarray:
        """Return int64[num_classes]: each class's own number, and -1 for those that networks do not see."""
        numbers = np.arange(num_classes)
        if self.held_out is not None:
            numbers[list(self._chosen)] = -1
        return numbers

    def new_classes(self) -> np.ndarray:
        """Return int64[num_classes]: the number of each new class among them, and -1 for the others."""
        if self.held_out is None:
            return np.arange(self.num_classes)
        numbers = np.full(self.num_classes, -1)
        numbers[list(self._chosen)] = np.arange(len(self._chosen))
        return numbers

    @property
    def _chosen(self) -> tuple[int, ...]:
        if not isinstance(self.held_out, tuple):
            raise ValueError("The classes are not chosen yet.")
        return self.held_out

    @property
    def num_new(self) -> int:
        """How many classes are new."""
        return int(self.new_classes().max()) + 1

    def key(self) -> dict[str, Any]:
        """Return what determines a record, besides the fingerprints of the data."""
        held_out = None if self.held_out is None else list(self._chosen)
        return {"held_out": held_out, "num_classes": self.num_classes}

    def about(self) -> dict[str, Any]:
        """Return what the report says about the new tasks."""
        return {"classes": self.num_new, **self.key()}


def stratified_classes(counts: np.ndarray, share: float, seed: int) -> tuple[int, ...]:
    """Choose a share of the classes, as many among the frequent ones as among the rare ones.

    The classes are ordered by frequency and cut into as many runs as are chosen; of each run, one is drawn.

    Args:
      counts: int64[num_classes], how many videos have each class.
      share: Within (0, 1).
      seed: Seed of the choice.

    Returns:
      The classes, ascending.
    """
    order = np.argsort(-counts, kind="stable")
    wanted = max(1, round(share * len(counts)))
    rng = np.random.default_rng(seed)
    return tuple(sorted(int(rng.choice(run)) for run in np.array_split(order, wanted)))


def parse_held_out(text: str) -> float | tuple[int, ...]:
    """Parse `--new_tasks`: a share of the classes, or a file with a class a line.

    Raises:
      argparse.ArgumentTypeError: If it is neither.
    """
    try:
        share = float(text)
    except ValueError:
        pass
    else:
        if not 0 < share < 1:
            raise argparse.ArgumentTypeError(f"{text} is not a share of the classes, between 0 and 1")
        return share
    try:
        lines = pathlib.Path(text).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a share of the classes, such as 0.2, nor a file with a class a line: {error}"
        ) from None
    odd = next((line for line in lines if not (line.isascii() and line.isdecimal() and len(line) < 10)), None)
    if odd is not None or not lines:
        raise argparse.ArgumentTypeError(
            f"{text} must have the number of a class in each line, not {odd or 'nothing'!r}"
        )
    return tuple(sorted({int(line) for line in lines}))


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say what the new tasks are."""
    group.add_argument(
        "--new_tasks",
        type=parse_held_out,
        metavar="SHARE|FILE",
        help="hide these classes from all networks, and measure heads for them on the features: a share of the "
        "classes, chosen at random, evenly among frequent and rare ones, or a file with a class a line",
    )
    group.add_argument(
        "--new_task_input",
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help="videos to train these heads on, best others than those of --input (default: --input). Without "
        "--new_tasks, their labels may be of another vocabulary",
    )
    group.add_argument(
        "--new_task_validation",
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help="videos to measure these heads on (default: --validation)",
    )
    group.add_argument(
        "--new_task_classes",
        type=launch.positive_int,
        metavar="N",
        help="number of classes of another vocabulary (default: --classes)",
    )


def of_options(args: argparse.Namespace) -> NewTasks | None:
    """Return the new tasks that the options of `add_options` ask for, or None.

    Raises:
      ValueError: If the options do not go together.
    """
    given = [name for name in ("input", "validation", "classes") if getattr(args, f"new_task_{name}")]
    if args.new_tasks is None:
        if given and not (args.new_task_input and args.new_task_validation):
            raise ValueError(
                f"--new_task_{given[0]} needs --new_tasks or, for another vocabulary, both --new_task_input and "
                "--new_task_validation."
            )
        if not given:
            return None
    elif args.new_task_classes:
        raise ValueError("--new_task_classes is for another vocabulary: leave it out with --new_tasks.")
    return NewTasks(
        held_out=args.new_tasks,
        input=tuple(args.new_task_input or ()),
        validation=tuple(args.new_task_validation or ()),
        num_classes=args.new_task_classes or args.classes,
        seed=args.seed,
    )
