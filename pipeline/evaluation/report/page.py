"""The page of an evaluation: figures, tables and how they were made, in one HTML file that needs no other."""

from __future__ import annotations

import base64
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from vidpress.model.files import storage
from vidpress.pipeline.evaluation.points import BASELINE, PAPER
from vidpress.pipeline.evaluation.report import figures
from vidpress.pipeline.evaluation.report.results import Results, Summary
from vidpress.pipeline.evaluation.report.template import TEMPLATE
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, FEATURES, RIVALS, fitted_to

PAGE = "index.html"
FIGURES = {
    "rate_accuracy": figures.rate_accuracy,
    "new_tasks": figures.new_tasks,
    "bits_by_dimension": figures.bits_by_dimension,
}


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      name: The name of the method.
      kind: "baseline", "paper", "rival" or "own": the part of the table that it belongs to.
      point: The point that is shown.
      holds: Whether that is no worse than the baseline.
      at_baseline: At how many bytes the method's curve reaches the baseline's metric, if it does.
      head: Which classifier reads it.
    """

    name: str
    kind: str
    point: Summary
    holds: bool
    at_baseline: float | None
    head: str


def table(results: Results, hidden: tuple[int, ...]) -> Iterator[Row]:
    """Yield a row for each method: its smallest point no worse than the baseline, or else its best one."""
    baseline = results.baseline(hidden)
    yield Row("Baseline, lossless: float32, zlib", BASELINE, baseline, True, None, "own")
    candidates = [
        (f"{prefix}{rival.title}", "paper" if rival.paper else "rival", results.codecs(rival.name, source, hidden))
        for source, prefix in ((ACTIVATIONS, ""), (FEATURES, "Input: "))
        for rival in fitted_to(source)
    ]
    methods = results.about["methods"]
    candidates += [(name, "own", results.curve(name, hidden)) for name in sorted(methods, key=methods.index)]
    for name, kind, points in candidates:
        if points:
            smallest = results.no_worse(points, hidden)
            point = smallest or max(points, key=lambda point: point.validation[results.task.metric])
            at_baseline = results.bytes_at_baseline(points, hidden)
            yield Row(name, kind, point, smallest is not None, at_baseline, point.records[0]["head"])


def new_task_table(results: Results, hidden: tuple[int, ...]) -> Iterator[tuple[str, str, Summary]]:
    """Yield name, kind (as in `Row`) and point of everything that heads for new tasks were measured on."""
    yield "Activations without a rate, float32", BASELINE, results.baseline(hidden)
    for source, prefix in ((FEATURES, "Input: "), (ACTIVATIONS, "")):
        for rival in fitted_to(source):
            kind = "paper" if rival.paper else "rival"
            for point in results.codecs(rival.name, source, hidden):
                yield f"{prefix}{rival.title}", kind, point
    for method in results.about["methods"]:
        for point in results.curve(method, hidden):
            yield method, "own", point


def all_in_table(results: Results) -> Iterator[tuple[str, Summary]]:
    """Yield network and method, and each point whose shards were measured as a whole."""
    for hidden in results.architectures if results.shard_sizes else ():
        for method in results.about["methods"]:
            for point in results.curve(method, hidden):
                if any(point.all_in_bytes(size) is not None for size in results.shard_sizes):
                    yield f"{results.task.network_name(hidden)}, {method}", point


def findings(results: Results) -> Iterator[str]:
    """Yield what the first method reaches, a sentence for each architecture."""
    method, task = results.about["methods"][0], results.task
    for hidden in results.architectures:
        baseline = results.baseline(hidden)
        network, name = task.network_name(hidden), task.metric_name
        goal = baseline.validation[task.metric]
        curve = results.curve(method, hidden)
        point = results.no_worse(curve, hidden)
        if point is None:
            if curve:
                best = max(curve, key=lambda point: point.validation[task.metric])
                yield (
                    f"{network}: {method} is nowhere as good as the baseline ({name} {goal:.4f}); its best is {name} "
                    f"{best.validation[task.metric]:.4f} at {best.num_bytes:.1f} bytes {task.a_example}."
                )
            continue
        text = (
            f"{network}: no worse than the baseline ({name} {point.validation[task.metric]:.4f} against {goal:.4f}), "
            f"{method} takes {point.num_bytes:.1f} bytes {task.a_example}, {100 * point.relative_size:.2f} % of the "
            f"{baseline.num_bytes:,.0f} that float32 and zlib take"
        )
        if PAPER in results.about["methods"] and method != PAPER:
            paper = results.bytes_at_baseline(results.curve(PAPER, hidden), hidden)
            own = results.bytes_at_baseline(curve, hidden)
            if paper and own:
                text += f"; at the baseline's {name}, {100 * own / paper:.0f} % of the bytes of the paper's method"
        yield text + "."


def parts(results: Results) -> list[tuple[str, int, float, float]]:
    """Return `(part, points, seconds of training, other seconds)` for each part of the work."""
    totals: dict[str, list[float]] = {}
    seen: set[tuple[Any, ...]] = set()
    for record in results.records:
        seconds = dict(record["seconds"])
        if "lmbda" in record:
            network = results.task.network_name(tuple(record["hidden"])).removesuffix(" network")
            part = f"{record['method']}, {network}"
            # Models that differ only in their tables share a training run; with a range of lmbda, so do those that
            # differ in lmbda.
            lmbda = (record.get("options") or {}).get("lmbda_range") or record["lmbda"]
            training = (str(record["hidden"]), str(lmbda), record["seed"], seconds.get("train"))
            if training in seen:
                seconds["train"] = 0
            seen.add(training)
        else:
            part = "codecs of the input" if record["source"] == FEATURES else "codecs of the activations"
            part += f", {record['head']} head"
        train = float(seconds.get("train") or record.get("train_seconds") or 0)
        rest = sum(value for name, value in seconds.items() if value and name != "train")
        total = totals.setdefault(part, [0, 0, 0])
        total[0], total[1] = total[0] + 1, total[1] + train
        total[2] += max(0.0, rest - record.get("train_seconds", 0))
    return [(part, int(count), train, rest) for part, (count, train, rest) in totals.items()]


def method_options(results: Results) -> Iterator[str]:
    """Yield a line for each method and architecture: the options of its networks, except those that are swept."""
    lines: dict[str, None] = {}
    for record in results.records:
        if "options" in record:
            swept = ("lmbda", "seed")
            options = {name: v for name, v in record["options"].items() if name not in swept and v is not None}
            texts = [f"--{name} {','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in options.items()]
            lines[f"{record['method']}: {' '.join(texts)}"] = None
    yield from lines


def write(output: str | os.PathLike[str], results: Results) -> None:
    """Write the figures, as PNG and SVG, and the page into a folder."""
    folder = pathlib.Path(output)
    images = {}
    if results.architectures:
        for name, draw in FIGURES.items():
            if name == "new_tasks" and name not in results.about:
                continue
            figure = draw(results)
            for file_format in ("png", "svg"):
                data = figures.to_bytes(figure, file_format)  # type: ignore[arg-type]
                storage.write(folder / f"{name}.{file_format}", data)
            images[name] = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    storage.write(folder / PAGE, render(results, images).encode())


def render(results: Results, images: dict[str, str]) -> str:
    """Return the page.

    Args:
      results: What it shows.
      images: The URLs of `FIGURES`.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    measured = {record["method"] for record in results.records if record["source"]}
    environment.filters["size"] = _size
    environment.filters["share"] = lambda value: f"{100 * value:.3g} %"
    environment.filters["mean4"] = lambda values: f"{sum(values) / len(values):.4f}"
    environment.filters["interval"] = lambda ends: f"{ends[0]:.3f}-{ends[1]:.3f}"
    environment.filters["error"] = lambda value: f"{100 * (1 - value):.2f}"
    return environment.from_string(TEMPLATE).render(
        about=results.about,
        data_set=results.data_set,
        task=results.task,
        num_examples=lambda data: f"{data[f'labelled_{results.task.example}s']:,}",
        title=results.task.title,
        records=results.records,
        tables=[(hidden, list(table(results, hidden))) for hidden in results.architectures],
        new_task_tables=[(hidden, list(new_task_table(results, hidden))) for hidden in results.architectures]
        if "new_tasks" in results.about
        else [],
        all_in_rows=list(all_in_table(results)),
        shard_sizes=results.shard_sizes,
        findings=list(findings(results)) if results.architectures else [],
        images={name: Markup(url) for name, url in images.items()},
        parts=parts(results),
        options=list(method_options(results)),
        rivals=[rival for rival in RIVALS.values() if rival.name in measured],
        rows=results.flat() if results.architectures else [],
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes:,.0f}" if num_bytes >= 1000 else f"{num_bytes:,.1f}"
