"""Training curves as pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from admg.files import atomic

HIDDEN = {"step", "images", "lr", "images_per_second", "grad_norm", "data_wait", "memory_gib", "loss_scale", "skipped"}
LAYOUT: Literal["constrained"] | None = "constrained"  # slower, but keeps texts from overlapping
AT_LEVEL = re.compile(r"(.+)_t(\d+)")
PARTS = {"train": {"linestyle": "--"}, "val": {"linestyle": "-"}}
"""Line styles of values of training and validation images, by the first part of a column's name."""
Points = tuple[tuple[int, ...], tuple[float, ...]]


def plot_log(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Plot the columns of the log over the number of images seen, on a log scale if all values are positive.

    Values of training and validation images share a panel, and so do those of all noise levels.
    """
    panels = grouped(rows)
    if not panels:
        return
    from matplotlib.ticker import EngFormatter

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(4.5 * columns, 3.2 * lines)
    for i, (title, series) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        axes.set(title=title, xlabel="images seen")
        levels = sorted({level for _, level in series if level is not None})
        for (part, level), (images, values) in series.items():
            style: dict[str, Any] = dict(PARTS.get(part, {}))
            style["label"] = part if level in (None, *levels[:1]) else None
            if level is not None:
                style["color"] = colour(levels.index(level), len(levels))
            axes.plot(images, values, linewidth=1, marker="." if len(images) == 1 else None, **style)
        low, high = extremes(series.values())
        if low > 0 and high > 5 * low:
            axes.set_yscale("log")
        if levels:
            title = f"noise level t: {levels[0]} (dark) to {levels[-1]} (light)"
        if any(part in PARTS for part, _ in series):
            axes.legend(fontsize="x-small", title=title if levels else None, title_fontsize="x-small")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 10k, since longer numbers overlap
        axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def grouped(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[tuple[str, int | None], Points]]:
    """Return the series of each panel by its title; a series is identified by the part of the data and the noise level.

    The columns `train_loss_t0` and `val_loss_t0` are the series ("train", 0) and ("val", 0) of one panel.
    """
    panels: dict[str, dict[tuple[str, int | None], Points]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in HIDDEN):
        points = [(int(row["images"]), float(row[name])) for row in rows if row.get(name)]
        if not points:
            continue
        part, _, quantity = name.partition("_")
        part, quantity = (part, quantity) if part in PARTS and quantity else ("", name)
        match = AT_LEVEL.fullmatch(quantity)
        title = f"{match[1]} by noise level" if match else quantity
        title = f"{title}, training and validation images" if part else title
        images, values = zip(*points)
        panels.setdefault(title, {})[part, int(match[2]) if match else None] = images, values
    return panels


def extremes(series: Any) -> tuple[float, float]:
    """Return the least and the largest value of some series."""
    values = [value for _, values in series for value in values]
    return min(values), max(values)


def plot_levels(series: Mapping[str, Mapping[int, float]], title: str, what: str, path: Path) -> None:
    """Plot a quantity over the noise level, a line for each named series; on a log scale if it varies much."""
    figure = new_figure(5, 3.5)
    axes = figure.add_subplot()
    for name, values in series.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name, **PARTS.get(name, {}))
    values_of_all = [value for values in series.values() for value in values.values()]
    if min(values_of_all) > 0 and max(values_of_all) > 5 * min(values_of_all):
        axes.set_yscale("log")
    axes.set(title=title, xlabel="noise level t", ylabel=what)
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def plot_accuracy(accuracy: Mapping[str, Mapping[int, float]], classes: int, title: str, path: Path) -> None:
    """Plot accuracy over the noise level, a line for each part of the data, and the chance level as a dotted line."""
    figure = new_figure(5, 3.5)
    axes = figure.add_subplot()
    for name, values in accuracy.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name, **PARTS.get(name, {}))
    axes.axhline(1 / classes, linestyle=":", color="grey")
    axes.set(title=title, xlabel="noise level t", ylabel="accuracy", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def new_figure(width: float, height: float) -> Any:
    """Return a figure of this size in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=LAYOUT)
    FigureCanvasAgg(figure)
    return figure


def colour(number: int, count: int) -> Any:
    """Return one of `count` colours from dark to light."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * number / max(1, count - 1))
