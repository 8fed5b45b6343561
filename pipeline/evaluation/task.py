"""What an evaluation's examples and networks are called, and which metrics judge their task."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class Error(NamedTuple):
    """An error that is shown: 1 minus a metric.

    Attributes:
      metric: Its key in a record.
      name: The metric's name in texts.
      column: The error's column in the CSV, without the data's name before it.
    """

    metric: str
    name: str
    column: str


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured, and how the page describes it.

    Attributes:
      example: What one example is called; its plural has an s.
      metrics: The keys of the metrics in a record.
      errors: The errors that are shown; methods are compared by the first.
      coding: What happens to the validation examples before they are measured.
      rival_heads: A sentence that says which heads read what rivals restore.
      rivals_on_input: Whether rivals are measured on the input, too.
      source_of_metrics: A sentence that says where the metrics are from, if that has to be said.
      network: What the network is called; empty if networks are named by their number of layers.
    """

    example: str
    metrics: tuple[str, ...]
    errors: tuple[Error, ...]
    coding: str
    rival_heads: str
    rivals_on_input: bool = False
    source_of_metrics: str = ""
    network: str = ""

    @property
    def metric(self) -> str:
        """The metric by which methods are compared."""
        return self.errors[0].metric

    @property
    def metric_name(self) -> str:
        """Its name in texts."""
        return self.errors[0].name

    @property
    def a_example(self) -> str:
        """What comes after a number of bytes: "a video", "an image"."""
        return f"{'an' if self.example[0] in 'aeiou' else 'a'} {self.example}"

    @property
    def bytes_key(self) -> str:
        """The key of the bytes in a record."""
        return f"bytes_per_{self.example}"

    def network_name(self, hidden: tuple[int, ...]) -> str:
        """Return an architecture's name in texts."""
        if self.network:
            return self.network if len(hidden) == 1 else f"{self.network}, map"
        return f"{len(hidden) + 1}-layer network"

    def title(self, hidden: tuple[int, ...]) -> str:
        """Return a title for the results of an architecture: its name, and its layers or the shape of what is coded."""
        if self.network:
            return f"{self.network}, {' x '.join(map(str, hidden))} activations"
        return f"{self.network_name(hidden)}, {' → '.join(map(str, hidden))}"


_ACCURACY = Error("accuracy", "accuracy", "error")
_TOP_5 = Error("top_5_accuracy", "top-5 accuracy", "error_at_5")

_IMAGES = Task(
    example="image",
    metrics=("accuracy", "top_5_accuracy"),
    errors=(_ACCURACY,),
    coding="encoded and decoded by the range coder",
    rival_heads="The baseline's head reads them.",
)

# By their names in results.json.
TASKS = {
    "videos": Task(
        example="video",
        metrics=("gap", "hit_at_1", "perr", "mean_ap"),
        errors=(Error("gap", "GAP", "error"), Error("hit_at_1", "Hit@1", "error_at_1")),
        coding="encoded to a Parquet shard, which is read back",
        rival_heads="The better of two heads reads the activations: the baseline's, or it trained further on the "
        "reconstructions; the better of two the input: a linear one, or the first network without a rate, trained on "
        "them.",
        rivals_on_input=True,
        source_of_metrics="GAP, Hit@1, PERR and mAP are those of YouTube-8M's starter code.",
    ),
    "images": _IMAGES,
    "images of many classes": dataclasses.replace(_IMAGES, errors=(_ACCURACY, _TOP_5)),
}


def task_of(about: dict[str, Any]) -> Task:
    """Return the task of an evaluation, by what it says about itself; if it says nothing, the task is videos."""
    return dataclasses.replace(TASKS[about.get("task", "videos")], network=about.get("network", ""))
