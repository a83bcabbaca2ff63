"""`admg edit`: images changed towards labels, noised or encoded to a level and sampled from there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from admg.checkpoints.model import Labels
from admg.generation.contact_sheet import edit_sheet
from admg.generation.images import to_uint8

from . import beginnings, guides, stages, work
from .beginnings import FromImages
from .sample import labels_of, load_both
from .stages import Stage

EPILOG = """examples:
  admg edit --image shirt.png --label dress --strength 0.6 --out dress
  admg edit --image boots --label sneaker --label sandal --num 8 --scale 8 --sampler ddpm --steps 250 --out shoes
  admg edit --image shirt.png --invert --from-label shirt --label pullover --cfg 3 --out pullover

The less the strength, the more of the image stays. --invert encodes images by DDIM's inversion instead."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="fashion-mnist", metavar="NAME", help="a name or a folder (default: fashion-mnist)")
    text = "a picture, or a folder, .npz or IDX file of them; may be repeated"
    add("--image", action="append", required=True, metavar="IMAGE", help=text)
    add("--label", action="append", metavar="LABEL", help="name or number; may be repeated (default: none)")
    add("--num", type=int, metavar="N", help="edits of each image to each label (default: 4; 1 with --invert)")
    beginnings.add_beginning(parser)
    text = "begin with the encoded image, not with a noised one (then --steps is 100 by default, and --sampler ddim)"
    add("--invert", action="store_true", help=text)
    text = "what the model is told while it encodes, one for all images or for each (default: nothing)"
    add("--from-label", action="append", metavar="LABEL", help=text)
    stages.add_recipe(parser)
    guides.add_guides(parser, "of a published model its own, else 4; 0 without a classifier or a label")
    work.add_work(parser, "edits")


def run(args: argparse.Namespace) -> None:
    if args.num is not None and args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    if args.from_label and not args.invert:
        raise ValueError("--from-label is for --invert: noising an image asks for no label")
    if args.invert:
        args.sampler, args.steps = args.sampler or "ddim", args.steps or "100"
    if not args.label and args.scale is None:
        args.scale = 0.0
    strength, recipe, how = beginnings.strength_of(args), stages.recipe_of(args), work.work_of(args)
    model, guide = load_both(args)
    table, steered = labels_of(model, guide, recipe.unconditional)
    wanted = wanted_labels(args.label, table, steered)
    images, names = beginnings.load_images(args.image, model, args.fit)
    num = args.num or (1 if args.invert else 4)
    model.respace(recipe.steps)
    stage = Stage(
        out=Path(args.out), name=args.model, model=model, recipe=recipe, guide=guide, names=table,
        labels=[label for _ in names for label in wanted for _ in range(num)],
        chosen={"each": wanted, "edits": num}, batch_size=args.batch_size, compile=args.compile,
        begin=FromImages(
            images, [i for i in range(len(names)) for _ in range(len(wanted) * num)], strength, args.invert,
            from_labels(args.from_label, model.labels, len(names)),
        ),
        draw=edit_sheet(to_uint8(images), num),
    )  # fmt: skip
    stages.to_device(args.device, model, guide.classifier)
    stage.try_out()
    work.carry_out([stage], how)


def wanted_labels(asked: Sequence[str] | None, table: Labels, steered: bool) -> list[int | None]:
    """ValueError: unknown ones, or of no effect."""
    if not asked:
        return [None]
    if not steered or not table.count:
        why = "this model has no labels" if not table.count else "neither the model nor a guide is told labels"
        raise ValueError(f"--label: {why}")
    return [table.number(label) for label in asked]


def from_labels(asked: Sequence[str] | None, table: Labels, count: int) -> torch.Tensor | None:
    """One for each image. ValueError: unknown ones, or too many or few."""
    if not asked:
        return None
    if len(asked) not in (1, count):
        raise ValueError(f"--from-label is given {len(asked)} times for {count} images: once, or for each")
    numbers = [table.number(label) for label in asked]
    return torch.tensor(numbers * (count if len(numbers) == 1 else 1))
