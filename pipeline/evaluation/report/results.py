"""The results of an evaluation: means over seeds, what is no worse than the baseline, results.json and a CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vidpress.model.files import storage
from vidpress.pipeline.evaluation.points import BASELINE, read_fields
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, FEATURES, RIVALS
from vidpress.pipeline.evaluation.task import Task, task_of

_JSON, _CSV = "results.json", "results.csv"
_DATA = ("validation", "training")

# By the number of videos of a shard, as text: `vidpress.pipeline.evaluation.videos.measuring.all_in_bytes`.
ALL_IN_BYTES = "all_in_bytes_per_video"


def _csv_columns(task: Task, new_task_heads: Sequence[str], shard_sizes: Sequence[str] = ()) -> tuple[str, ...]:
    return (
        *("method", "source", "hidden", "head", "size", "lmbda", "seed", "steps"),
        *(task.bytes_key, f"stored_{task.bytes_key}", "relative_size"),
        *(f"{ALL_IN_BYTES}_{size}" for size in shard_sizes),
        *(f"{data}_{metric}" for data in _DATA for metric in task.metrics),
        *(f"{data}_{error.column}" for data in _DATA for error in task.errors),
        *(_new_task_column(head, metric) for head in new_task_heads for metric in task.metrics),
        *("seconds", "name"),
    )


def _new_task_column(head: str, metric: str) -> str:
    return f"new_tasks_{head}_{metric}"


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """One setting of one method: the means over its seeds.

    Attributes:
      method: Its name.
      setting: The setting as text: "λ 0.002", "64 bytes", ... or "".
      source: "activations", "features", or None for networks.
      num_bytes: Stored bytes of an example.
      relative_size: Their share of the baseline's bytes, which are those of float32 and zlib at level 9.
      validation: Means of the task's metrics.
      training: Likewise, on a sample of the training examples.
      records: The records that the means are taken over, one for each seed.
    """

    method: str
    setting: str
    source: str | None
    num_bytes: float
    relative_size: float
    validation: dict[str, float]
    training: dict[str, float]
    records: tuple[dict[str, Any], ...]

    def spread(self, metric: str) -> tuple[float, float]:
        """Return the least and the largest of a metric on the validation data over the seeds."""
        values = [record["validation"][metric] for record in self.records]
        return min(values), max(values)

    def all_in_bytes(self, shard_size: str) -> float | None:
        """Return all bytes of a shard a video besides ids and labels; None if that was not measured for every seed."""
        values = [record.get(ALL_IN_BYTES, {}).get(shard_size) for record in self.records]
        return None if None in values else _mean(values)

    def on_new_tasks(self, head: str, metric: str) -> list[float]:
        """Return a metric of each seed's head for new tasks; none if new tasks were not measured."""
        return [record["new_tasks"][head][metric] for record in self.records if "new_tasks" in record]

    def new_task_interval(self, head: str, metric: str) -> list[float]:
        """Return `[low, high]`, the means over the seeds of the ends of the metric's bootstrap intervals."""
        intervals = [record["new_tasks"][head]["intervals"][metric] for record in self.records]
        return np.mean(intervals, axis=0).tolist()

    def new_task_quartiles(self, head: str) -> list[float]:
        """Return mAP of each quarter of the classes by frequency, the means over the seeds, most frequent first."""
        values = [record["new_tasks"][head]["mean_ap_of_quartiles"] for record in self.records]
        return np.mean(values, axis=0).tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """All that an evaluation has measured so far.

    Attributes:
      about: Command, machine, data; the names of the methods; how many points there will be; the task, if it is not
        that of videos.
      records: The records of the finished points.
    """

    about: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def task(self) -> Task:
        """What the examples are, and how they are judged."""
        return task_of(self.about)

    @property
    def data_set(self) -> str:
        """What the data are called."""
        return self.about.get("data_set") or f"{self.task.example.capitalize()}s"

    @property
    def architectures(self) -> list[tuple[int, ...]]:
        """The hidden layers of all baselines."""
        found = (tuple(record["hidden"]) for record in self.records if record["method"] == BASELINE)
        return list(dict.fromkeys(found))

    def baseline(self, hidden: tuple[int, ...]) -> Summary:
        """Return the baseline of an architecture: lossless, the means over its seeds."""
        records = [r for r in self.records if r["method"] == BASELINE and tuple(r["hidden"]) == hidden]
        return self._summary(BASELINE, "", records, _mean(r[self.task.bytes_key] for r in records))

    def curve(self, method: str, hidden: tuple[int, ...]) -> list[Summary]:
        """Return the points of a method's networks, those with the fewest bytes first."""
        records = [r for r in self.records if r["method"] == method and "lmbda" in r and tuple(r["hidden"]) == hidden]
        scale = self.baseline(hidden).num_bytes
        by_lmbda = sorted({record["lmbda"] for record in records})
        points = [
            self._summary(method, f"λ {lmbda:g}", [r for r in records if r["lmbda"] == lmbda], scale)
            for lmbda in by_lmbda
        ]
        return sorted(points, key=lambda point: point.num_bytes)

    def codecs(self, method: str, source: str, hidden: tuple[int, ...]) -> list[Summary]:
        """Return the points of a codec, each with the head that is better in the mean, the fewest bytes first.

        Args:
          method: The codec.
          source: "activations" or "features".
          hidden: The architecture whose activations they are, and with whose baseline the sizes are compared.
        """
        records = [
            r
            for r in self.records
            if (r["method"], r["source"]) == (method, source) and (source == FEATURES or tuple(r["hidden"]) == hidden)
        ]
        scale = self.baseline(hidden).num_bytes
        of_head: dict[tuple[Any, str], list[dict[str, Any]]] = {}
        for record in records:
            of_head.setdefault((record["size"], record["head"]), []).append(record)
        points: dict[Any, Summary] = {}
        for (size, _), seeds in of_head.items():
            point = self._summary(method, RIVALS[method].setting_text(size), seeds, scale)
            if size not in points or point.validation[self.task.metric] >= points[size].validation[self.task.metric]:
                points[size] = point
        return sorted(points.values(), key=lambda point: point.num_bytes)

    def no_worse(self, points: Sequence[Summary], hidden: tuple[int, ...], metric: str | None = None) -> Summary | None:
        """Return the point with the fewest bytes whose metric is at least the baseline's, or None."""
        return next((point for point in points if self.lead(point, hidden, metric) >= 0), None)

    def lead(self, point: Summary, hidden: tuple[int, ...], metric: str | None = None) -> float:
        """Return how much larger a point's metric is than the baseline's.

        A codec of activations is compared with the baselines that these are from, seed by seed. Everything else is
        compared with the mean of all seeds.
        """
        metric = metric or self.task.metric
        baseline = self.baseline(hidden)
        if point.source != ACTIVATIONS:
            return point.validation[metric] - baseline.validation[metric]
        of_seed = {record["seed"]: record["validation"][metric] for record in baseline.records}
        # Older records of codecs have no seed: they are of the first. A seed's baseline may not be measured yet.
        seeds = [min(of_seed) if record.get("seed") is None else record["seed"] for record in point.records]
        return _mean(
            record["validation"][metric] - of_seed.get(seed, baseline.validation[metric])
            for record, seed in zip(point.records, seeds, strict=True)
        )

    def bytes_at_baseline(
        self, points: Sequence[Summary], hidden: tuple[int, ...], metric: str | None = None
    ) -> float | None:
        """Return at how many bytes a curve reaches the baseline's metric, or None if it never does.

        Between neighbours the metric is assumed to grow with the logarithm of the bytes. If a curve is no worse from
        its first point on, that point's bytes are returned: an upper bound.
        """
        leads = [self.lead(point, hidden, metric) for point in points]
        if points and leads[0] >= 0:
            return points[0].num_bytes
        for (left, low), (right, high) in itertools.pairwise(zip(points, leads, strict=True)):
            if low < 0 <= high:
                logs = math.log(left.num_bytes), math.log(right.num_bytes)
                return math.exp(logs[0] - low / (high - low) * (logs[1] - logs[0]))
        return None

    def flat(self) -> list[dict[str, Any]]:
        """Return the records as rows of the CSV, with errors and relative sizes; those that have a baseline already."""
        scales = {hidden: self.baseline(hidden).num_bytes for hidden in self.architectures}
        measurable = (r for r in self.records if not r["hidden"] or tuple(r["hidden"]) in scales)
        return [_row(record, scales, self.task) for record in measurable]

    @property
    def shard_sizes(self) -> tuple[str, ...]:
        """For how many videos a shard all bytes of a shard were measured, as text; none if they were not."""
        return tuple(dict.fromkeys(size for record in self.records for size in record.get(ALL_IN_BYTES, ())))

    @property
    def new_task_heads(self) -> tuple[str, ...]:
        """The names of the heads for new tasks; none if new tasks were not measured."""
        return tuple(dict.fromkeys(head for record in self.records for head in record.get("new_tasks", ())))

    def _summary(self, method: str, setting: str, records: Sequence[dict[str, Any]], scale: float) -> Summary:
        num_bytes = _mean(record[self.task.bytes_key] for record in records)
        means = {
            data: {metric: _mean(record[data][metric] for record in records) for metric in self.task.metrics}
            for data in _DATA
        }
        return Summary(
            method=method,
            setting=setting,
            source=records[0]["source"],
            num_bytes=num_bytes,
            relative_size=num_bytes / scale,
            records=tuple(records),
            **means,
        )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _row(record: dict[str, Any], scales: dict[tuple[int, ...], float], task: Task) -> dict[str, Any]:
    hidden = tuple(record["hidden"]) if record["hidden"] else next(iter(scales))
    row = {name: record.get(name) for name in _csv_columns(task, ())}
    row["hidden"] = "-".join(map(str, record["hidden"] or []))
    row["relative_size"] = record[task.bytes_key] / scales[hidden]
    for data in _DATA:
        row |= {f"{data}_{metric}": record[data][metric] for metric in task.metrics}
        row |= {f"{data}_{error.column}": 1 - record[data][error.metric] for error in task.errors}
    row |= {f"{ALL_IN_BYTES}_{size}": value for size, value in record.get(ALL_IN_BYTES, {}).items()}
    for head, found in record.get("new_tasks", {}).items():
        row |= {_new_task_column(head, metric): found[metric] for metric in task.metrics}
    row["seconds"] = sum(seconds for seconds in record["seconds"].values() if seconds)
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def write(output: str | os.PathLike[str], about: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Write `results.json` and `results.csv` of the finished records; a reader sees all of a file or nothing."""
    text = io.StringIO()
    results = Results(about, records)
    writer = csv.DictWriter(
        text, _csv_columns(results.task, results.new_task_heads, results.shard_sizes), lineterminator="\n"
    )
    writer.writeheader()
    if results.architectures:
        writer.writerows(results.flat())
    # A record a line: short, and a change shows which one changed.
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    body = f'{{"about": {json.dumps(about, indent=1, ensure_ascii=False)},\n"records": [\n{lines}\n]}}\n'
    for name, content in ((_JSON, body), (_CSV, text.getvalue())):
        storage.write(pathlib.Path(output, name), content.encode())


def load(output: str | os.PathLike[str]) -> Results:
    """Read back the `results.json` of a folder.

    Raises:
      FileNotFoundError: If it does not exist.
      DamagedRecordError: If it is not what was written.
    """
    results = read_fields(pathlib.Path(output, _JSON), ("about", "records"))
    return Results(results["about"], results["records"])


def summary(output: str, results: Results) -> str:
    """Return a summary of an evaluation, for the end of the job."""
    task = results.task
    lines = [f"{len(results.records)} of {results.about['points']} points are finished."]
    for hidden in results.architectures:
        baseline = results.baseline(hidden)
        lines.append(
            f"{task.network_name(hidden)}, baseline: {task.metric_name} {baseline.validation[task.metric]:.4f}, "
            f"{baseline.num_bytes:.0f} bytes {task.a_example} (float32, zlib)"
        )
        for method in results.about["methods"]:
            curve = results.curve(method, hidden)
            point = results.no_worse(curve, hidden)
            if curve and point is None:
                lines.append(f"  {method}: nowhere as good as the baseline")
            elif point is not None:
                lines.append(
                    f"  {method}, no worse at {point.setting}: {task.metric_name} {point.validation[task.metric]:.4f}, "
                    f"{point.num_bytes:.1f} bytes {task.a_example}, {100 * point.relative_size:.2f} % of the baseline's"
                )
    return "\n".join([*lines, f"Page: {os.path.join(output, 'index.html')}"])
