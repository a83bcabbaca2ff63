"""Measure accuracy and diversity of Fashion-MNIST samples over the scale of classifier guidance.

    python benchmarks/guidance_table.py --out runs/guidance-table

An independent label classifier (tests/label_classifier) classifies each sample; diversity, precision and recall use its
features. The metrics of each row are stored, so an interrupted command can continue. Writes table.md, plot.png,
results.json and contact sheets of the samples.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled import (
    CLASSES,
    LabelClassifier,
    add_common,
    check_common,
    check_recognised,
    check_samplers,
    command,
    load_both,
    numbers,
    real_images,
    samplers,
    settings_of,
)
from measures import precision_recall, wilson, within_class_distance
from tqdm import tqdm

import admg
from admg.cli.options import Parser
from admg.data import FASHION_MNIST_LABELS
from admg.files import atomic, check_output_folder
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png
from admg.generation.labels import cycle_labels

Metrics = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    conditional: whether the network is conditioned on the labels, besides the guidance of the classifier
    """

    sampler: str
    steps: str
    scale: float
    conditional: bool

    @property
    def line(self) -> str:
        """Name of the row without its guidance scale."""
        return f"{self.sampler.upper()} {self.steps}" + (", conditional" if self.conditional else "")

    @property
    def key(self) -> str:
        """Name of the row in the results."""
        return (
            f"{self.sampler}{self.steps}-{'conditional' if self.conditional else 'unconditional'}-scale{self.scale:g}"
        )


class Measure:
    """Computes metrics of images against reference images."""

    def __init__(self, classifier: LabelClassifier, reference: np.ndarray):
        self.classifier = classifier
        self.reference = classifier.features(reference)

    def __call__(self, images: np.ndarray, target: np.ndarray) -> Metrics:
        """Return the metrics of uint8 images (N, H, W, 1) with target labels (N,)."""
        predicted, features = self.classifier.predict(images), self.classifier.features(images)
        pixels = images.reshape(len(images), -1) / 127.5 - 1
        rms = math.sqrt(pixels.shape[1])  # turns a Euclidean distance into an RMS difference per pixel
        low, high = wilson(int((predicted == target).sum()), len(images))
        manifold = precision_recall(features, self.reference)
        # Diversity is measured within the predicted labels. Within a target label, unguided samples would seem the most
        # diverse, since they show all garments; that diversity is stored too, as "..._by_target".
        return {
            "accuracy": float((predicted == target).mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "pixel_diversity": within_class_distance(pixels, predicted) / rms,
            "feature_diversity": within_class_distance(features, predicted),
            "pixel_diversity_by_target": within_class_distance(pixels, target) / rms,
            "feature_diversity_by_target": within_class_distance(features, target),
            "precision": manifold.precision,
            "recall": manifold.recall,
        }


def main(argv: list[str] | None = None) -> int:
    return command(run, parse(argv), "guidance_table")


def run(args: argparse.Namespace) -> None:
    check(args)
    model, classifier = load_both(args)
    if args.conditional and not model.conditional:
        raise ValueError(f"--conditional: model {args.model} is unconditional")
    reference, real, real_labels = real_images(args.data, model.shape[1], args.reference, args.num)

    measure = Measure(LabelClassifier(), reference)
    out = check_output_folder(args.out)
    settings = settings_of(args, model, classifier) | {"num": args.num, "reference": args.reference}
    results = Results(out / "results.json", settings)
    if results.real is None:
        metrics = measure(real, real_labels)
        check_recognised(metrics["accuracy"])
        results.put_real(metrics)

    labels = cycle_labels(range(CLASSES), args.num)
    cells = list(cells_of(args))
    for i, cell in enumerate(cells, 1):
        tqdm.write(f"[{i}/{len(cells)}] {cell.line}, scale {cell.scale:g}" + (": already done" * (cell in results)))
        if cell in results:
            continue
        start = time.monotonic()
        samples = admg.sample(
            model,
            labels,
            guide=admg.guidance.ClassifierGuidance(classifier, scale=cell.scale),
            sampler=cell.sampler,
            steps=cell.steps,
            seed=args.seed,
            batch_size=args.batch_size,
            unconditional=not cell.conditional,
            precision=args.precision,
        )
        if not torch.isfinite(samples.x).all():
            raise ValueError(f"{cell.line}, scale {cell.scale:g}: the samples are not finite")
        seconds = time.monotonic() - start
        rows = [samples.images[k::CLASSES][:20] for k in range(CLASSES)]
        title = f"{cell.line}, guidance scale {cell.scale:g}"
        picture = sheet(rows, row_titles=FASHION_MNIST_LABELS, title=title, cell=32)
        save_png(picture, out / "samples" / f"{cell.key}.png")
        results.put(cell, measure(samples.images, samples.labels.numpy()) | {"seconds": seconds})

    text = markdown(results, cells)
    (out / "table.md").write_text(text, encoding="utf-8")
    plot(results, cells, out / "plot.png")
    print(f"\n{text}\n{out / 'table.md'}   {out / 'plot.png'}   {out / 'results.json'}   {out / 'samples'}")


class Results:
    """The metrics of all rows, in a JSON file that is updated after each row.

    Raises ValueError if the file was made with other settings or by another command.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.content: dict[str, Any] = {"settings": settings, "real": None, "cells": {}}
        if path.exists():
            try:
                self.content = json.loads(path.read_text(encoding="utf-8"))
                old = self.content["settings"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} was not written by this command: choose another --out") from None
            differing = [f"{k} was {old.get(k)}, is now {v}" for k, v in settings.items() if old.get(k) != v]
            if differing:
                raise ValueError(f"{path} was made with other settings ({'; '.join(differing)}): choose another --out")

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self.content["cells"]

    def __getitem__(self, cell: Cell) -> Metrics:
        return self.content["cells"][cell.key]

    @property
    def real(self) -> Metrics | None:
        return self.content["real"]

    def put_real(self, metrics: Metrics) -> None:
        self.content["real"] = metrics
        self._write()

    def put(self, cell: Cell, metrics: Metrics) -> None:
        self.content["cells"][cell.key] = metrics
        self._write()

    def _write(self) -> None:
        with atomic(self.path) as temporary:
            temporary.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


def cells_of(args: argparse.Namespace) -> Iterator[Cell]:
    """Yield the rows of the table in order."""
    for conditional in (False, True) if args.conditional else (False,):
        for sampler, steps in args.samplers:
            for scale in args.scales:
                yield Cell(sampler, steps, scale, conditional)


def markdown(results: Results, cells: list[Cell]) -> str:
    """Return the table and the explanation of its columns."""
    settings, real = results.content["settings"], results.real
    assert real is not None
    titles = (
        "sampler",
        "guidance scale",
        "accuracy (95 % interval)",
        "diversity: pixels",
        "features",
        "precision",
        "recall",
    )
    rows = [titles, ("---", *["---:"] * (len(titles) - 1))]
    rows += [(cell.line, f"{cell.scale:g}", *shown(results[cell])) for cell in cells]
    rows += [("real images", "", *shown(real))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + (
        f"\n\n{settings['num']} samples per row, equally many of each label; seed {settings['seed']}, "
        f"{settings['precision']}. Accuracy: share of the samples that the label classifier assigns to the target "
        f"label; chance is 10 %. Diversity: mean distance between two samples that it assigns to the same label, in "
        f"pixels (RMS, for values in [-1, 1]) and in its features. Precision and recall: k = 3, in its features, "
        f"against {settings['reference']} test images. Real images: {settings['num']} other test images.\n"
    )


def shown(metrics: Metrics) -> tuple[str, ...]:
    """Return the metrics as cells of the table."""
    share, low, high = (100 * metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    rest = (f"{metrics[n]:.2f}" for n in ("pixel_diversity", "feature_diversity", "precision", "recall"))
    return (f"{share:.1f} % ({low:.1f}–{high:.1f})", *rest)


def plot(results: Results, cells: list[Cell], path: Path) -> None:
    """Plot accuracy, diversity relative to that of real images, and precision and recall over the guidance scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    real = results.real
    assert real is not None
    panels: list[tuple[str, dict[str, str], Callable[[str], float]]] = [  # title, line styles, units
        ("accuracy", {"accuracy": "-"}, lambda name: 1.0),
        (
            "diversity within a label, relative to real images\n(features solid, pixels dashed)",
            {"feature_diversity": "-", "pixel_diversity": "--"},
            lambda name: real[name],
        ),
        ("recall (solid), precision (dashed)", {"recall": "-", "precision": "--"}, lambda name: 1.0),
    ]
    scales = sorted({cell.scale for cell in cells})
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, names, unit) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for number, line in enumerate(dict.fromkeys(cell.line for cell in cells)):
            of_line = [cell for cell in cells if cell.line == line]
            x = [scales.index(cell.scale) for cell in of_line]
            for name, style in names.items():
                y = [results[cell][name] / unit(name) for cell in of_line]
                label = line if style == "-" else None
                axes.plot(x, y, style, marker="o", markersize=4, color=f"C{number}", label=label)
            if "accuracy" in names:
                low, high = ([results[cell][f"accuracy_{end}"] for cell in of_line] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
        for name, style in names.items():
            label = "real images" if style == "-" else None
            axes.axhline(real[name] / unit(name), color="grey", linestyle=":", linewidth=1, label=label)
        axes.set(title=title, xlabel="guidance scale", xticks=range(len(scales)), ylim=(0, None if i == 1 else 1.03))
        axes.set_xticklabels([f"{scale:g}" for scale in scales])
        axes.grid(alpha=0.3)
        if i == 0:
            axes.legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="guidance_table",
        description="Accuracy, diversity, precision and recall of guided Fashion-MNIST samples, by guidance scale.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", default="runs/guidance-table", metavar="DIR", help="output folder; an existing one is continued"
    )
    parser.add_argument(
        "--samplers",
        type=samplers,
        default="ddpm:250,ddim:25",
        metavar="SAMPLER:STEPS,...",
        help="samplers with their steps",
    )
    parser.add_argument("--scales", type=numbers, default="0,0.5,1,2,4,8,16,32", help="guidance scales")
    parser.add_argument(
        "--conditional", action="store_true", help="add rows with the network conditioned on the labels"
    )
    parser.add_argument("--num", type=int, default=200, metavar="N", help="samples per row of the table")
    add_common(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for bad options that would otherwise fail only after minutes of sampling."""
    check_common(args)
    check_samplers(args.samplers, admg.NoiseSchedule.linear().respace)


if __name__ == "__main__":
    sys.exit(main())
