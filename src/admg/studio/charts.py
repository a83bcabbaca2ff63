"""Matplotlib charts: label probabilities over t, and the log of a training run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from admg.training.curves import new_figure, plot_log

from .sampling import Frame

MAX_LINES = 10
"""Largest number of labels in a chart."""


def probability_lines(frames: Sequence[Frame], image: int | None) -> tuple[list[float], dict[int, list[float]]]:
    """Return t after each step, and the classifier's probability of each label there.

    If there are more than MAX_LINES labels, those with the highest peak probabilities are kept.

    image: number of the image; None for the mean of all
    """
    points = [(frame.t, frame.probabilities) for frame in frames if frame.probabilities is not None]
    if not points:
        return [], {}
    values = np.stack([of_all.mean(0) if image is None else of_all[image] for _, of_all in points])
    chosen = sorted(np.argsort(-values.max(0), kind="stable")[:MAX_LINES].tolist())
    return [t for t, _ in points], {label: values[:, label].tolist() for label in chosen}


def probability_chart(frames: Sequence[Frame], image: int | None, names: Sequence[str], highest: float) -> Image.Image:
    """Return a chart of the classifier's probability of each label over t, from noise on the left to the image.

    image: number of the image; None for the mean of all
    highest: timestep of pure noise
    """
    figure = new_figure(9, 2.9)
    figure.set_layout_engine("none")  # the layout engine takes longer than drawing
    axes = figure.add_axes((0.07, 0.17, 0.71, 0.78))
    times, lines = probability_lines(frames, image)
    for label, values in lines.items():
        axes.plot(times, values, label=names[label], linewidth=1.8, color=f"C{label % 10}",
                  marker="." if len(times) == 1 else None)  # fmt: skip
    axes.set(xlim=(highest, 0), ylim=(0, 1.02), xlabel="timestep t: noise → image", ylabel="p(label | x_t)")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), fontsize="small", frameon=False)
    return rendered(figure)


def log_chart(rows: Sequence[Mapping[str, str]]) -> Image.Image | None:
    """Return the curves of a training run, as in its curves.png; None if nothing is logged yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.png"
        plot_log(rows, path)
        if not path.exists():
            return None
        with Image.open(path) as image:
            return image.convert("RGB")


def rendered(figure: object) -> Image.Image:
    """Return a figure as an image."""
    canvas = figure.canvas  # type: ignore[attr-defined]
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
