"""What an evaluation's examples are called, and by what their task is judged."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class Error(NamedTuple):
    """An error that is shown: 1 less a metric.

    Attributes:
      metric: Its key in a record.
      name: What a person calls it.
      column: The error's column in the CSV, without the data's name before it.
    """

    metric: str
    name: str
    column: str


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
      example: What one example is called; its plural has an s.
      metrics: The keys of the metrics in a record.
      errors: Those that are shown; by the first, methods are compared.
    """

    example: str
    metrics: tuple[str, ...]
    errors: tuple[Error, ...]

    @property
    def metric(self) -> str:
        """The metric by which methods are compared."""
        return self.errors[0].metric

    @property
    def metric_name(self) -> str:
        """What a person calls it."""
        return self.errors[0].name

    @property
    def a_example(self) -> str:
        """What comes after a number of bytes: "a video", "an image"."""
        return f"{'an' if self.example[0] in 'aeiou' else 'a'} {self.example}"

    @property
    def bytes_key(self) -> str:
        """The key of the bytes in a record."""
        return f"bytes_per_{self.example}"


_ACCURACY = Error("accuracy", "accuracy", "error")
_TOP_5 = Error("top_5_accuracy", "top-5 accuracy", "error_at_5")

TASKS = {
    "videos": Task(
        "video",
        ("gap", "hit_at_1", "perr", "mean_ap"),
        (Error("gap", "GAP", "error"), Error("hit_at_1", "Hit@1", "error_at_1")),
    ),
    "images": Task("image", ("accuracy", "top_5_accuracy"), (_ACCURACY,)),
    "images of many classes": Task("image", ("accuracy", "top_5_accuracy"), (_ACCURACY, _TOP_5)),
}


def task_of(about: dict[str, Any]) -> Task:
    """Return the task of an evaluation, by what it says about itself; without a word it is videos."""
    return TASKS[about.get("task", "videos")]


def architecture_title(about: dict[str, Any], hidden: tuple[int, ...]) -> str:
    """Return a title for the results of an architecture: its name, and its layers or the shape of what is coded."""
    shape = f"{' x '.join(map(str, hidden))} activations" if "network" in about else " → ".join(map(str, hidden))
    return f"{network_name(about, hidden)}, {shape}"


def network_name(about: dict[str, Any], hidden: tuple[int, ...]) -> str:
    """Return what the network of a record is called: an experiment's name for it, or its number of layers."""
    if "network" in about:
        return about["network"]
    return f"{len(hidden) + 1}-layer network"
