"""The figures of an evaluation: error over relative size, the same on new tasks over bytes, and bits by dimension."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from vidpress.pipeline.evaluation.points import PAPER
from vidpress.pipeline.evaluation.report.results import Results, Summary
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, FEATURES, fitted_to
from vidpress.pipeline.evaluation.task import Error

# The strongest of Okabe and Ito's colours, which the colour-blind can tell apart, without black, which is the paper's;
# rivals have the others.
_METHOD_COLOURS = ("#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#7B4FA3", "#8C6D31")
_METHOD_MARKERS = "oDvPp"
_PAPER_COLOUR, _PAPER_MARKER = "#000000", "*"

# Points this far above the baseline's error are left out: nobody would use them. The close-up shows errors up to a
# tenth of that above the baseline's, or above the methods' best if that is higher.
_HIGHEST_ABOVE_BASELINE = 0.1
_CLOSE_ABOVE_BASELINE = 0.01

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
    own: bool = False


class _Window(NamedTuple):
    """What a panel shows: the ends of its axes."""

    x: tuple[float, float]
    y: tuple[float, float]


# Draws all of an architecture into a panel, and returns what the whole and what the close-up shows.
_Draw = Callable[[Axes, Results, tuple[int, ...]], tuple[_Window, _Window]]


def rate_accuracy(results: Results) -> Figure:
    """Return the figure of errors over relative size on a logarithmic axis: a row for each architecture and error."""
    errors = results.task.errors
    return _panels(results, [functools.partial(_draw_errors, shown_error=error) for error in errors])


def _panels(results: Results, draws: Sequence[_Draw]) -> Figure:
    """Return a figure with a row for each architecture and function: a panel, a close-up, and the curves' names."""
    rows = list(itertools.product(results.architectures, draws))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(15, 4.8 * len(rows)), layout="constrained")
        for pair, (hidden, draw) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
            windows, _ = (draw(axis, results, hidden) for axis in pair)
            for axis, window in zip(pair, windows, strict=True):
                axis.set_xlim(window.x)
                axis.set_ylim(window.y)
                axis.xaxis.set_major_locator(LogLocator(subs=_labelled(window.x[1] / window.x[0])))
                axis.xaxis.set_minor_formatter(NullFormatter())
                axis.grid(True, which="major", color="#E4E4E4", linewidth=0.8)
                axis.set_axisbelow(True)
            whole, close = pair
            whole.set_title(f"{results.data_set}: {results.task.title(hidden)}")
            close.set_title("The methods, close up")
            close.set_ylabel("")
            x, y = windows[1]
            frame = Rectangle((x[0], y[0]), x[1] - x[0], y[1] - y[0], fill=False, edgecolor="#999999", linewidth=0.8)
            whole.add_patch(frame)
            _name_curves(whole, close, windows[0], results.about["methods"])
    return figure


def _labelled(ratio: float) -> tuple[float, ...]:
    """Return which multiples of powers of ten have a label on an axis whose ends have this ratio."""
    if ratio < 15:
        return 1, 1.5, 2, 3, 5, 7
    return (1, 2, 5) if ratio < 5000 else (1, 3)


def _name_curves(whole: Axes, close: Axes, window: _Window, own: Sequence[str]) -> None:
    """List the names of the curves that are seen, beside the panels."""
    seen = [
        line
        for line in whole.get_lines()
        if not line.get_label().startswith("_")  # type: ignore[attr-defined]
        and any(window.y[0] <= y <= window.y[1] for y in np.asarray(line.get_ydata(), float))
    ]
    legend = close.legend(handles=seen, loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, handlelength=2.6)
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in own else "normal")
        text.set_fontsize(10 if text.get_text() in own else 8.5)


def _curves(results: Results, hidden: tuple[int, ...]) -> list[_Curve]:
    looks = zip(itertools.cycle(_METHOD_COLOURS), itertools.cycle(_METHOD_MARKERS))
    own = []
    for method in results.about["methods"]:
        colour, marker = (_PAPER_COLOUR, _PAPER_MARKER) if method == PAPER else next(looks)
        own.append(_Curve(method, results.curve(method, hidden), colour, marker, own=True))
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


def _draw_errors(axis: Axes, results: Results, hidden: tuple[int, ...], shown_error: Error) -> tuple[_Window, _Window]:
    metric = shown_error.metric
    baseline = results.baseline(hidden)
    curves = _curves(results, hidden)
    error = 1 - baseline.validation[metric]
    axis.set_xscale("log")
    low, high = (1 - value for value in baseline.spread(metric))
    if low != high:
        axis.axhspan(high, low, color="#333333", alpha=0.08, linewidth=0)
    _draw_curves(axis, curves, lambda point: point.relative_size, lambda point: _errors(point, metric))
    axis.axhline(error, color="#333333", linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axis.plot([1], [error], "s", color="#333333", markersize=7, label="baseline, lossless")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1, symbol=" %"))
    axis.set_xlabel(f"Size, of the baseline's activations in float32 and zlib ({baseline.num_bytes:,.0f} bytes)")
    axis.set_ylabel(f"Error, 1 - {shown_error.name}")

    def points_of(curves: Sequence[_Curve], above: float) -> list[Summary]:
        return [point for curve in curves for point in curve.points if 1 - point.validation[metric] <= error + above]

    def window(points: Sequence[Summary], sizes: Sequence[float]) -> _Window:
        return _window(sizes, [error, *(value for point in points for value in _errors(point, metric))])

    every = points_of(curves, _HIGHEST_ABOVE_BASELINE)
    whole = window(every, [1, *(point.relative_size for point in every)])
    methods = [curve for curve in curves if curve.own]
    if not methods:
        return whole, whole
    best = min(1 - point.validation[metric] for curve in methods for point in curve.points)
    above = _CLOSE_ABOVE_BASELINE + max(0.0, best - error)
    sizes = [point.relative_size for point in points_of(methods, above)]
    # Rivals of the same sizes belong to the picture, above all where they are better.
    near = [point for point in points_of(curves, above) if min(sizes) <= point.relative_size <= max(sizes)]
    return whole, window(near, sizes)


def _errors(point: Summary, metric: str) -> list[float]:
    """Return the error of each seed."""
    return [1 - record["validation"][metric] for record in point.records]


def _window(sizes: Sequence[float], values: Sequence[float]) -> _Window:
    """Return a window with some room around sizes, on a logarithmic axis, and values."""
    room = 1.1 * (max(sizes) / min(sizes)) ** 0.06
    height = max(max(values) - min(values), 0.005)
    return _Window((min(sizes) / room, max(sizes) * room), (min(values) - 0.08 * height, max(values) + 0.08 * height))


def _draw_curves(
    axis: Axes,
    curves: Sequence[_Curve],
    size_of: Callable[[Summary], float],
    values_of: Callable[[Summary], Sequence[float]],
) -> None:
    """Draw the means of each point's seeds, and bars from the least to the largest of them; the first curves on top."""
    for rank, curve in enumerate(curves):
        zorder = (4 if curve.own else 2) - rank / 100
        sizes = [size_of(point) for point in curve.points]
        means = [float(np.mean(values_of(point))) for point in curve.points]
        for size, mean, values in zip(sizes, means, map(values_of, curve.points), strict=True):
            if min(values) != max(values):
                ends = [[mean - min(values)], [max(values) - mean]]
                axis.errorbar([size], [mean], ends, color=curve.colour, capsize=3, zorder=zorder, label="_")
        axis.plot(
            sizes,
            means,
            color=curve.colour,
            marker=curve.marker,
            linestyle=curve.line,
            linewidth=2.2 if curve.own else 1.4,
            markersize=(12 if curve.marker == _PAPER_MARKER else 7.5) if curve.own else 5.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            zorder=zorder,
            label=curve.label,
        )


# Points of new tasks this far below the best are left out.
_LOWEST_BELOW_BEST = 0.15


def new_tasks(results: Results) -> Figure:
    """Return the figure of linear heads for new tasks over bytes: a row for each architecture and GAP or mAP."""
    metrics = (("gap", "GAP"), ("mean_ap", "mAP"))
    return _panels(results, [functools.partial(_draw_new_tasks, metric=metric, name=name) for metric, name in metrics])


def _draw_new_tasks(
    axis: Axes, results: Results, hidden: tuple[int, ...], metric: str, name: str
) -> tuple[_Window, _Window]:
    def values_of(point: Summary) -> list[float]:
        return point.on_new_tasks("linear", metric)

    curves = []
    for curve in _curves(results, hidden):
        points = [point for point in curve.points if values_of(point)]
        if points:
            curves.append(dataclasses.replace(curve, points=points))
    axis.set_xscale("log")
    _draw_curves(axis, curves, lambda point: point.num_bytes, values_of)
    lines: list[tuple[str, Any, Summary]] = [("activations without a rate", (5, 3), results.baseline(hidden))]
    lines += [("the input, float32", (1, 2), point) for point in results.codecs("float32", FEATURES, hidden)]
    levels = []
    for label, dashes, point in lines:
        levels.append(float(np.mean(values_of(point))))
        axis.axhline(levels[-1], color="#333333", linewidth=1, linestyle=(0, dashes), zorder=1, label=label)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_xlabel("Bytes a video")
    axis.set_ylabel(f"{name} of a linear head for new tasks")

    def window(curves: Sequence[_Curve], levels: Sequence[float]) -> _Window:
        found = [(point.num_bytes, values_of(point)) for curve in curves for point in curve.points]
        best = max([*levels, *(max(values) for _, values in found)])
        seen = [(size, values) for size, values in found if max(values) >= best - _LOWEST_BELOW_BEST]
        return _window([size for size, _ in seen], [*levels, *(value for _, values in seen for value in values)])

    methods = [curve for curve in curves if curve.own]
    whole = window(curves, levels) if curves else _Window((1, 10), (0, 1))
    return whole, window(methods, []) if methods else whole


def bits_by_dimension(results: Results) -> Figure:
    """Return the figure of the bits that each dimension of the methods' networks takes at one lmbda, largest first."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axis = figure.subplots()
        lmbda = _common_lmbda(results)
        for method, hidden, point in _networks(results):
            if point.records[0]["lmbda"] != lmbda:
                continue
            methods = [name for name in results.about["methods"] if name != PAPER]
            colour = _PAPER_COLOUR if method == PAPER else _METHOD_COLOURS[methods.index(method) % len(_METHOD_COLOURS)]
            network = results.task.network_name(hidden).removesuffix(" network")
            num_bytes = f"{point.num_bytes:.{0 if point.num_bytes >= 10 else 1}f}"
            axis.plot(
                *zip(*point.records[0]["bits_by_rank"], strict=True),
                color=colour,
                linestyle=("-", (0, (4, 2)), ":")[results.architectures.index(hidden) % 3],
                linewidth=2,
                label=f"{method}, {network}: {num_bytes} bytes {results.task.a_example}",
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_xlabel("Dimension of the bottleneck, the most expensive first")
        axis.set_ylabel(f"Bits {results.task.a_example}")
        axis.set_ylim(bottom=0)
        axis.grid(True, color="#E4E4E4", linewidth=0.8)
        axis.set_title(results.data_set if lmbda is None else f"{results.data_set}, λ {lmbda:g}")
        if axis.get_lines():
            axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=9)
    return figure


def _networks(results: Results) -> Iterator[tuple[str, tuple[int, ...], Summary]]:
    for hidden in results.architectures:
        for method in results.about["methods"]:
            for point in results.curve(method, hidden):
                yield method, hidden, point


def _common_lmbda(results: Results) -> float | None:
    """Return the lmbda that most curves have; of several, the one nearest to where the first curve is no worse."""
    counts = Counter(point.records[0]["lmbda"] for _, _, point in _networks(results))
    if not counts:
        return None
    candidates = [lmbda for lmbda, count in counts.items() if count == max(counts.values())]
    hidden, method = results.architectures[0], results.about["methods"][0]
    wanted = results.no_worse(results.curve(method, hidden), hidden)
    near = min(candidates) if wanted is None else wanted.records[0]["lmbda"]
    return min(candidates, key=lambda lmbda: abs(math.log(lmbda / near)))


def to_bytes(figure: Figure, file_format: Literal["png", "svg"]) -> bytes:
    """Return a figure as a file; equal figures give equal bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(file, format=file_format, dpi=150, facecolor="white", metadata=metadata)
    return file.getvalue()
