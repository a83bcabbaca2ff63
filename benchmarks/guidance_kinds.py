"""Compare all kinds of guidance at equal cost: fidelity and diversity of Fashion-MNIST samples.

    python benchmarks/guidance_kinds.py --out runs/guidance-kinds

All kinds use the same sampler. The number of steps is chosen so that every kind costs as much as --budget evaluations
of the denoiser; the cost of a classifier gradient is computed from its FLOPs. Precision, recall and the distance to the
test set use the features of the label classifier of the tests (tests/label_classifier). The samples of each setting are
stored, so an interrupted command can continue, and --num can be raised later. Writes table.md and plot.png.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from labelled import (
    Bench,
    Metrics,
    add_common,
    check_common,
    command,
    load_both,
    real_images,
    sampling,
    settings_of,
    write_report,
)
from store import Store, fingerprint
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import admg
from admg import guidance
from admg.checkpoints.model import Classifier, Model
from admg.cli.options import Parser
from admg.files import atomic
from admg.generation.sampler_specs import find_sampler
from admg.guidance import Guide

LOW, HIGH = 0.3, 2.0  # noise levels between which an interval guides; half of the steps
GRADIENT, FREE, OTHER = "guided by a classifier", "classifier-free guidance", "others"


@dataclass(frozen=True)
class Kind:
    """A kind of guidance.

    family: column of the plot; empty for one that is drawn in all columns
    name: name in the table and the legend
    guide: function from a guidance scale to a guide
    scales: guidance scales
    cost: cost of a step in evaluations of the denoiser
    conditional: whether the network is conditioned on the label too
    """

    family: str
    name: str
    guide: Callable[[float], Guide | None]
    scales: tuple[float, ...]
    cost: float
    conditional: bool = True


@dataclass(frozen=True)
class Cell:
    """One setting, with its name in the store."""

    key: str
    kind: Kind
    scale: float
    steps: int


def kinds_of(model: Model, classifier: Classifier, bad: Model) -> list[Kind]:
    """Return all kinds of guidance of this model and classifier. bad: the worse model of autoguidance"""
    gradient = 2 * flops(classifier.network) / flops(model.network)  # forward pass, and backward pass to x
    g, small = guidance, flops(bad.network) / flops(model.network)
    half = share(model, LOW, HIGH)
    free = (1.5, 2.0, 3.0, 5.0)
    return [
        Kind("", "no guidance", lambda s: None, (1.0,), 1.0),
        Kind(GRADIENT, "classifier alone", lambda s: g.ClassifierGuidance(classifier, s), (1.0, 4.0, 8.0, 16.0),
             1 + gradient, False),
        Kind(GRADIENT, "classifier",
             lambda s: g.ClassifierGuidance(classifier, s), (0.5, 1.0, 2.0, 4.0, 8.0), 1 + gradient),
        Kind(GRADIENT, "classifier, in an interval",
             lambda s: g.Interval(g.ClassifierGuidance(classifier, s), LOW, HIGH),
             (1.0, 2.0, 4.0, 8.0), 1 + half * gradient),
        Kind(GRADIENT, "classifier, entropy 1", lambda s: g.ExtendedClassifierGuidance(classifier, s, entropy=1.0),
             (1.0, 2.0, 4.0, 8.0), 1 + gradient),
        Kind(GRADIENT, "classifier, divergence 1",
             lambda s: g.ExtendedClassifierGuidance(classifier, s, divergence=g.Divergence(1.0)),
             (0.5, 1.0, 2.0, 4.0), 1 + gradient),
        Kind(FREE, "classifier-free", g.ClassifierFreeGuidance, free, 2.0),
        Kind(FREE, "classifier-free, in an interval", lambda s: g.Interval(g.ClassifierFreeGuidance(s), LOW, HIGH),
             (2.0, 3.0, 5.0, 8.0), 1 + half),
        Kind(FREE, "classifier-free, rescaled", lambda s: g.Rescaled(g.ClassifierFreeGuidance(s)), free, 2.0),
        Kind(FREE, "CFG++", g.CFGPlusPlus, (0.25, 0.5, 0.75, 1.0), 2.0),
        Kind(FREE, "APG", g.APG, (1.5, 2.0, 4.0, 8.0), 2.0),
        Kind(FREE, "CFG-Zero*", g.CFGZeroStar, free, 2.0),
        Kind(OTHER, "gradient-free",
             lambda s: g.GradientFreeGuidance(classifier, s), (2.0, 4.0, 8.0, 16.0), 2 + gradient / 2),
        Kind(OTHER, "perturbed attention", g.PerturbedAttentionGuidance, free, 2.0),
        Kind(OTHER, "autoguidance", lambda s: g.AutoGuidance(bad, s), free, 1 + small),
        Kind(OTHER, "classifier + classifier-free 1.5",
             lambda s: g.ClassifierFreeGuidance(1.5) + g.ClassifierGuidance(classifier, s),
             (0.5, 1.0, 2.0, 4.0), 2 + gradient),
    ]  # fmt: skip


def flops(network: torch.nn.Module) -> int:
    """Return the FLOPs of a forward pass for one image."""
    x, t = torch.zeros(1, 1, 32, 32, device=next(network.parameters()).device), torch.zeros(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t.to(x.device))
    return counter.get_total_flops()


def share(model: Model, low: float, high: float) -> float:
    """Return the share of evenly spaced steps whose noise level is between low and high."""
    alpha_bar = model.diffusion.schedule.alpha_bar
    sigma = (1 / alpha_bar.clamp(min=1e-12) - 1).sqrt()
    return ((sigma >= low) & (sigma <= high)).double().mean().item()


def main(argv: list[str] | None = None) -> int:
    return command(run, parse(argv), "guidance_kinds")


def run(args: argparse.Namespace) -> None:
    check_common(args)
    find_sampler(args.sampler)
    model, classifier = load_both(args)
    if not model.conditional:
        raise ValueError(f"model {args.model} is unconditional: most kinds of guidance need a conditional model")
    bench = Bench(real_images(args.data, model.shape[1], args.reference, args.num))
    bad = admg.load(args.bad).to(args.device)
    store = Store(args.out, settings_of(args, model, classifier) | {"bad": fingerprint(bad.network)})
    cells = cells_of(args, kinds_of(model, classifier, bad))
    rows: dict[Cell, Metrics] = {}
    for i, cell in enumerate(cells, 1):
        tqdm.write(f"[{i}/{len(cells)}] {cell.kind.name}, scale {cell.scale:g}, {args.sampler} {cell.steps}")
        guide = cell.kind.guide(cell.scale)
        make = sampling(
            model, args, guide=guide, sampler=args.sampler, steps=cell.steps, conditional=cell.kind.conditional
        )
        rows[cell] = bench(store.fill(cell.key, args.num, args.batch_size, make).images)
    plot(rows, bench.real, store.folder / "plot.png")
    write_report(store, markdown(args, rows, bench.real))


def cells_of(args: argparse.Namespace, kinds: list[Kind]) -> list[Cell]:
    """Return the settings of the chosen kinds. Raises ValueError if a name in --kinds is unknown."""
    if args.kinds:
        unknown = [name for name in args.kinds if name not in {kind.name for kind in kinds}]
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; the kinds are {'; '.join(kind.name for kind in kinds)}")
        kinds = [kind for kind in kinds if kind.name in args.kinds]
    cells = []
    for kind in kinds:
        steps = max(2, round(args.budget / kind.cost))
        words = kind.name.replace("*", "star").replace("+", "plus").replace(",", "").replace(" ", "-")
        cells += [Cell(f"{words}-{scale:g}-{args.sampler}-{steps}", kind, scale, steps) for scale in kind.scales]
    return cells


def markdown(args: argparse.Namespace, rows: dict[Cell, Metrics], real: Metrics) -> str:
    """Return the table and the explanation of its columns."""
    titles = ["guidance", "scale", "steps", "accuracy (95 %)", "distance", "precision", "recall", "F1"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    lines += [[cell.kind.name, f"{cell.scale:g}", str(cell.steps), *shown(f)] for cell, f in rows.items()]
    lines += [["real images", "", "", *shown(real)]]
    error = np.median([f.error for f in rows.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (
        f"\n\n{args.num} samples per row, in equal shares of the labels and with the same noise, by {args.sampler} "
        f"with the number of steps that costs as much as {args.budget:g} evaluations of the denoiser. Accuracy: "
        f"fraction of the samples that the label classifier assigns to the target label, with its 95 % confidence "
        f"interval. Distance: KID x 1000 to {args.reference} test images in the label classifier's features, with a "
        f"standard error of about {error:.1f}. Precision and recall (k = 3) use the same features, {args.num} samples "
        f"and {args.reference} test images; F1 is their harmonic mean. Intervals are noise levels {LOW:g} to {HIGH:g}. "
        f"The bad model of autoguidance is {args.bad}.\n"
    )


def shown(f: Metrics) -> list[str]:
    """Return the metrics as cells of the table."""
    share = f"{100 * f.accuracy:.0f} % ({100 * f.low:.0f}–{100 * f.high:.0f})"
    return [share, f"{f.distance:.1f}", f"{f.precision:.2f}", f"{f.recall:.2f}", f"{f1(f):.2f}"]


def f1(f: Metrics) -> float:
    """Return the harmonic mean of precision and recall."""
    return 2 * f.precision * f.recall / max(1e-12, f.precision + f.recall)


def plot(rows: dict[Cell, Metrics], real: Metrics, path: Path) -> None:
    """Plot the trade-off of fidelity and diversity: a column per family, with other kinds in grey; a row per view."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = [
        ("recall", "precision", "diversity: recall", "fidelity: precision"),
        ("accuracy", "distance", "accuracy", "distance (KID x 1000)"),
        ("scale", "distance", "guidance scale", "distance (KID x 1000)"),
    ]
    kinds = list(dict.fromkeys(cell.kind for cell in rows))
    families = list(dict.fromkeys(kind.family for kind in kinds if kind.family)) or [""]
    figure = Figure(figsize=(5.2 * len(families), 13), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(views), len(families), sharex="row", sharey="row", squeeze=False)
    for (x, y, x_title, y_title), line_of_panels in zip(views, panels):
        for family, axes in zip(families, line_of_panels):
            colours = itertools.cycle(f"C{i}" for i in range(10))
            for kind in sorted(kinds, key=lambda kind: kind.family == family):  # draws coloured lines last, on top
                of_kind = [(cell.scale if x == "scale" else getattr(f, x), getattr(f, y))
                           for cell, f in rows.items() if cell.kind == kind]  # fmt: skip
                if not kind.family:
                    if x != "scale":
                        axes.plot(*zip(*of_kind), "kD", markersize=7, label=kind.name, zorder=5)
                elif kind.family == family:
                    axes.plot(*zip(*of_kind), "-o", markersize=5, color=next(colours), label=kind.name)
                else:
                    axes.plot(*zip(*of_kind), "-", color="0.87", zorder=0)
            if x != "scale":
                axes.plot(getattr(real, x), getattr(real, y), "k*", markersize=12, label="real images", zorder=5)
            axes.set(xlabel=x_title)
            axes.grid(alpha=0.3)
            if y == "distance":
                axes.set_yscale("symlog", linthresh=10)
                axes.set_yticks([0, 5, 10, 20, 50], ["0", "5", "10", "20", "50"])
                axes.minorticks_off()
            if x == "accuracy":
                axes.set_xlim(0.8, 1.01)  # lower accuracies are only in the table
            if x == "scale":
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
            if axes is line_of_panels[0]:
                axes.set_ylabel(y_title)
    for family, axes in zip(families, panels[0]):
        axes.set_title(family)
        axes.legend(fontsize=8, loc="lower left")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=90)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="guidance_kinds",
        description="Fidelity and diversity of Fashion-MNIST samples by kind and scale of guidance, at equal cost.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", default="runs/guidance-kinds", metavar="DIR", help="output folder; an existing one is continued"
    )
    parser.add_argument("--sampler", default="ddim", help="sampler")
    parser.add_argument(
        "--budget", type=float, default=20.0, metavar="X", help="cost of a sample in evaluations of the denoiser"
    )
    parser.add_argument(
        "--kinds", type=lambda s: s.split(";"), metavar="A;B", help="kinds of guidance; all if not given"
    )
    parser.add_argument("--num", type=int, default=100, metavar="N", help="samples per setting")
    parser.add_argument("--bad", default="fashion-mnist-small", metavar="MODEL", help="bad model of autoguidance")
    add_common(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
