"""How far an evaluation is, and about how long the rest takes, from the records of its finished points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vidpress.pipeline.evaluation.points import CodecPoint, Context, Point


@dataclasses.dataclass(frozen=True)
class Progress:
    """The tasks of an evaluation, in any process that works on them.

    Attributes:
      tasks: The points of each task. Those that are trained in one task share a training.
      context: Where their records are.
      num_jobs: How many tasks are worked on at a time.
    """

    tasks: Sequence[tuple[Point, ...]]
    context: Context
    num_jobs: int

    def text(self) -> str:
        """Return how many points are finished, and about how long the others take.

        A point is taken to last as long as the finished ones of its method do in the mean, or else, of networks or of
        rivals. Where none are finished, the rest takes longer than what is said.
        """
        trainings: dict[object, list[float]] = {}
        others: dict[object, list[float]] = {}
        unfinished: list[tuple[list[Point], bool]] = []
        num_points = num_finished = 0
        for task in self.tasks:
            missing = []
            for point in task:
                record = self.context.load_record(point.name(self.context))
                if record is None:
                    missing.append(point)
                    continue
                seconds = dict(record["seconds"])
                for kind in _kinds(point):
                    trainings.setdefault(kind, []).append(seconds.get("train") or 0)
                    rest = sum(value for name, value in seconds.items() if value and name != "train")
                    others.setdefault(kind, []).append(rest)
            num_points, num_finished = num_points + len(task), num_finished + len(task) - len(missing)
            if missing:
                unfinished.append((missing, len(missing) == len(task)))
        text = f"{num_finished} of {num_points} points"
        if not num_finished or not unfinished:
            return text
        total, is_known = 0.0, True
        for missing, is_whole in unfinished:
            for index, point in enumerate(missing):
                kind = next((kind for kind in _kinds(point) if kind in others), None)
                is_known &= kind is not None
                if kind is not None:
                    total += float(np.mean(others[kind]))
                    total += float(np.mean(trainings[kind])) if is_whole and not index else 0
        left = duration(total / min(self.num_jobs, len(unfinished)))
        return f"{text}, {'about' if is_known else 'more than'} {left} left"


def _kinds(point: Point) -> tuple[object, ...]:
    """Return what tells how long a point lasts, the best first."""
    if isinstance(point, CodecPoint):
        return (CodecPoint, point.method, point.source is None, point.head), (CodecPoint,)
    hidden = dict(point.options)["hidden"]
    return (point.method, hidden), ("network", hidden), ("network",)


def duration(seconds: float) -> str:
    """Return seconds as people say them: "40 s", "1 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 10 else f"{hours} h"
