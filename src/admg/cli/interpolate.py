"""`admg interpolate`: images on the way from one image to another, or from one seed to another."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from admg.checkpoints.model import Model
from admg.generation.contact_sheet import interpolation_sheet
from admg.generation.edit import between, encode, seed_noise
from admg.generation.images import to_uint8

from . import beginnings, guides, stages, work
from .beginnings import FromNoise, checksum
from .edit import wanted_labels
from .sample import labels_of, load_both
from .stages import Recipe, Stage

EPILOG = """examples:
  admg interpolate --image a.png --image b.png --frames 8 --out way
  admg interpolate --seeds 0,1 --label sneaker --label "ankle boot" --frames 10 --scale 4 --out way

Images are encoded by DDIM's inversion, told the label, without guidance. With --scale 0, the default for images, the
first and the last frame are the images again, the nearer the more --steps there are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="fashion-mnist", metavar="NAME", help="a name or a folder (default: fashion-mnist)")
    ends = parser.add_mutually_exclusive_group(required=True)
    ends.add_argument("--image", action="append", metavar="IMAGE", help="a picture; give it twice")
    ends.add_argument("--seeds", metavar="A,B", help="two seeds, for image 0 of each")
    text = "name or number, of all frames; may be repeated, for a row each (default: none)"
    add("--label", action="append", metavar="LABEL", help=text)
    add("--frames", type=int, default=8, metavar="N", help="with both ends (default: 8)")
    add("--fit", choices=("resize", "pad"), help="as of admg edit")
    stages.add_recipe(parser, "ddim", "100")
    guides.add_guides(parser, "0 with images or without a label; else of a published model its own, or 4")
    work.add_work(parser, "way")


def run(args: argparse.Namespace) -> None:
    if args.scale is None and (args.image or not args.label):
        args.scale = 0.0
    if args.frames < 2:
        raise ValueError(f"--frames must be at least 2, got {args.frames}")
    if args.image and len(args.image) != 2:
        raise ValueError(f"interpolation is between two images: --image is given {len(args.image)} time(s)")
    recipe, how, seeds = stages.recipe_of(args), work.work_of(args), parse_seeds(args.seeds) if args.seeds else None
    model, guide = load_both(args)
    table, steered = labels_of(model, guide, recipe.unconditional)
    wanted = wanted_labels(args.label, table, steered)
    model.respace(recipe.steps)
    stages.to_device(args.device, model, guide.classifier)
    ends = None
    if seeds is None:
        ends, _ = beginnings.load_images(args.image, model, args.fit)
        if len(ends) != 2:
            raise ValueError(f"interpolation is between two images, and these hold {len(ends)}")
    begin = FromNoise(
        torch.cat([way(model, recipe, ends, seeds, label, args.frames) for label in wanted]),
        {"images": None if ends is None else checksum(ends), "seeds": seeds and [*seeds], "frames": args.frames},
    )
    stage = Stage(
        out=Path(args.out), name=args.model, model=model, recipe=recipe, guide=guide, names=table,
        labels=[label for label in wanted for _ in range(args.frames)], chosen=wanted,
        batch_size=args.batch_size, compile=args.compile, begin=begin,
        draw=interpolation_sheet(None if ends is None else to_uint8(ends), args.frames),
    )  # fmt: skip
    stage.try_out()
    work.carry_out([stage], how)


def way(
    model: Model,
    recipe: Recipe,
    ends: torch.Tensor | None,
    seeds: tuple[int, int] | None,
    label: int | None,
    frames: int,
) -> torch.Tensor:
    """x_T of each frame."""
    if ends is None:
        assert seeds is not None
        return between(seed_noise(model, seeds), frames)
    told = [label] * 2 if model.conditional and not recipe.unconditional and label is not None else None
    return between(encode(model, ends, told, steps=recipe.steps, seed=recipe.seed, precision=recipe.precision), frames)


def parse_seeds(text: str) -> tuple[int, int]:
    a, _, b = text.partition(",")
    if not (a.strip().isdecimal() and b.strip().isdecimal()):
        raise ValueError(f"--seeds must be two whole numbers such as 0,1, not {text!r}")
    return int(a), int(b)
