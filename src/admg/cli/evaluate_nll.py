"""`admg evaluate nll`: the variational bound of real images, term by term."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from admg.checkpoints import presets
from admg.checkpoints.model import Model
from admg.evaluation.likelihood import BitsPerDim, Term, gather, terms
from admg.files import atomic, check_output_folder

from .measure import RealImages, add_image_arguments, device_of, open_images

BANDS = 10

EPILOG = """examples:
  admg evaluate nll --model fashion-mnist --data data/fashion-mnist --fit pad --num 100 --out nll
  admg evaluate nll --model openai/imagenet-64 --data imagenet/val --steps 250 --out nll.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="fashion-mnist", metavar="NAME", help="a name or a folder (default: fashion-mnist)")
    add("--data", required=True, metavar="PATH", help="a folder of images or IDX files, or an .npz, as for training")
    add_image_arguments(parser, num=1000)
    add("--unconditional", action="store_true", help="do not tell the model the labels of the data")
    add("--steps", metavar="SPEC", help="fewer steps, such as 250 or ddim50 (default: every step of the process)")
    add("--seed", type=int, default=0, help="of the noise; image i of a seed always has the same (default: 0)")
    add("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="fp32", help="of matrix products (default: fp32)")
    add("--out", metavar="PATH", help="a .json or .csv file, or a folder for both and a plot")


def run(args: argparse.Namespace) -> None:
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    model = presets.load(args.model).to(device_of(args.device))
    model = model.respace(args.steps) if args.steps else model
    told = model.conditional and not args.unconditional
    images = open_images(args, args.data, model.shape[0], model.shape[1], model.labels if told else None)
    if told and images.labels is None:
        raise ValueError(f"{args.data} has no labels to tell {args.model}: --unconditional leaves them out")
    if args.out:
        check_out(args.out)
    result = measure(model, images, args)
    about = {
        "model": args.model,
        "data": args.data,
        "images": len(result),
        "conditional": told,
        "steps": args.steps or len(model.diffusion),
        "seed": args.seed,
    }
    summary = Summary.of(result, model)
    print(summary.text(about))
    for path in write(summary, about, args.out) if args.out else []:
        print(path)


def measure(model: Model, images: RealImages, args: argparse.Namespace) -> BitsPerDim:
    parts: list[BitsPerDim] = []
    with tqdm(total=len(images) * len(model.diffusion), unit="evaluation", desc="bits per dim") as bar:
        for start in range(0, len(images), args.batch_size):
            chosen = slice(start, start + args.batch_size)
            x0, y = images.batch(chosen)
            steps = terms(model, x0, y, seed=args.seed, images=images.numbers[chosen], precision=args.precision)
            parts.append(gather(model, x0, counted(steps, bar)))
            total = torch.cat([part.total for part in parts]).mean()
            bar.set_postfix(bpd=f"{total:.3f}", images=start + len(x0))
    return BitsPerDim.join(parts)


def counted(steps: Iterable[Term], bar: tqdm) -> Iterator[Term]:
    for step in steps:
        yield step
        bar.update(len(step.vb))


@dataclass(frozen=True)
class Summary:
    """Means over the images. Of the totals a pair: the mean and its standard error; of the terms a list over t.

    timesteps: what the network was told at each step; alpha_bar: ᾱ_t; by_image: the total of each image
    """

    total: tuple[float, float]
    prior: tuple[float, float]
    vb: tuple[float, float]
    decoder: tuple[float, float]
    timesteps: list[float]
    alpha_bar: list[float]
    vb_by_t: list[float]
    x0_mse_by_t: list[float]
    mse_by_t: list[float]
    by_image: list[float]

    @classmethod
    def of(cls, result: BitsPerDim, model: Model) -> Summary:
        schedule = model.diffusion.schedule
        return cls(
            total=mean_and_error(result.total),
            prior=mean_and_error(result.prior),
            vb=mean_and_error(result.vb.double().sum(1)),
            decoder=mean_and_error(result.vb[:, 0]),
            timesteps=schedule.timesteps.tolist(),
            alpha_bar=schedule.alphas_cumprod.tolist(),
            vb_by_t=result.vb.double().mean(0).tolist(),
            x0_mse_by_t=result.x0_mse.double().mean(0).tolist(),
            mse_by_t=result.mse.double().mean(0).tolist(),
            by_image=result.total.tolist(),
        )

    def text(self, about: dict[str, Any]) -> str:
        lines = [
            f"{about['model']} on {about['images']} images of {about['data']}, {about['steps']} steps, "
            f"{'told the labels' if about['conditional'] else 'no labels'}, seed {about['seed']}",
            f"total      {shown(self.total)} bits per dimension",
            f"  vb       {shown(self.vb)}  sum over t, of which {self.decoder[0]:.4f} at t = 0",
            f"  prior    {shown(self.prior)}",
            "",
            f"{'steps':>11}  {'SNR (dB)':>15}  {'vb':>8}  {'x0 MSE':>8}  {'eps MSE':>8}",
        ]
        for band in bands(len(self.vb_by_t)):
            snr = [
                10 * math.log10(max(a, 1e-20) / (1 - a)) for a in (self.alpha_bar[band[0]], self.alpha_bar[band[-1]])
            ]
            vb = sum(self.vb_by_t[t] for t in band)
            x0_mse, mse = (sum(v[t] for t in band) / len(band) for v in (self.x0_mse_by_t, self.mse_by_t))
            span = f"{snr[0]:.1f} .. {snr[1]:.1f}"
            lines.append(f"{f'{band[0]}-{band[-1]}':>11}  {span:>15}  {vb:8.4f}  {x0_mse:8.5f}  {mse:8.5f}")
        return "\n".join([*lines, "(vb: the band's sum; the errors: its means)"])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (N,) and its standard error, nan for a single value."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def shown(pair: tuple[float, float]) -> str:
    """A single image has no standard error."""
    return f"{pair[0]:.4f}" + ("" if math.isnan(pair[1]) else f" ± {pair[1]:.4f}")


def bands(steps: int) -> list[range]:
    """All steps in order in at most ten bands of about the same number."""
    count = min(BANDS, steps)
    edges = [i * steps // count for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


# -- files -----------------------------------------------------------------------------------------------------------


def check_out(out: str) -> None:
    """ValueError or OSError if nothing can be written there."""
    path = Path(out)
    if path.suffix in (".json", ".csv"):
        check_output_folder(path.parent)
    elif path.suffix and not path.is_dir():
        raise ValueError(f"--out {out}: a file must end in .json or .csv; without an ending it is a folder")
    else:
        check_output_folder(path)


def write(summary: Summary, about: dict[str, Any], out: str) -> list[Path]:
    path = Path(out)
    if path.suffix not in (".json", ".csv") or path.is_dir():
        write_json(summary, about, path / "nll.json")
        write_csv(summary, path / "nll.csv")
        plot(summary, about, path / "nll.png")
        return [path / f"nll.{ending}" for ending in ("json", "csv", "png")]
    if path.suffix == ".json":
        write_json(summary, about, path)
    else:
        write_csv(summary, path)
    return [path]


def write_json(summary: Summary, about: dict[str, Any], path: Path) -> None:
    def pair(value: tuple[float, float]) -> dict[str, float | None]:
        return {"mean": value[0], "standard_error": None if math.isnan(value[1]) else value[1]}

    content = about | {
        "bits_per_dim": {name: pair(getattr(summary, name)) for name in ("total", "prior", "vb", "decoder")},
        "by_t": {
            "timestep": summary.timesteps,
            "vb": summary.vb_by_t,
            "xstart_mse": summary.x0_mse_by_t,
            "mse": summary.mse_by_t,
        },
        "total_by_image": summary.by_image,
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_csv(summary: Summary, path: Path) -> None:
    """A row per step."""
    columns = (summary.timesteps, summary.alpha_bar, summary.vb_by_t, summary.x0_mse_by_t, summary.mse_by_t)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "timestep", "alpha_bar", "vb", "xstart_mse", "mse"])
        writer.writerows([t, *row] for t, row in enumerate(zip(*columns)))


def plot(summary: Summary, about: dict[str, Any], path: Path) -> None:
    """The three terms over t, on a log scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{about['model']}: {shown(summary.total)} bits per dimension on {about['images']} images")
    panels = {"vb (bits per dim)": summary.vb_by_t, "x0 MSE": summary.x0_mse_by_t, "eps MSE": summary.mse_by_t}
    for i, (title, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 3, i + 1)
        axes.plot(values, linewidth=1)
        axes.set(title=title, xlabel="step t", yscale="log")
        axes.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
