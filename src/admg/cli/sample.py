"""`admg sample`: images of the labels that are asked for."""

from __future__ import annotations

import argparse
import functools
import re
from pathlib import Path

import numpy as np
import torch

from .. import guidance, presets, samplers
from ..files import atomic, check_output_folder
from ..model import Classifier, Model
from ..pictures import save_png, sheet, to_pil
from ..sampling import SAMPLERS, Samples, cycle_labels, sample

EPILOG = """examples:
  admg sample --label sneaker --label 9 --scale 4 --num 32 --out sneakers
  admg sample --label coat --sheet scale=0,1,2,4,8 --num 6 --unconditional --out coats"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="fashion-mnist", metavar="NAME", help="a name or a folder (default: fashion-mnist)")
    add("--classifier", metavar="NAME", help="guides the sampling; a name or a folder (default: the model's own)")
    add("--label", action="append", metavar="LABEL", help="name or number; may be repeated (default: every label)")
    add("--num", type=int, metavar="N", help="images in all, in equal shares of the labels (default: 8 for each)")
    add("--scale", type=float, metavar="S", help="guidance scale; 0: none (default: 4, or 0 without a classifier)")
    add("--sheet", metavar="scale=A,B,...", help="draw the same seeds over these guidance scales, and nothing else")
    add("--unconditional", action="store_true", help="do not tell the model the label: the classifier alone steers")
    add("--sampler", choices=sorted(SAMPLERS), default="ddim", help="(default: ddim)")
    add("--steps", default="25", help="a number, ddimN, or counts per section such as 10,15,20 (default: 25)")
    add("--eta", type=float, default=0.0, help="of ddim: 0 is deterministic, 1 as random as ddpm (default: 0)")
    add("--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)")
    add("--batch-size", type=int, metavar="N", help="images at a time (default: up to 64)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="fp32", help="of matrix products (default: fp32)")
    add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")
    add("--out", default="samples", metavar="DIR", help="folder for the pictures (default: samples)")


def run(args: argparse.Namespace) -> None:
    scales = parse_sheet(args.sheet) if args.sheet else None
    if args.num is not None and args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if not 0 <= args.eta <= 1:
        raise ValueError(f"--eta must be in [0, 1], got {args.eta}")
    if args.eta and args.sampler != "ddim":
        raise ValueError(f"--eta is of the sampler ddim, not of {args.sampler}")
    model, classifier, scale = load_both(args, scales)
    table = model.labels if model.labels.count or classifier is None else classifier.labels
    labels = [table.number(label) for label in args.label] if args.label else list(range(table.count))
    wanted = cycle_labels(labels, args.num or 8 * max(1, len(labels))) if labels else [None] * (args.num or 8)
    options = {
        "sampler": functools.partial(samplers.ddim, eta=args.eta) if args.sampler == "ddim" else args.sampler,
        "steps": args.steps,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "y": None if args.unconditional else "labels",
    }
    model.respace(args.steps)  # bad input must show before anything is written
    guides = [guide(classifier, s) for s in scales or [scale]]
    out = check_output_folder(args.out)
    what = f"{args.model}, {args.sampler} {args.steps}, seed {args.seed}"
    if scales:
        columns = [sample(model, wanted, guide=g, **options) for g in guides]
        save_png(scale_sheet(columns, scales, what), out / "scale-sheet.png")
        print(out / "scale-sheet.png")
        return
    samples = sample(model, wanted, guide=guides[0], **options)
    write(samples, out, f"{what}, scale {scale:g}")
    print(f"{len(samples.x)} images: {out / 'sheet.png'}   {out / 'images'}   {out / 'samples.npz'}")


def load_both(args: argparse.Namespace, scales: list[float] | None) -> tuple[Model, Classifier | None, float]:
    """The model, its classifier if guidance needs one, and the scale."""
    model = presets.load(args.model)
    has_own = args.model in presets.names()
    scale = args.scale if args.scale is not None else 4.0 if args.classifier or has_own else 0.0
    classifier = None
    if scales or scale:
        if not args.classifier and not has_own:
            raise ValueError(f"guidance needs --classifier: {args.model} comes without one")
        classifier = presets.load_classifier(args.classifier or args.model)
        if model.labels.count and classifier.labels.count != model.labels.count:
            raise ValueError(f"the classifier has {classifier.labels.count} labels, the model {model.labels.count}")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device), classifier and classifier.to(device), scale
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def guide(classifier: Classifier | None, scale: float) -> guidance.Classifier | None:
    return guidance.Classifier(classifier, scale) if classifier else None


def parse_sheet(text: str) -> list[float]:
    """`scale=0,1,2` as numbers."""
    name, _, values = text.partition("=")
    try:
        scales = [float(value) for value in values.split(",")]
    except ValueError:
        scales = []
    if name != "scale" or not scales:
        raise ValueError(f"--sheet must be scale= and numbers, such as scale=0,1,2,4,8, not {text!r}")
    return scales


def write(samples: Samples, out: Path, title: str) -> None:
    """sheet.png, samples.npz as the published evaluator reads it, and images/, which training reads with its labels."""
    images, names = samples.images, samples.label_names
    rows = [[image for image, n in zip(images, names) if n == name] for name in dict.fromkeys(names)]
    if len(rows) == 1:  # one label: fill a square rather than a line
        side = max(1, round(len(images) ** 0.5))
        picture = sheet(
            [rows[0][i : i + side] for i in range(0, len(images), side)], title=f"{names[0]} {title}".strip()
        )
    else:
        picture = sheet(rows, row_titles=list(dict.fromkeys(names)), title=title)
    save_png(picture, out / "sheet.png")
    with atomic(out / "samples.npz") as temporary:
        np.savez(temporary, arr_0=images, arr_1=samples.labels.numpy())
    with atomic(out / "images") as folder:
        folder.mkdir()
        for i, (image, name) in enumerate(zip(images, names)):
            to_pil(image).save(folder / f"{file_name(name)}_{i:06d}.png")


def file_name(label: str) -> str:
    """The label without what a file name cannot hold, nor the underscore that ends it."""
    return re.sub(r"[^\w.-]|_", "-", label) or "sample"


def scale_sheet(columns: list[Samples], scales: list[float], title: str):
    """Columns: the guidance scale; rows: the seed's images."""
    rows = [[column.images[i] for column in columns] for i in range(len(columns[0].x))]
    titles = [f"scale {scale:g}" if scale else "unguided" for scale in scales]
    return sheet(rows, row_titles=columns[0].label_names, column_titles=titles, title=title, cell=96)
