"""The figures of an evaluation: error over relative size, the same on new tasks over bytes, and bits by dimension."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from vidpress.pipeline.evaluation.points import PAPER
from vidpress.pipeline.evaluation.report.results import Results, Summary
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, FEATURES, fitted_to
from vidpress.pipeline.evaluation.task import Error

# The strongest of Okabe and Ito's colours, which the colour-blind can tell apart; rivals have the others.
_METHOD_COLOURS = ("#D55E00", "#0072B2", "#CC79A7", "#000000", "#E69F00", "#7B4FA3", "#8C6D31")

# Points this far above the baseline's error are left out: nobody would use them.
_HIGHEST_ABOVE_BASELINE = 0.1
_LOWEST_SHARE = 0.12  # share of the height that is free below the lowest error

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "vidpress",  # the same figure, the same file
    "svg.fonttype": "path",
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Curve:
    """How a method is drawn."""

    label: str
    points: list[Summary]
    colour: str
    marker: str
    line: str = "-"
    width: float = 1.6


def rate_accuracy(results: Results) -> Figure:
    """Return the figure of errors over relative size on a logarithmic axis: a column for each architecture."""
    errors = results.task.errors
    return _panels(results, [functools.partial(_draw_panel, shown_error=error) for error in errors])


def _panels(results: Results, draw_rows: Sequence[Callable[[Axes, Results, tuple[int, ...]], None]]) -> Figure:
    """Return a figure with a row for each function that draws a panel, and a column for each architecture."""
    architectures = results.architectures
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6 * len(architectures), 5.5 * len(draw_rows)), layout="constrained")
        FigureCanvasAgg(figure)  # draws, so that the sizes of texts are known
        axes = figure.subplots(len(draw_rows), len(architectures), squeeze=False)
        for column, hidden in enumerate(architectures):
            for row, draw in enumerate(draw_rows):
                draw(axes[row, column], results, hidden)
        figure.canvas.draw()
        figure.set_layout_engine("none")
        for axis in axes.flat:
            _place_labels(axis)
    return figure


def _curves(results: Results, hidden: tuple[int, ...]) -> list[_Curve]:
    markers = itertools.cycle("oDvP*")
    own = [
        _Curve(method, results.curve(method, hidden), colour, marker, "-", 1.8 if method == PAPER else 2.6)
        for method, colour, marker in zip(results.about["methods"], itertools.cycle(_METHOD_COLOURS), markers)
    ]
    on_activations = [
        _Curve(rival.label, results.codecs(rival.name, ACTIVATIONS, hidden), rival.colour, rival.marker, rival.line)
        for rival in fitted_to(ACTIVATIONS)
    ]
    on_input = [
        _Curve(
            f"{rival.label} of the input",
            results.codecs(rival.name, FEATURES, hidden),
            rival.colour,
            rival.marker,
            "--",
        )
        for rival in fitted_to(FEATURES)
    ]
    return [curve for curve in [*own, *on_activations, *on_input] if curve.points]


def _draw_panel(axis: Axes, results: Results, hidden: tuple[int, ...], shown_error: Error) -> None:
    metric = shown_error.metric
    baseline = results.baseline(hidden)
    curves = _curves(results, hidden)
    error = 1 - baseline.validation[metric]
    errors = [1 - point.validation[metric] for curve in curves for point in curve.points]
    shown = [value for value in [*errors, error] if value <= error + _HIGHEST_ABOVE_BASELINE]
    height = max(max(shown) - min(shown), 0.02)
    axis.set_ylim(min(shown) - _LOWEST_SHARE * height, max(shown) + 0.06 * height)
    sizes = [point.relative_size for curve in curves for point in curve.points if 1 - point.validation[metric] in shown]
    axis.set_xscale("log")
    axis.set_xlim(min([*sizes, 0.5]) / 1.9, 2)
    axis.axhline(error, color="#333333", linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    low, high = (1 - value for value in baseline.spread(metric))
    if low != high:
        axis.axhspan(high, low, color="#333333", alpha=0.08, linewidth=0)
    axis.plot([1], [error], marker="s", color="#333333", markersize=7, linestyle="none")
    # Kept for the labels, which are placed when all panels have their final size.
    axis.label_requests = []  # type: ignore[attr-defined]
    axis.label_requests.append(("baseline, lossless", "#333333", [(1, error)], False))  # type: ignore[attr-defined]
    for curve in reversed(curves):
        sizes = [point.relative_size for point in curve.points]
        seeds = [[1 - record["validation"][metric] for record in point.records] for point in curve.points]
        _draw_curve(axis, curve, sizes, seeds, own=curve.label in results.about["methods"])
    _finish(axis, results.task.title(hidden))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if height > 0.08 else 1, symbol=" %"))
    axis.set_xlabel(f"Size, of the baseline's activations in float32 and zlib ({baseline.num_bytes:,.0f} bytes)")
    axis.set_ylabel(f"Error, 1 - {shown_error.name}")


def _finish(axis: Axes, title: str) -> None:
    """Let a panel's first curves be named first, and give it a grid and a title."""
    axis.label_requests.reverse()  # type: ignore[attr-defined]
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", color="#E4E4E4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_title(title)


def _draw_curve(axis: Axes, curve: _Curve, x: Sequence[float], seeds: Sequence[Sequence[float]], *, own: bool) -> None:
    """Draw the means of each point's seeds, and bars from the least to the largest of them."""
    y = [float(np.mean(values)) for values in seeds]
    for size, mean, values in zip(x, y, seeds, strict=True):
        if min(values) != max(values):
            ends = [[mean - min(values)], [max(values) - mean]]
            axis.errorbar([size], [mean], ends, color=curve.colour, capsize=3, zorder=3)
    axis.plot(
        x,
        y,
        color=curve.colour,
        marker=curve.marker,
        linestyle=curve.line,
        linewidth=curve.width,
        markersize=7 if own else 5.5,
        markeredgecolor="white",
        markeredgewidth=0.7,
        zorder=4 if own else 2,
    )
    bottom, top = axis.get_ylim()
    visible = [(size, mean) for size, mean in zip(x, y, strict=True) if bottom <= mean <= top]
    if visible:
        axis.label_requests.append((curve.label, curve.colour, visible, own))  # type: ignore[attr-defined]


# Points of new tasks this far below the best are left out.
_LOWEST_BELOW_BEST = 0.15


def new_tasks(results: Results) -> Figure:
    """Return the figure of linear heads for new tasks over bytes: GAP and mAP, a column for each architecture."""
    metrics = (("gap", "GAP"), ("mean_ap", "mAP"))
    return _panels(results, [functools.partial(_draw_new_tasks, metric=metric, name=name) for metric, name in metrics])


def _draw_new_tasks(axis: Axes, results: Results, hidden: tuple[int, ...], metric: str, name: str) -> None:
    curves = []
    for curve in _curves(results, hidden):
        points = [point for point in curve.points if point.on_new_tasks("linear", metric)]
        if points:
            curves.append(dataclasses.replace(curve, points=points))
    lines: list[tuple[str, Summary]] = [("activations without a rate", results.baseline(hidden))]
    lines += [("the input, float32", point) for point in results.codecs("float32", FEATURES, hidden)]
    levels = [(label, float(np.mean(point.on_new_tasks("linear", metric)))) for label, point in lines]
    values = [value for curve in curves for point in curve.points for value in point.on_new_tasks("linear", metric)]
    best = max([*values, *(level for _, level in levels)])
    shown = [value for value in [*values, *(level for _, level in levels)] if value >= best - _LOWEST_BELOW_BEST]
    height = max(best - min(shown), 0.02)
    axis.set_ylim(min(shown) - 0.06 * height, best + _LOWEST_SHARE * height)
    sizes = [point.num_bytes for curve in curves for point in curve.points] or [1.0]
    axis.set_xscale("log")
    axis.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    axis.label_requests = []  # type: ignore[attr-defined]
    for label, level in levels:
        axis.axhline(level, color="#333333", linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        axis.label_requests.append((label, "#333333", [(max(sizes), level)], False))  # type: ignore[attr-defined]
    for curve in reversed(curves):
        seeds = [point.on_new_tasks("linear", metric) for point in curve.points]
        own = curve.label in results.about["methods"]
        _draw_curve(axis, curve, [point.num_bytes for point in curve.points], seeds, own=own)
    _finish(axis, results.task.title(hidden))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_xlabel("Bytes a video")
    axis.set_ylabel(f"{name} of a linear head for new tasks")


def _place_labels(axis: Axes) -> None:
    """Write each curve's name beside one of its points, where it covers neither a point, a line nor another name."""
    frame = axis.get_window_extent()
    taken: list[tuple[float, float, float, float]] = []
    dots = _drawn_dots(axis)
    for label, colour, points, bold in axis.label_requests:  # type: ignore[attr-defined]
        text = axis.text(0, 0, label, color=colour, fontsize=10.5 if bold else 9, weight="bold" if bold else "normal")
        size = text.get_window_extent()
        best, best_cost, anchor, is_far = None, np.inf, (0.0, 0.0), False
        for place, (x, y) in enumerate(_places(axis, points)):
            for far, (dx, dy) in itertools.product((1, 2, 3.5, 5), _DIRECTIONS):
                gap = 9 * far
                left = x + dx * gap + (dx - 1) / 2 * size.width
                bottom = y + dy * gap + (dy - 1) / 2 * size.height
                box = (left, bottom, left + size.width, bottom + size.height)
                outside = box[0] < frame.x0 or box[2] > frame.x1 + 6 or box[1] < frame.y0 + 2 or box[3] > frame.y1 + 4
                inside = (dots > (box[0] - 3, box[1] - 2)).all(axis=1) & (dots < (box[2] + 3, box[3] + 2)).all(axis=1)
                overlap = any(_overlap(box, other) for other in taken)
                cost = 1000 * outside + 500 * overlap + 15 * inside.sum() + 8 * far + place / 2
                if cost < best_cost:
                    best, best_cost, anchor, is_far = box, cost, (x, y), far > 2
        if best is None:
            text.remove()
            continue
        taken.append(best)
        to_data = axis.transData.inverted().transform
        text.set_position(tuple(to_data((best[0], best[1]))))
        text.set_verticalalignment("bottom")
        if is_far:
            nearest = np.clip(anchor, (best[0], best[1] + 3), (best[2], best[3] - 3))
            axis.plot(*zip(to_data(nearest), to_data(anchor), strict=True), color=colour, linewidth=0.7, alpha=0.8)


_DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]


def _places(axis: Axes, points: list[tuple[float, float]]) -> Iterator[np.ndarray]:
    """Yield the points of a curve that is drawn, and those halfway between them, in pixels."""
    pixels = axis.transData.transform(points)
    for index, pixel in enumerate(pixels):
        yield pixel
        if index + 1 < len(pixels):
            yield (pixel + pixels[index + 1]) / 2


def _drawn_dots(axis: Axes) -> np.ndarray:
    """Return places on all lines, a few pixels apart, float64[n, 2] in pixels."""
    parts = []
    for line in axis.get_lines():
        path = line.get_transform().transform(np.asarray(line.get_xydata(), float))
        parts.append(path)
        for start, end in itertools.pairwise(path):
            steps = max(2, int(np.hypot(*(end - start)) / 4))
            parts.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(parts)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] + 4 and b[0] < a[2] + 4 and a[1] < b[3] + 2 and b[1] < a[3] + 2


def bits_by_dimension(results: Results) -> Figure:
    """Return the figure of the bits that each dimension of each method's best network takes, the largest first."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4), layout="constrained")
        axis = figure.subplots()
        lines = []
        for hidden in results.architectures:
            for method, colour in zip(results.about["methods"], itertools.cycle(_METHOD_COLOURS)):
                points = results.curve(method, hidden)
                point = results.no_worse(points, hidden) or (points[-1] if points else None)
                if point is not None:
                    lines.append((method, hidden, point, colour))
        for method, hidden, point, colour in lines:
            axis.plot(
                *zip(*point.records[0]["bits_by_rank"], strict=True),
                color=colour,
                linestyle="-" if len(hidden) == 1 else (0, (4, 2)),
                linewidth=2,
                label=f"{method}, {results.task.network_name(hidden).removesuffix(' network')}, {point.setting}: "
                f"{point.num_bytes:.{0 if point.num_bytes >= 10 else 1}f} bytes {results.task.a_example}",
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_xlabel("Dimension of the bottleneck, the most expensive first")
        axis.set_ylabel(f"Bits {results.task.a_example}")
        axis.set_ylim(bottom=0)
        axis.grid(True, color="#E4E4E4", linewidth=0.8)
        if lines:
            axis.legend(frameon=False, fontsize=9)
    return figure


def to_bytes(figure: Figure, file_format: Literal["png", "svg"]) -> bytes:
    """Return a figure as a file; equal figures give equal bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(file, format=file_format, dpi=150, facecolor="white", metadata=metadata)
    return file.getvalue()
