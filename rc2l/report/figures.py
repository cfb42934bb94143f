"""Figures of a report as SVG: curves, small multiples, matrices."""

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rc2l.report.groups import Group

#: Distinguishable also without red and green (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
#: Points of a curve beyond which neighbours are averaged.
_MOST_POINTS = 600
#: Names of more classes than this could not be read beside a matrix.
MOST_NAMES = 40
_STYLE = {
    # Names of classes are names, whatever dollar signs they hold.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.4,
}


def small_multiples(groups: Sequence[Group], keys: Sequence[str], columns: int = 3) -> str:
    """One panel for each key of the metrics, with a line for each group and a band of one standard deviation."""
    with rc_context(_STYLE):
        columns = min(columns, len(keys))
        rows = math.ceil(len(keys) / columns)
        # Sizes in inches. A layout that measures every text would take ten times as long.
        width, height, bottom = 3.7 * columns, 2.1 * rows + 0.45, 0.3 + 0.22 * _legend_rows(groups)
        height += bottom - 0.3
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(
            left=0.55 / width,
            right=1 - 0.1 / width,
            top=1 - 0.3 / height,
            bottom=bottom / height,
            hspace=0.4,
            wspace=0.25,
        )
        for number, key in enumerate(keys):
            axes = figure.add_subplot(rows, columns, number + 1)
            for color, group in zip(_colors(groups), groups, strict=True):
                _line(axes, group.mean_curve(key), color, printable(group.name))
            axes.set_title(printable(key), fontsize=9)
            axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
            axes.tick_params(labelsize=8)
        _legend(figure, groups)
        return svg_uri(figure)


def score_curves(groups: Sequence[Group]) -> str:
    """mIoU of every network over the iterations: the result solid, the others dashed and dotted."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for color, group in zip(_colors(groups), groups, strict=True):
            names = list(dict.fromkeys(name for run in group.runs for name in run.networks))
            for number, name in enumerate(names):
                label = name if len(groups) == 1 else f"{group.name}: {name}"
                shade = COLORS[number % len(COLORS)] if len(groups) == 1 else color
                style = ("-", "--", ":", "-.")[number % 4]
                _line(axes, group.mean_curve(f"{name}/mIoU"), shade, printable(label), style, marker="o")
        axes.set_xlabel("iteration")
        axes.set_ylabel("mIoU [%]")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, frameon=False, fontsize=8)
        return svg_uri(figure)


def class_history(values: Mapping[str, Mapping[int, float]], title: str) -> str:
    """A row of colour for each class over the iterations, such as its share of the pseudo labels."""
    with rc_context(_STYLE | {"axes.grid": False}):
        iterations = sorted(set().union(*values.values()))
        table = np.array([[curve.get(at, np.nan) for at in iterations] for curve in values.values()], dtype=float)
        figure = Figure(figsize=(8, 1 + 0.22 * max(len(values), 3)), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(
            np.ma.masked_invalid(table), aspect="auto", cmap="viridis", extent=(0, len(iterations), len(values), 0)
        )
        ticks = np.linspace(0, len(iterations) - 1, min(6, len(iterations))).round().astype(int)
        axes.set_xticks(ticks + 0.5, [str(iterations[tick]) for tick in ticks])
        axes.set_yticks(np.arange(len(values)) + 0.5, [printable(name) for name in values], fontsize=8)
        axes.set_title(printable(title), fontsize=9)
        figure.colorbar(shown, ax=axes)
        return svg_uri(figure)


def confusion_figure(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Rows are true classes, in percent of their pixels; columns predictions."""
    with rc_context(_STYLE | {"axes.grid": False}):
        counts = np.array(matrix, dtype=float)
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        K = len(counts)
        side = min(3 + 0.26 * K, 11)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        if K <= MOST_NAMES:
            names = [printable(name) for name in class_names]
            axes.set_xticks(range(K), names, rotation=90, fontsize=8)
            axes.set_yticks(range(K), names, fontsize=8)
        if K <= 14:
            for row, column in np.ndindex(K, K):
                color = "white" if shares[row, column] > 55 else "black"
                axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=7)
        axes.set_xlabel("prediction")
        axes.set_ylabel("truth")
        figure.colorbar(shown, ax=axes, shrink=0.7, label="% of the true pixels")
        return svg_uri(figure)


def svg_uri(figure: Figure) -> str:
    """A figure as an address that holds all of it."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Texts stay texts in the file: letters that matplotlib's font lacks come from the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue().encode()).decode()}"


def printable(text: str) -> str:
    """Without control characters, which SVG cannot hold, nor the underscore that hides a name from legends."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(text)) or " "
    return f" {text}" if text.startswith("_") else text


def _colors(groups: Sequence[Group]) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(len(groups))]


def _line(
    axes, curve: Mapping[int, tuple[float, float]], color: str, label: str, style: str = "-", marker: str = ""
) -> None:
    if not curve:
        return
    points = np.array([(at, mean, deviation) for at, (mean, deviation) in curve.items()], dtype=float)
    if len(points) > _MOST_POINTS:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])
    at, mean, deviation = points.T
    marker = "o" if len(points) < 3 else marker if len(points) <= 40 else ""
    axes.plot(at, mean, style, color=color, label=label, markersize=3, marker=marker)
    if deviation.any():
        axes.fill_between(at, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)


def _legend(figure: Figure, groups: Sequence[Group]) -> None:
    if len(groups) > 1:
        handles = {}
        for axes in figure.axes:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(
            list(handles.values()), list(handles), loc="lower center", ncol=2, frameon=False, fontsize=8, borderpad=0
        )


def _legend_rows(groups: Sequence[Group]) -> int:
    return math.ceil(len(groups) / 2) if len(groups) > 1 else 0
