"""`admg upsample`: samples made larger by an upsampling model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from admg.checkpoints import presets
from admg.checkpoints.model import Labels, Model
from admg.engine.compiling import Compile
from admg.generation.sample import check_low_res
from admg.generation.shards import NpzImages

from . import guides, stages, work
from .guides import Guidance
from .stages import Recipe, Stage

EPILOG = """examples:
  admg upsample --model openai/imagenet-64-to-256 --base samples/samples_1000x64x64x3.npz --out large
  admg upsample --model openai/imagenet-64-to-256 --base samples.npz --sampler ddpm --steps 250 --num 16 --out few

The paper's best figures are of 250 steps of ddpm; the default, 25 of ddim, is ten times as fast."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="an upsampling model: a name, a folder or a .pt file")
    add("--base", required=True, metavar="FILE", help=".npz of the small images: arr_0, and their labels, arr_1")
    add("--num", type=int, metavar="N", help="only the first N of them (default: all)")
    stages.add_recipe(parser)
    guides.add_guides(parser, "4 with --classifier, else 0")
    work.add_work(parser, "upsampled")


def run(args: argparse.Namespace) -> None:
    if args.num is not None and args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    recipe, how = stages.recipe_of(args), work.work_of(args)
    base = NpzImages(args.base)
    if args.num is not None and args.num > len(base):
        raise ValueError(f"--num {args.num}: {args.base} has {len(base)} images")
    model = load_upsampler(args.model, base.shape[1:], args.base)
    guide = guides.load_guidance(args, model, 4.0 if args.classifier else 0.0)
    table = model.labels if model.labels.count or guide.classifier is None else guide.classifier.labels
    labels = base_labels(base, table, args.num)
    stage = upsampling(
        args.model, model, recipe, labels, table, Path(args.base), f"{Path(args.base).name}, checksum {base.crc:08x}",
        out=Path(args.out), guide=guide, batch_size=args.batch_size, compile=args.compile,
        instead="--unconditional does without",
    )  # fmt: skip
    stages.to_device(args.device, model, guide.classifier)
    stage.try_out()
    work.carry_out([stage], how)


def load_upsampler(name: str, small: tuple[int, ...], source: str) -> Model:
    """The upsampling model. ValueError: it is not one, or the images of `source` (H, W, C) are not what it enlarges."""
    model = presets.load_upsampler(name)
    if not model.upsamples:
        raise ValueError(f"{name} makes images from noise: use admg sample")
    height, width, channels = small
    try:
        check_low_res(model, torch.empty(1, channels, height, width, device="meta"), 1)
    except ValueError:
        side = getattr(model.network.config, "small_size", 0)
        allowed = f"of {side}x{side}" if side else f"below {model.shape[1]}x{model.shape[2]}"
        raise ValueError(
            f"{source} has images of {height}x{width} pixels and {channels} channels: "
            f"{name} upsamples images {allowed} pixels and {model.shape[0]} channels"
        ) from None
    return model


def base_labels(base: NpzImages, table: Labels, num: int | None) -> list[int | None]:
    """The label of each image, None where there is none. ValueError: one that the model does not have."""
    num = num or len(base)
    if base.labels is None:
        return [None] * num
    labels = base.labels[:num]
    if table.count and labels.max() >= table.count:
        raise ValueError(f"{base.path} has a label {labels.max()} in arr_1: the model's are 0 to {table.count - 1}")
    return [None if label < 0 else label for label in labels.tolist()]


def upsampling(
    name: str,
    model: Model,
    recipe: Recipe,
    labels: list[int | None],
    names: Labels,
    base: Path,
    origin: Any,
    *,
    out: Path,
    guide: Guidance,
    batch_size: int | None,
    compile: Compile,
    instead: str,
) -> Stage:
    """The stage that makes the images of `base` larger, told the same labels.

    instead: what can be done where images lack the labels that the model needs
    ValueError: a model that needs labels, where images have none; an unknown respacing.
    """
    if model.conditional and not recipe.unconditional and None in labels:
        raise ValueError(f"{name} needs a label for each base image ({instead})")
    if guide.classifier and None in labels:
        raise ValueError("guidance needs a label for each base image")
    model.respace(recipe.steps)  # bad input must show before anything is written
    guide()
    return Stage(
        out=out, name=name, model=model, recipe=recipe, guide=guide, labels=labels, names=names, chosen="of the base",
        batch_size=batch_size, compile=compile, base=base, origin=origin,
    )  # fmt: skip
