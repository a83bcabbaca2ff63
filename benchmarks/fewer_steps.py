"""How few steps do: each sampler at 5 to 250 steps on Fashion-MNIST, with classifier guidance and classifier-free.

    python benchmarks/fewer_steps.py --out runs/fewer-steps

Two measures by the judge (tests/judge): the share of samples that show the garment asked for, and the distance of all
samples to the test set in its features. The samples of each setting are kept, so an interrupted command continues,
and --num may be raised later. Writes table.md and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from judged import (
    CLASSES,
    Bench,
    Figures,
    add_common,
    checked,
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
from admg.cli.main import Parser
from admg.files import atomic
from admg.generation.sampler_specs import find_sampler

SPACING = {"ddpm": "", "ddim": "", "heun": "karras", "dpmpp_2m": "karras", "dpmpp_2m_sde": "karras",
           "dpmpp_3m": "logsnr", "unipc": "karras"}  # fmt: skip
"""Of each sampler that whose image after 10 and 20 steps was nearest to the end of many; "" is the reference's."""
NAMES = {"ddpm": "DDPM", "ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPM-Solver++ 2M",
         "dpmpp_2m_sde": "DPM-Solver++ 2M SDE", "dpmpp_3m": "DPM-Solver++ 3M", "unipc": "UniPC"}  # fmt: skip
REFERENCE = ("ddpm", 250)


@dataclass(frozen=True)
class Cell:
    """One setting. guide: a key of guides()."""

    guide: str
    sampler: str
    steps: int

    @property
    def key(self) -> str:
        return f"{self.guide}-{self.sampler}-{SPACING.get(self.sampler, '')}{self.steps}"

    @property
    def evaluations(self) -> int:
        """Of the network (and the classifier, or the network untold), a sample: Heun asks twice but for the last."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps

    def num(self, num: int) -> int:
        """Fewer samples where there are many steps, but for the reference."""
        few = self.steps <= 25 or (self.sampler, self.steps) == REFERENCE
        return num if few else max(CLASSES * 2, num // 10, 20 * num // self.steps) // CLASSES * CLASSES


def guides(classifier: Classifier) -> dict[str, tuple[str, guidance.Guide]]:
    """The conditional network with either kind of guidance, of scales that gain accuracy and keep the distance low."""
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
        raise ValueError(f"model {args.model} takes no labels: it cannot be guided without a classifier")
    bench = Bench(real_images(args.data, model.shape[1], args.reference, args.num))
    store = open_store(args, model, classifier)
    kinds = guides(classifier)
    cells = list(cells_of(args, kinds))
    rows: dict[Cell, Figures] = {}
    for i, cell in enumerate(cells, 1):
        tqdm.write(f"[{i}/{len(cells)}] {kinds[cell.guide][0]}: {NAMES.get(cell.sampler, cell.sampler)} {cell.steps}")
        steps = f"{SPACING.get(cell.sampler, '')}{cell.steps}"
        make = sampling(model, args, guide=kinds[cell.guide][1], sampler=cell.sampler, steps=steps)
        made = store.fill(cell.key, cell.num(args.num), args.batch_size, make)
        rows[cell] = bench(made.images)
    titles = {kind: title for kind, (title, _) in kinds.items()}
    plot(rows, bench.real, titles, store.folder / "plot.png")
    write_report(store, markdown(rows, bench.real, titles))


def markdown(rows: dict[Cell, Figures], real: Figures, titles: dict[str, str]) -> str:
    """A table for each guidance: a sampler in each row, the steps in the columns."""
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
    known = ", ".join(f"{error:.1f} at {num}" for num, error in errors.items() if np.isfinite(error))
    unknown = ", ".join(f"larger and not known at {num}" for num, error in errors.items() if not np.isfinite(error))
    most = nums[0]
    notes = (
        f"{most} samples a cell{few and f' ({few})'}, equally many of each label, the same noise in each. "
        f"Accuracy: the share that the judge takes for the garment asked for. Distance: KID x 1000 in the judge's "
        f"features to the test images, unbiased whatever the number of samples, and so below 0 at times; its standard "
        f"error is about {known}{unknown and f', {unknown}'}; cells of as many samples err alike. As many "
        f"real images: {100 * real.accuracy:.0f}, {real.distance:.1f}. Heun asks the network "
        f"twice a step. In brackets: the spacing of the steps.\n"
    )
    return "\n\n".join([*parts, notes])


def verdict(rows: dict[Cell, Figures]) -> str:
    """Who needs 20 steps or fewer for what DDPM does in 250, by both measures."""
    reference = next(f for cell, f in rows.items() if (cell.sampler, cell.steps) == REFERENCE)
    good: dict[str, tuple[Cell, Figures]] = {}
    for cell, f in sorted(rows.items(), key=lambda row: row[0].evaluations):
        if cell.evaluations <= 20 and f.accuracy >= reference.accuracy and f.distance <= reference.distance:
            good.setdefault(NAMES.get(cell.sampler, cell.sampler), (cell, f))
    shown = [f"{name} {cell.steps} ({100 * f.accuracy:.0f}, {f.distance:.1f})" for name, (cell, f) in good.items()]
    says = ", ".join(shown) or "none"
    of_reference = f"{100 * reference.accuracy:.0f} % ({100 * reference.low:.0f}–{100 * reference.high:.0f})"
    at = f"{of_reference}, {reference.distance:.1f} ± {reference.error:.1f}"
    return f"As good as DDPM at 250 ({at}) by both measures, and after how few steps, up to 20 evaluations: {says}."


def plot(rows: dict[Cell, Figures], real: Figures, titles: dict[str, str], path: Path) -> None:
    """A row of panels for each guidance: accuracy and distance over the evaluations of the network."""
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
            what = "wanted garment, %" if name == "accuracy" else "distance (KID x 1000)"
            axes.set(title=f"{title}: {what}", xscale="log", xlabel="evaluations of the network")
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
    """Few steps first, since they are soon done; and what all are compared with."""
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
    parser.add_argument("--out", default="runs/fewer-steps", metavar="DIR", help="folder of results; continued")
    parser.add_argument("--samplers", type=lambda s: s.split(","), default=",".join(SPACING), help="A,B,...")
    parser.add_argument(
        "--steps", type=numbers, default="5,10,15,20,25,50,100,250", help="numbers of steps; DDPM 250 is always there"
    )
    parser.add_argument("--num", type=int, default=100, metavar="N", help="samples a cell, fewer above 25 steps")
    add_common(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """ValueError for what would otherwise fail only after minutes of sampling."""
    checked(args)
    schedule = admg.NoiseSchedule.linear()
    for sampler in args.samplers:
        find_sampler(sampler)
        for steps in args.steps:
            schedule.respace(f"{SPACING.get(sampler, '')}{steps:g}")


if __name__ == "__main__":
    sys.exit(main())
