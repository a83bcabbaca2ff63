"""Compare samplers at 5 to 250 steps on Fashion-MNIST, with classifier guidance and classifier-free guidance.

    python benchmarks/fewer_steps.py --out runs/fewer-steps

The label classifier of the tests (tests/label_classifier) provides two metrics: the share of samples that it assigns to
the target label, and the distance between the samples and the test set in its features. The samples of each setting are
stored, so an interrupted command can continue, and --num can be raised later. Writes table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from labelled import (
    CLASSES,
    Bench,
    Metrics,
    add_common,
    check_common,
    command,
    load_both,
    numbers,
    open_store,
    real_images,
    sampling,
    write_report,
)
from tqdm import tqdm

import admg
from admg import guidance
from admg.checkpoints.model import Classifier
from admg.cli.options import Parser
from admg.files import atomic
from admg.generation.sampler_specs import find_sampler

SPACING = {"ddpm": "", "ddim": "", "heun": "karras", "dpmpp_2m": "karras", "dpmpp_2m_sde": "karras",
           "dpmpp_3m": "logsnr", "unipc": "karras"}  # fmt: skip
"""Step spacing of each sampler: the one whose images after 10 and 20 steps are closest to those after many steps.

The empty string is the even spacing of guided-diffusion.
"""
NAMES = {"ddpm": "DDPM", "ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPM-Solver++ 2M",
         "dpmpp_2m_sde": "DPM-Solver++ 2M SDE", "dpmpp_3m": "DPM-Solver++ 3M", "unipc": "UniPC"}  # fmt: skip
REFERENCE = ("ddpm", 250)


@dataclass(frozen=True)
class Cell:
    """One setting.

    guide: a key of guides()
    """

    guide: str
    sampler: str
    steps: int

    @property
    def key(self) -> str:
        """Name of the setting in the store."""
        return f"{self.guide}-{self.sampler}-{SPACING.get(self.sampler, '')}{self.steps}"

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample, without those of the guide. Heun needs two per step, except for the last."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps

    def num(self, num: int) -> int:
        """Return the number of samples: `num`, or fewer for more than 25 steps, except for DDPM with 250 steps."""
        few = self.steps <= 25 or (self.sampler, self.steps) == REFERENCE
        return num if few else max(CLASSES * 2, num // 10, 20 * num // self.steps) // CLASSES * CLASSES


def guides(classifier: Classifier) -> dict[str, tuple[str, guidance.Guide]]:
    """Return the title and guide of both kinds of guidance, at scales that raise accuracy and keep the distance low."""
    return {
        "classifier": ("classifier guidance, scale 2", guidance.ClassifierGuidance(classifier, 2.0)),
        "cfg": ("classifier-free guidance, scale 2", guidance.ClassifierFreeGuidance(2.0)),
    }


def main(argv: list[str] | None = None) -> int:
    return command(run, parse(argv), "fewer_steps")


def run(args: argparse.Namespace) -> None:
    check(args)
    model, classifier = load_both(args)
    if not model.conditional:
        raise ValueError(f"model {args.model} is unconditional: classifier-free guidance needs a conditional model")
    bench = Bench(real_images(args.data, model.shape[1], args.reference, args.num))
    store = open_store(args, model, classifier)
    kinds = guides(classifier)
    cells = list(cells_of(args, kinds))
    rows: dict[Cell, Metrics] = {}
    for i, cell in enumerate(cells, 1):
        tqdm.write(f"[{i}/{len(cells)}] {kinds[cell.guide][0]}: {NAMES.get(cell.sampler, cell.sampler)} {cell.steps}")
        steps = f"{SPACING.get(cell.sampler, '')}{cell.steps}"
        make = sampling(model, args, guide=kinds[cell.guide][1], sampler=cell.sampler, steps=steps)
        stored = store.fill(cell.key, cell.num(args.num), args.batch_size, make)
        rows[cell] = bench(stored.images)
    titles = {kind: title for kind, (title, _) in kinds.items()}
    plot(rows, bench.real, titles, store.folder / "plot.png")
    write_report(store, markdown(rows, bench.real, titles))


def markdown(rows: dict[Cell, Metrics], real: Metrics, titles: dict[str, str]) -> str:
    """Return a Markdown table for each kind of guidance, with a row per sampler and a column per number of steps."""
    parts = []
    for kind, title in titles.items():
        of_kind = {cell: f for cell, f in rows.items() if cell.guide == kind}
        steps = sorted({cell.steps for cell in of_kind})
        lines = [["accuracy in %, distance", *map(str, steps)], ["---", *["---:"] * len(steps)]]
        for sampler in dict.fromkeys(cell.sampler for cell in of_kind):
            cells = [of_kind.get(Cell(kind, sampler, n)) for n in steps]
            name = NAMES.get(sampler, sampler) + (f" ({SPACING[sampler]})" if SPACING.get(sampler) else "")
            lines.append([name, *("" if f is None else f"{100 * f.accuracy:.0f}, {f.distance:.1f}" for f in cells)])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{table}\n\n{verdict(of_kind)}")
    counts = dict.fromkeys((cell.steps, f.num) for cell, f in rows.items() if (cell.sampler, cell.steps) != REFERENCE)
    few = ", ".join(f"{num} at {steps} steps" for steps, num in sorted(counts) if steps > 25)
    nums = sorted({f.num for f in rows.values()}, reverse=True)
    errors = {num: np.median([f.error for f in rows.values() if f.num == num]) for num in nums}
    known = ", ".join(f"{error:.1f} for {num} samples" for num, error in errors.items() if np.isfinite(error))
    unknown = ", ".join(f"larger for {num} samples" for num, error in errors.items() if not np.isfinite(error))
    most = nums[0]
    notes = (
        f"{most} samples per cell{few and f' ({few})'}, in equal shares of the labels and with the same noise. "
        f"Accuracy: fraction of the samples that the label classifier assigns to the target label. Distance: KID x "
        f"1000 to the test images in the label classifier's features. KID is unbiased and can therefore be negative; "
        f"its standard error is about {known}{unknown and f', and {unknown}'}. {real.num} real images have "
        f"{100 * real.accuracy:.0f}, {real.distance:.1f}. Heun evaluates the network twice per step. The "
        f"spacing of the steps is in brackets.\n"
    )
    return "\n\n".join([*parts, notes])


def verdict(rows: dict[Cell, Metrics]) -> str:
    """Return a sentence on the samplers that match DDPM with 250 steps in both metrics within 20 evaluations."""
    reference = next(f for cell, f in rows.items() if (cell.sampler, cell.steps) == REFERENCE)
    good: dict[str, tuple[Cell, Metrics]] = {}
    for cell, f in sorted(rows.items(), key=lambda row: row[0].evaluations):
        if cell.evaluations <= 20 and f.accuracy >= reference.accuracy and f.distance <= reference.distance:
            good.setdefault(NAMES.get(cell.sampler, cell.sampler), (cell, f))
    shown = [f"{name} {cell.steps} ({100 * f.accuracy:.0f}, {f.distance:.1f})" for name, (cell, f) in good.items()]
    of_reference = f"{100 * reference.accuracy:.0f} % ({100 * reference.low:.0f}–{100 * reference.high:.0f})"
    at = f"{of_reference}, {reference.distance:.1f} ± {reference.error:.1f}"
    return (
        f"Smallest number of evaluations, up to 20, that matches DDPM with 250 steps ({at}) in both metrics: "
        f"{', '.join(shown) or 'none'}."
    )


def plot(rows: dict[Cell, Metrics], real: Metrics, titles: dict[str, str], path: Path) -> None:
    """Plot accuracy and distance over the network evaluations, with a row of panels for each kind of guidance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4 * len(titles)), layout="constrained")
    FigureCanvasAgg(figure)
    ticks = sorted({cell.steps for cell in rows})
    for i, (kind, title) in enumerate(titles.items()):
        for j, (name, unit) in enumerate({"accuracy": 100.0, "distance": 1.0}.items()):
            axes = figure.add_subplot(len(titles), 2, 2 * i + j + 1)
            for number, sampler in enumerate(NAMES):
                line = sorted((c.evaluations, unit * getattr(f, name)) for c, f in rows.items()
                              if (c.guide, c.sampler) == (kind, sampler))  # fmt: skip
                if line:
                    axes.plot(*zip(*line), marker="o", markersize=4, color=f"C{number}", label=NAMES[sampler])
            axes.axhline(unit * getattr(real, name), color="grey", linestyle=":", linewidth=1, label="real images")
            metric = "accuracy in %" if name == "accuracy" else "distance (KID x 1000)"
            axes.set(title=f"{title}: {metric}", xscale="log", xlabel="network evaluations")
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            if name == "distance":
                axes.set_yscale("symlog", linthresh=10)
            if i + j == 0:
                axes.legend(fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100)


def cells_of(args: argparse.Namespace, kinds: dict) -> Iterator[Cell]:
    """Yield all settings in order of their steps, so that the fastest come first, and DDPM with 250 steps."""
    settings = [(sampler, int(steps)) for steps in sorted(args.steps) for sampler in args.samplers]
    for sampler, steps in dict.fromkeys([*settings, REFERENCE]):
        for kind in kinds:
            yield Cell(kind, sampler, steps)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="fewer_steps",
        description="Accuracy and distance of guided Fashion-MNIST samples, by sampler and number of steps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", default="runs/fewer-steps", metavar="DIR", help="output folder; an existing one is continued"
    )
    parser.add_argument(
        "--samplers", type=lambda s: s.split(","), default=",".join(SPACING), metavar="A,B,...", help="samplers"
    )
    parser.add_argument(
        "--steps",
        type=numbers,
        default="5,10,15,20,25,50,100,250",
        help="numbers of steps; DDPM with 250 steps is always added",
    )
    parser.add_argument("--num", type=int, default=100, metavar="N", help="samples per setting; fewer above 25 steps")
    add_common(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for bad options that would otherwise fail only after minutes of sampling."""
    check_common(args)
    schedule = admg.NoiseSchedule.linear()
    for sampler in args.samplers:
        find_sampler(sampler)
        for steps in args.steps:
            schedule.respace(f"{SPACING.get(sampler, '')}{steps:g}")


if __name__ == "__main__":
    sys.exit(main())
