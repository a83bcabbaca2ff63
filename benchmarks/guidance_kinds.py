"""Which guidance is best at equal cost: fidelity against diversity on Fashion-MNIST, a curve for each kind.

    python benchmarks/guidance_kinds.py --out runs/guidance-kinds

All kinds use one sampler, and as many of its steps as the budget pays: an evaluation of the denoiser costs 1, the
classifier's gradient its share of the denoiser's multiplications. Precision, recall and the distance to the test set
are measured in the judge's features (tests/judge). The samples of each setting are kept, so an interrupted command
continues, and --num may be raised later. Writes table.md and plot.png.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from judged import (
    Bench,
    Figures,
    add_common,
    checked,
    command,
    load_both,
    open_store,
    real_images,
    sampling,
    write_report,
)
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from admg import guidance
from admg.checkpoints.model import Classifier, Model
from admg.cli.main import Parser
from admg.files import atomic
from admg.generation.sampler_specs import find_sampler
from admg.guidance import Guide

LOW, HIGH = 0.3, 2.0  # of the noise levels that an interval keeps; half of the steps
GRADIENT, FREE, OTHER = "guided by a classifier", "classifier-free guidance", "others"
BAD = 0.1  # noise on the weights of autoguidance's bad model, as a share of each tensor's deviation


@dataclass(frozen=True)
class Kind:
    """family: the column of the plot; guide: of a scale; cost: of a step, in evaluations of the denoiser; told: the
    network is told the label too."""

    family: str
    name: str
    guide: Callable[[float], Guide | None]
    scales: tuple[float, ...]
    cost: float
    told: bool = True


@dataclass(frozen=True)
class Cell:
    key: str
    kind: Kind
    scale: float
    steps: int


def kinds_of(model: Model, classifier: Classifier) -> list[Kind]:
    gradient = 2 * multiplications(classifier.network) / multiplications(model.network)  # forwards, and back to x
    g, bad = guidance, worse(model)
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
        Kind(OTHER, "autoguidance", lambda s: g.AutoGuidance(bad, s), free, 2.0),
        Kind(OTHER, "classifier + classifier-free 1.5",
             lambda s: g.ClassifierFreeGuidance(1.5) + g.ClassifierGuidance(classifier, s),
             (0.5, 1.0, 2.0, 4.0), 2 + gradient),
    ]  # fmt: skip


def multiplications(network: torch.nn.Module) -> int:
    """Of one image forwards."""
    x, t = torch.zeros(1, 1, 32, 32, device=next(network.parameters()).device), torch.zeros(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t.to(x.device))
    return counter.get_total_flops()


def worse(model: Model) -> Model:
    """The model with noise on its weights, in place of an earlier checkpoint; the same noise each time."""
    bad, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in bad.network.parameters():
            if p.ndim > 1:
                p += BAD * p.std() * torch.randn(p.shape, generator=generator).to(p)
    return bad


def share(model: Model, low: float, high: float) -> float:
    """Of the steps, even in t, those with a noise level between low and high."""
    alpha_bar = model.diffusion.schedule.alpha_bar
    sigma = (1 / alpha_bar.clamp(min=1e-12) - 1).sqrt()
    return ((sigma >= low) & (sigma <= high)).double().mean().item()


def main(argv: list[str] | None = None) -> int:
    return command(run, parse(argv), "guidance_kinds")


def run(args: argparse.Namespace) -> None:
    checked(args)
    find_sampler(args.sampler)
    model, classifier = load_both(args)
    if not model.conditional:
        raise ValueError(f"model {args.model} takes no labels: most kinds of guidance need them")
    bench = Bench(real_images(args.data, model.shape[1], args.reference, args.num))
    store = open_store(args, model, classifier)
    cells = cells_of(args, kinds_of(model, classifier))
    rows: dict[Cell, Figures] = {}
    for i, cell in enumerate(cells, 1):
        tqdm.write(f"[{i}/{len(cells)}] {cell.kind.name}, scale {cell.scale:g}, {args.sampler} {cell.steps}")
        guide = cell.kind.guide(cell.scale)
        make = sampling(model, args, guide=guide, sampler=args.sampler, steps=cell.steps, told=cell.kind.told)
        rows[cell] = bench(store.fill(cell.key, args.num, args.batch_size, make).images)
    plot(rows, bench.real, store.folder / "plot.png")
    write_report(store, markdown(args, rows, bench.real))


def cells_of(args: argparse.Namespace, kinds: list[Kind]) -> list[Cell]:
    if args.kinds:
        unknown = [name for name in args.kinds if name not in {kind.name for kind in kinds}]
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}: {'; '.join(kind.name for kind in kinds)}")
        kinds = [kind for kind in kinds if kind.name in args.kinds]
    cells = []
    for kind in kinds:
        steps = max(2, round(args.budget / kind.cost))
        words = kind.name.replace("*", "star").replace("+", "plus").replace(",", "").replace(" ", "-")
        cells += [Cell(f"{words}-{scale:g}-{args.sampler}-{steps}", kind, scale, steps) for scale in kind.scales]
    return cells


def markdown(args: argparse.Namespace, rows: dict[Cell, Figures], real: Figures) -> str:
    titles = ["guidance", "scale", "steps", "wanted garment (95 %)", "distance", "precision", "recall", "F1"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    lines += [[cell.kind.name, f"{cell.scale:g}", str(cell.steps), *shown(f)] for cell, f in rows.items()]
    lines += [["real images", "", "", *shown(real)]]
    error = np.median([f.error for f in rows.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (
        f"\n\n{args.num} samples a row, equally many of each label, the same noise in each; {args.sampler}, with as "
        f"many steps as {args.budget:g} evaluations of the denoiser pay. Wanted garment: the share that the judge takes"
        f" for the one asked for. Distance: KID x 1000 in the judge's features to {args.reference} test images, of "
        f"standard error about {error:.1f}. Precision, recall (k = 3): in those features too, of {args.num} samples "
        f"against {args.reference} test images; F1 is their harmonic mean. Intervals are of noise levels {LOW:g} to "
        f"{HIGH:g}. The bad model of autoguidance is the model itself with {BAD:.0%} noise on its weights.\n"
    )


def shown(f: Figures) -> list[str]:
    share = f"{100 * f.accuracy:.0f} % ({100 * f.low:.0f}–{100 * f.high:.0f})"
    return [share, f"{f.distance:.1f}", f"{f.precision:.2f}", f"{f.recall:.2f}", f"{f1(f):.2f}"]


def f1(f: Figures) -> float:
    return 2 * f.precision * f.recall / max(1e-12, f.precision + f.recall)


def plot(rows: dict[Cell, Figures], real: Figures, path: Path) -> None:
    """A column for each family, its kinds in colour before all the others; a row for each view of the trade."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = [
        ("recall", "precision", "diversity: recall", "fidelity: precision"),
        ("accuracy", "distance", "wanted garment", "distance (KID x 1000)"),
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
            for kind in sorted(kinds, key=lambda kind: kind.family == family):  # those in colour lie above
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
                axes.set_xlim(0.8, 1.01)  # what is worse than that is in the table
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
    parser.add_argument("--out", default="runs/guidance-kinds", metavar="DIR", help="folder of results; continued")
    parser.add_argument("--sampler", default="ddim", help="of all kinds")
    parser.add_argument("--budget", type=float, default=20.0, metavar="X", help="evaluations of the denoiser a sample")
    parser.add_argument("--kinds", type=lambda s: s.split(";"), metavar="A;B", help="these alone (default: all)")
    parser.add_argument("--num", type=int, default=100, metavar="N", help="samples a row")
    add_common(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
