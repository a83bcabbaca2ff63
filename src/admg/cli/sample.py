"""`admg sample`: images of the labels that are asked for, and larger ones if an upsampler is."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from admg.checkpoints import presets
from admg.checkpoints.model import Labels, Model
from admg.files import check_output_folder
from admg.generation.contact_sheet import scale_sheet
from admg.generation.images import save_png
from admg.generation.sample import SAMPLERS, sample

from . import beginnings, guides, stages, work
from .beginnings import FromImages
from .guides import Guidance
from .stages import Recipe, Stage
from .upsample import load_upsampler, upsampling

EPILOG = """examples:
  admg sample --label sneaker --label 9 --scale 4 --num 32 --out sneakers
  admg sample --label coat --sheet scale=0,1,2,4,8 --num 6 --unconditional --out coats
  admg sample --label coat --cfg 3 --interval 0.3,10 --sampler unipc --steps karras10 --out coats
  admg sample --label coat --guide my_guides.py:darker --init shirt.png --strength 0.6 --out coats
  admg sample --model openai/imagenet-64 --labels balanced --num 50000 --no-images --out for-fid
  admg sample --model openai/imagenet-64 --upsampler openai/imagenet-64-to-256 --labels random --num 16 --out large
  torchrun --nproc-per-node 8 --no-python -- admg sample --num 50000 --out for-fid"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--model", default="fashion-mnist", metavar="NAME", help="a name or a folder (default: fashion-mnist)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--label", action="append", metavar="LABEL", help="name or number; may be repeated")
    text = "balanced: each equally often; random: drawn by the seed; or a list, A,B,... (default: balanced, or random "
    text += "where there are fewer images than labels); --label takes names that contain a comma or are one of these"
    which.add_argument("--labels", metavar="WHICH", help=text)
    text = "images in all, in equal shares of the labels (default: 8 for each; 64 if neither is given for 21 or more)"
    add("--num", type=int, metavar="N", help=text)
    text = "draw the same seeds over these guidance scales, or cfg=A,B,..., and nothing else"
    add("--sheet", metavar="scale=A,B,...", help=text)
    stages.add_recipe(parser)
    guides.add_guides(parser, "of a published model its own, else 4; 0 without a classifier")
    group = parser.add_argument_group("from an image instead of noise (from several: admg edit)")
    group.add_argument("--init", metavar="IMAGE", help="noised to a level, and sampled from there")
    beginnings.add_beginning(group)
    work.add_work(parser, "samples")
    title = "from label to large images: samples go to OUT/base, then to an upsampler"
    add = parser.add_argument_group(title).add_argument
    add("--upsampler", metavar="NAME", help="an upsampling model, told the same labels (default: none)")
    add("--upsampler-sampler", choices=sorted(SAMPLERS), default="ddim", help="(default: ddim)")
    add("--upsampler-steps", default="25", metavar="STEPS", help="as --steps; 250 of ddpm is better (default: 25)")
    add("--upsampler-batch-size", type=int, metavar="N", help="as --batch-size, of large images")


def run(args: argparse.Namespace) -> None:
    check(args)
    sheet = parse_sheet(args.sheet) if args.sheet else None
    recipe, how = stages.recipe_of(args), work.work_of(args)
    model, guide = load_both(args, sheet is not None and sheet[0] == "scale")
    variants = [guide] if sheet is None else [guide.at(sheet[0], scale) for scale in sheet[1]]
    table, steered = labels_of(model, guide, recipe.unconditional)
    labels, chosen = choose_labels(args, table, steered)
    model.respace(recipe.steps)  # bad input must show before anything is written
    base = Stage(
        out=Path(args.out), name=args.model, model=model, recipe=recipe, guide=guide, labels=labels, names=table,
        chosen=chosen, batch_size=args.batch_size, compile=args.compile, begin=beginning(args, model, len(labels)),
    )  # fmt: skip
    stages.to_device(args.device, model, guide.classifier)
    line = [base] if not args.upsampler else enlarged(base, args)
    stages.to_device(args.device, line[-1].model)
    for variant in variants:
        dataclasses.replace(base, guide=variant).try_out()
    if sheet is None:
        return work.carry_out(line, how)
    draw_scales(base, variants, *sheet)


def draw_scales(base: Stage, variants: list[Guidance], name: str, scales: list[float]) -> None:
    """The same seeds over guidance scales, in one picture."""
    out, recipe = check_output_folder(base.out), base.recipe
    options: dict[str, Any] = {"sampler": recipe.function, "steps": recipe.steps, "seed": recipe.seed,
                               "precision": recipe.precision, "batch_size": base.batch_size,
                               "compile": base.compile, "unconditional": recipe.unconditional}  # fmt: skip
    columns = [sample(base.model, base.labels, guide=variant(), **options) for variant in variants]
    images, names = [column.images for column in columns], columns[0].label_names
    title = f"{base.name}, {recipe}" + (f", {rest}" if (rest := base.guide.title_without(name)) else "")
    save_png(scale_sheet(images, scales, names, title, name), out / "scale-sheet.png")
    print(out / "scale-sheet.png")


def check(args: argparse.Namespace) -> None:
    """ValueError: an option out of range, or two that exclude each other."""
    for option in ("num", "upsampler_batch_size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    if args.sheet and (args.upsampler or args.init):
        option = "--upsampler" if args.upsampler else "--init"
        raise ValueError(f"--sheet draws samples of the model from noise: leave out {option}")
    if args.strength is not None and not args.init:
        raise ValueError("--strength is for --init")


def load_model(name: str) -> Model:
    """ValueError: it upsamples."""
    model = presets.load(name)
    if model.upsamples:
        raise ValueError(f"{name} makes images larger: use admg upsample, or give it as --upsampler")
    return model


def load_both(args: argparse.Namespace, wanted: bool = False) -> tuple[Model, Guidance]:
    """The model, and its guidance; wanted: with the classifier, at whatever scale."""
    model = load_model(args.model)
    usual = presets.recommended(args.model).scale or 4.0
    classifier = args.classifier or presets.default_classifier(args.model)
    return model, guides.load_guidance(args, model, usual if classifier else 0.0, wanted)


def labels_of(model: Model, guide: Guidance, unconditional: bool) -> tuple[Labels, bool]:
    """The labels that may be asked for, and whether anything is steered by them."""
    table = model.labels if model.labels.count or guide.classifier is None else guide.classifier.labels
    steered = guide.classifier is not None or bool(guide.others) or (model.conditional and not unconditional)
    return table, steered


def beginning(args: argparse.Namespace, model: Model, count: int) -> FromImages | None:
    if not args.init:
        return None
    images, _ = beginnings.load_images([args.init], model, args.fit)
    if len(images) != 1:
        raise ValueError(f"--init {args.init} holds {len(images)} images: admg edit takes several")
    return FromImages(images, [0] * count, beginnings.strength_of(args))


def choose_labels(args: argparse.Namespace, table: Labels, steered: bool) -> tuple[list[int | None], Any]:
    """A label for each image, and how they were chosen, for run.json. ValueError: unknown ones, or of no effect."""
    asked = args.labels if args.label is None else args.label
    if not steered or not table.count:
        if asked is not None:
            why = "this model has no labels" if not table.count else "neither the model nor a classifier is told labels"
            raise ValueError(f"--label{'' if args.label else 's'}: {why}")
        return [None] * (args.num or 8), None
    if asked is not None and asked not in ("balanced", "random"):
        numbers = [table.number(label) for label in args.label or args.labels.split(",")]
        return shares(numbers, args.num or 8 * len(numbers)), numbers
    num = args.num or (8 * table.count if table.count <= 20 else 64)
    if (asked or ("random" if num < table.count else "balanced")) == "balanced":
        return shares(range(table.count), num), "balanced"
    return [*random_labels(args.seed, table.count, num)], "random"


def shares(labels: Sequence[int], num: int) -> list[int | None]:
    """The labels in turn, so that all have the same number of images, or one more."""
    return [labels[i % len(labels)] for i in range(num)]


def random_labels(seed: int, count: int, num: int) -> list[int]:
    """Label i of a seed is the same whatever the number of images."""
    stream = int.from_bytes(b"labels", "little")  # unlike that of an image's noise
    return np.random.default_rng([seed, stream]).integers(count, size=num).tolist()


def enlarged(base: Stage, args: argparse.Namespace) -> list[Stage]:
    """Two stages: the base images, in OUT/base, and their upsampling, unguided, as in the paper."""
    channels, height, width = base.model.shape
    model = load_upsampler(args.upsampler, (height, width, channels), args.model)
    count = model.labels.count
    if model.conditional and count != base.names.count:
        raise ValueError(f"{args.upsampler} has {count} labels, {args.model} {base.names.count}")
    first = dataclasses.replace(base, out=base.out / "base")
    recipe: Recipe = dataclasses.replace(
        base.recipe, sampler=args.upsampler_sampler, steps=args.upsampler_steps, eta=0.0, unconditional=False,
        options=None,
    )  # fmt: skip
    second = upsampling(
        args.upsampler, model, recipe, [*base.labels], base.names, first.shards().target, first.settings,
        out=base.out, guide=Guidance(), batch_size=args.upsampler_batch_size, compile=args.compile,
        instead="sample with labels, or choose an upsampler without",
    )  # fmt: skip
    return [first, second]


def parse_sheet(text: str) -> tuple[str, list[float]]:
    """`scale=0,1,2` as a name, scale or cfg, and numbers."""
    name, _, values = text.partition("=")
    try:
        scales = [float(value) for value in values.split(",")]
    except ValueError:
        scales = []
    if name not in ("scale", "cfg") or not scales:
        raise ValueError(f"--sheet must be scale= or cfg= and numbers, such as scale=0,1,2,4,8, not {text!r}")
    return name, scales
