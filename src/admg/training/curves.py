"""Training curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from admg.files import atomic

HIDDEN = {"step", "images", "lr", "images_per_second", "grad_norm"}


def plot_log(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Plot each column of the log over the number of images seen, on a log scale if all values are positive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in HIDDEN]
    series = {}
    for name in names:
        points = [(int(row["images"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            series[name] = tuple(zip(*points))
    if not series:
        return
    columns = min(3, len(series))
    figure = Figure(figsize=(4.5 * columns, 3.2 * -(-len(series) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, (images, values)) in enumerate(series.items()):
        axes = figure.add_subplot(-(-len(series) // columns), columns, i + 1)
        axes.plot(images, values, linewidth=1)
        axes.set(title=name, xlabel="images seen")
        if min(values) > 0 and max(values) > 5 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def plot_accuracy(accuracy: Mapping[int, float], classes: int, title: str, path: Path) -> None:
    """Plot accuracy over the noise level, with the accuracy of guessing as a dotted line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(list(accuracy), list(accuracy.values()), marker="o")
    axes.axhline(1 / classes, linestyle=":", color="grey")
    axes.set(title=title, xlabel="noise level t", ylabel="validation accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
