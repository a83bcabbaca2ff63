"""What a sweep found: a CSV of all figures, a table for people, and curves over the guidance scale."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from admg.evaluation.report import MetricValue as Figure
from admg.evaluation.report import shown
from admg.files import atomic

from .sweeping import Cell, Row, number

LOWER_IS_BETTER = ("fid", "sfid", "kid")
AXES = {"scale": "scale of classifier guidance", "cfg": "scale of classifier-free guidance", "steps": "steps"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito's
MARKERS = "osD^vPX"
COLUMNS = 3


@dataclass(frozen=True)
class Report:
    """Rows, in the order of the sweep. title: of the curves; caption: of what the table is, in Markdown"""

    rows: Sequence[Row]
    title: str
    caption: str

    def write(self, out: Path) -> None:
        """sweep.csv, table.md and, if there is a figure yet, curves.png, each whole or not at all."""
        with atomic(out / "sweep.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(self.table())
        with atomic(out / "table.md") as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")
        if self.names:
            draw(self.rows, self.title, out / "curves.png")
        else:  # nor may one of other cells stay
            (out / "curves.png").unlink(missing_ok=True)

    @property
    def names(self) -> dict[str, str]:
        """Metric -> what it is called, of all that any row has."""
        return {figure.metric: figure.name for row in self.rows for figure in row.figures}

    def table(self) -> list[list[Any]]:
        """Header and rows of the CSV, in all their digits; no times, so that the same sweep gives the same file."""
        head = ["sampler", "steps", "guidance", "scale", "cfg", "samples", "network"]
        lines: list[list[Any]] = [head + [name + end for name in self.names.values() for end in ("", " low", " high")]]
        for row in self.rows:
            cell, found = row.cell, by_metric(row)
            features = [figure.network for figure in row.figures if figure.metric != "accuracy"]
            line: list[Any] = [cell.sampler, cell.steps, row.guidance, cell.scale, cell.cfg, row.num, *features[:1]]
            line += [""] * (len(head) - len(line))
            for metric in self.names:
                figure = found.get(metric)
                line += [figure.value, figure.low, figure.high] if figure else [None] * 3
            lines.append(["" if isinstance(x, float) and not math.isfinite(x) else x for x in line])
        return lines

    def markdown(self) -> str:
        """The best of each column is bold."""
        cells = [row.cell for row in self.rows]
        scales = [key for key in ("scale", "cfg") if any(getattr(cell, key) is not None for cell in cells)]
        timed = any(row.seconds is not None for row in self.rows)
        heads = ["sampler", "steps", *scales, *self.names.values(), *(["s/image"] if timed else [])]
        lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
        best = {metric: best_of(self.rows, metric) for metric in self.names}
        for row in self.rows:
            line = [row.cell.sampler, row.cell.steps, *("" if (v := getattr(row.cell, k)) is None else number(v)
                                                         for k in scales)]  # fmt: skip
            for metric in self.names:
                figure = by_metric(row).get(metric)
                text = shown(figure.value) if figure and math.isfinite(figure.value) else ""
                line.append(f"**{text}**" if figure and text and figure.value == best[metric] else text)
            lines.append(line + ([f"{row.seconds:.3g}" if row.seconds is not None else ""] if timed else []))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{self.caption}\n"


def by_metric(row: Row) -> dict[str, Figure]:
    return {figure.metric: figure for figure in row.figures}


def best_of(rows: Sequence[Row], metric: str) -> float | None:
    """The least distance, or the largest of the other figures; None: no row has one."""
    values = [figure.value for row in rows if (figure := by_metric(row).get(metric)) and math.isfinite(figure.value)]
    best: Callable[[list[float]], float] = min if metric in LOWER_IS_BETTER else max
    return best(values) if values else None


# -- curves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Rows that differ in one thing alone. x: its values, in rising order, as are the rows"""

    label: str
    x: list[float]
    rows: list[Row]
    style: dict[str, Any]


def axis_of(cells: Sequence[Cell]) -> str:
    """What the curves run over: the scale that varies, else whichever there is; steps where nothing else varies."""
    count = {key: len({getattr(cell, key) for cell in cells}) for key in AXES}
    if count["scale"] == count["cfg"] == 1 < count["steps"] and all(cell.steps.isdecimal() for cell in cells):
        return "steps"
    if count["scale"] == count["cfg"] == 1:
        return "cfg" if cells[0].scale is None and cells[0].cfg is not None else "scale"
    return "cfg" if count["cfg"] > count["scale"] else "scale"


def lines_of(rows: Sequence[Row], axis: str) -> list[Line]:
    """One for each sampler and its steps, and each value of the other scale."""
    other = [key for key in ("scale", "cfg") if key != axis and len({getattr(row.cell, key) for row in rows}) > 1]
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        cell, label = row.cell, row.cell.sampler
        if axis != "steps":
            label += f", {cell.steps} steps" if cell.steps.isdecimal() else f", {cell.steps}"
        label += "".join(f", {key} {number(getattr(cell, key))}" for key in other)
        groups.setdefault(label, []).append((float(getattr(cell, axis) or 0), row))
    lines = []
    for i, (label, members) in enumerate(groups.items()):
        members.sort(key=lambda member: member[0])
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        lines.append(Line(label, [x for x, _ in members], [row for _, row in members], style))
    return lines


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """A panel for each figure over the scale, of which there must be one, and one of precision against recall."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    names = {figure.metric: figure.name for row in rows for figure in row.figures}
    axis = axis_of([row.cell for row in rows])
    lines = lines_of(rows, axis)
    panels = [partial(over_scale, lines=lines, axis=axis, metric=metric, name=names[metric]) for metric in names]
    if {"precision", "recall"} <= names.keys():
        panels.append(partial(against_recall, lines=lines, axis=axis))
    columns = min(COLUMNS, len(panels))
    height = -(-len(panels) // columns)
    picture = Picture(figsize=(4.2 * columns, 3.3 * height + 0.8), layout="constrained")
    FigureCanvasAgg(picture)
    for i, panel in enumerate(panels):
        axes = picture.add_subplot(height, columns, i + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=9)
        panel(axes)
    picture.suptitle(title, fontsize=11)
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=10)
    with atomic(path) as temporary:
        picture.savefig(temporary, dpi=150)


def over_scale(axes: Any, lines: Sequence[Line], axis: str, metric: str, name: str) -> None:
    values: list[float] = []
    for line in lines:
        points = [(x, figure) for x, row in zip(line.x, line.rows) if (figure := by_metric(row).get(metric))]
        points = [(x, figure) for x, figure in points if math.isfinite(figure.value)]
        x, y = [x for x, _ in points], [figure.value for _, figure in points]
        values += y
        axes.plot(x, y, label=line.label, linewidth=1.6, markersize=4.5, **line.style)
        ends = [(x, f.low, f.high) for x, f in points if f.low is not None and f.high is not None]
        if len(ends) > 1:
            axes.fill_between(*zip(*ends), color=line.style["color"], alpha=0.15, linewidth=0)
        elif ends:
            axes.vlines(*zip(*ends), color=line.style["color"], alpha=0.5)
    arrow = "↓" if metric in LOWER_IS_BETTER else "↑"
    axes.set_title(f"{name} {arrow}", fontsize=11)
    axes.set_xlabel(AXES[axis], fontsize=9)
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    set_ticks(axes, sorted({x for line in lines for x in line.x}), axis)


def set_ticks(axes: Any, ticks: list[float], axis: str) -> None:
    """At the scales themselves; octaves are equally long, and so is the way from 0 to the first scale."""
    sizes = [abs(x) for x in ticks if x]
    if len(ticks) > 1 and sizes:
        axes.set_xscale("symlog", base=2, linthresh=min(sizes), linscale=0.5)
    axes.set_xticks(ticks, [number(x) for x in ticks])
    axes.set_xticks([], minor=True)
    if len(ticks) > 12:
        axes.tick_params(axis="x", labelrotation=60)


def against_recall(axes: Any, lines: Sequence[Line], axis: str) -> None:
    """Up and to the right is better. The scale is written at the points of the outermost lines, to which dotted lines
    lead from those between them."""
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
    """x -> (recall, precision)"""
    found = {x: by_metric(row) for x, row in zip(line.x, line.rows)}
    return {
        x: (f["recall"].value, f["precision"].value) for x, f in found.items() if {"precision", "recall"} <= f.keys()
    }


def mean_sum(points: dict[float, tuple[float, float]]) -> float:
    """How far up and to the right."""
    return sum(map(sum, points.values())) / len(points)
