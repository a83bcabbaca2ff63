"""Curves of a sweep: each metric over the guidance scale, and precision against recall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from admg.files import atomic
from admg.generation.fonts import drawable, figure_fonts

from .cells import Cell, Row, number
from .metrics import METRICS

AXES = {"scale": "guidance scale of the classifier", "cfg": "scale of classifier-free guidance", "steps": "steps"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe & Ito
MARKERS = "osD^vPX"
COLUMNS = 3


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return metric in METRICS and METRICS[metric].lower_is_better


@dataclass(frozen=True)
class Line:
    """A curve: rows that differ in only one quantity.

    label: its name in the legend
    x: values of the quantity, in increasing order
    rows: the rows, in the same order
    style: colour and marker
    """

    label: str
    x: list[float]
    rows: list[Row]
    style: dict[str, Any]


def axis_of(cells: Sequence[Cell]) -> str:
    """Return the quantity on the x axis: the scale that varies, or steps if nothing else varies."""
    count = {key: len({getattr(cell, key) for cell in cells}) for key in AXES}
    if count["scale"] == count["cfg"] == 1 < count["steps"] and all(cell.steps.isdecimal() for cell in cells):
        return "steps"
    if count["scale"] == count["cfg"] == 1:
        return "cfg" if cells[0].scale is None and cells[0].cfg is not None else "scale"
    return "cfg" if count["cfg"] > count["scale"] else "scale"


def lines_of(rows: Sequence[Row], axis: str) -> list[Line]:
    """Return a curve for each sampler with its steps, guide, and value of the other scale."""
    other = [key for key in ("scale", "cfg") if key != axis and len({getattr(row.cell, key) for row in rows}) > 1]
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        cell, label = row.cell, row.cell.sampler
        if axis != "steps":
            label += f", {cell.steps} steps" if cell.steps.isdecimal() else f", {cell.steps}"
        label += "".join(f", {key} {number(getattr(cell, key))}" for key in other)
        label += f", {cell.guide}" if cell.guide else ""
        groups.setdefault(label, []).append((float(getattr(cell, axis) or 0), row))
    lines = []
    for i, (label, members) in enumerate(groups.items()):
        members.sort(key=lambda member: member[0])
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        lines.append(Line(label, [x for x, _ in members], [row for _, row in members], style))
    return lines


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write a picture with a panel for each metric, at least one, and one of precision against recall."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {value.metric: value.name for row in rows for value in row.values}
    axis = axis_of([row.cell for row in rows])
    lines = lines_of(rows, axis)
    panels = [partial(over_scale, lines=lines, axis=axis, metric=metric, name=names[metric]) for metric in names]
    if {"precision", "recall"} <= names.keys():
        panels.append(partial(against_recall, lines=lines, axis=axis))
    columns = min(COLUMNS, len(panels))
    height = -(-len(panels) // columns)
    picture = Figure(figsize=(4.2 * columns, 3.3 * height + 0.8), layout="constrained")
    FigureCanvasAgg(picture)
    for i, panel in enumerate(panels):
        axes = picture.add_subplot(height, columns, i + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=9)
        panel(axes)
    handles, labels = picture.axes[0].get_legend_handles_labels()
    title, *labels = map(drawable, (title, *labels))
    with figure_fonts(title, *labels):
        picture.suptitle(title, fontsize=11)
        columns = min(4, len(labels))
        picture.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    with atomic(path) as temporary:
        picture.savefig(temporary, dpi=150)


def over_scale(axes: Any, lines: Sequence[Line], axis: str, metric: str, name: str) -> None:
    values: list[float] = []
    for line in lines:
        points = [(x, value) for x, row in zip(line.x, line.rows) if (value := row.get(metric))]
        points = [(x, value) for x, value in points if math.isfinite(value.value)]
        x, y = [x for x, _ in points], [value.value for _, value in points]
        values += y
        axes.plot(x, y, label=line.label, linewidth=1.6, markersize=4.5, **line.style)
        ends = [(x, f.low, f.high) for x, f in points if f.low is not None and f.high is not None]
        if len(ends) > 1:
            axes.fill_between(*zip(*ends), color=line.style["color"], alpha=0.15, linewidth=0)
        elif ends:
            axes.vlines(*zip(*ends), color=line.style["color"], alpha=0.5)
    arrow = "↓" if lower_is_better(metric) else "↑"
    axes.set_title(f"{name} {arrow}", fontsize=11)
    axes.set_xlabel(AXES[axis], fontsize=9)
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    set_ticks(axes, sorted({x for line in lines for x in line.x}))


def set_ticks(axes: Any, ticks: list[float]) -> None:
    """Put ticks at the scales; an octave, and the step from 0 to the first scale, have the same length."""
    sizes = [abs(x) for x in ticks if x]
    if len(ticks) > 1 and sizes:
        axes.set_xscale("symlog", base=2, linthresh=min(sizes), linscale=0.5)
    axes.set_xticks(ticks, [number(x) for x in ticks])
    axes.set_xticks([], minor=True)
    if len(ticks) > 12:
        axes.tick_params(axis="x", labelrotation=60)


def against_recall(axes: Any, lines: Sequence[Line], axis: str) -> None:
    """Plot precision against recall: up and to the right is better.

    The scale is written at the points of the outermost lines; dotted lines connect equal scales.
    """
    from matplotlib.patheffects import withStroke

    points = {line.label: by_scale(line) for line in lines}
    order = sorted((line for line in lines if points[line.label]), key=lambda line: mean_sum(points[line.label]))
    for line in lines:
        axes.plot(*zip(*points[line.label].values()), linewidth=1.2, markersize=4.5, **line.style)
    if len(order) > 2:
        for x in sorted({x for found in points.values() for x in found}):
            tie = [points[line.label][x] for line in order if x in points[line.label]]
            axes.plot(*zip(*tie), color="grey", linewidth=0.7, linestyle=":", zorder=1)
    for line in {id(line): line for line in (*order[-1:], *order[:1])}.values():
        place = (4, 3, "left", "bottom") if line is order[-1] else (-4, -3, "right", "top")
        for x, at in points[line.label].items():
            text = axes.annotate(number(x), at, xytext=place[:2], textcoords="offset points", ha=place[2], va=place[3],
                                 fontsize=8, color=line.style["color"], zorder=5)  # fmt: skip
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.margins(0.1)
    axes.set_title(f"Precision against recall, by {'steps' if axis == 'steps' else 'scale'}", fontsize=11)
    axes.set_xlabel("Recall", fontsize=9)
    axes.set_ylabel("Precision", fontsize=9)


def by_scale(line: Line) -> dict[float, tuple[float, float]]:
    """Return (recall, precision) by x."""
    rows = {x: row for x, row in zip(line.x, line.rows) if row.get("precision") and row.get("recall")}
    return {x: (row["recall"], row["precision"]) for x, row in rows.items()}


def mean_sum(points: dict[float, tuple[float, float]]) -> float:
    """Return a measure of how far up and to the right the points are."""
    return sum(map(sum, points.values())) / len(points)
