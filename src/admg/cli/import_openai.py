"""`admg import-openai`: a `.pt` file of OpenAI's code as a native checkpoint."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import cast

import torch

from .. import openai
from ..model import Classifier, Model
from ..nn.unet import TrunkConfig

EPILOG = """examples:
  admg import-openai ema_0.9999_200000.pt --out mine --flags "--image_size 64 --num_channels 128 --learn_sigma True"
  admg import-openai 64x64_classifier.pt --out classifier"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a .pt file of guided-diffusion or improved-diffusion")
    add("--flags", metavar='"..."', help="as given to OpenAI's scripts (default: inferred from names and shapes)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write: model.safetensors and config.json")
    add("--float16", action="store_true", help="store the weights in half the size, rounded")


def run(args: argparse.Namespace) -> None:
    check_target(args.out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = openai.load(args.checkpoint, args.flags)
    for warning in caught:
        print(f"note: {warning.message}", file=sys.stderr)
    model.save(args.out, torch.float16 if args.float16 else None)
    print(f"{args.out}: {described(model)}\nflags: {model.training['flags']}")


def described(model: Model | Classifier) -> str:
    """The kind of model, its images, labels and number of parameters, in a line."""
    n = cast(TrunkConfig, model.network.config)
    kind = (
        "noisy classifier" if isinstance(model, Classifier) else "upsampler" if model.upsamples else "diffusion model"
    )
    channels = {1: "grey", 3: "RGB"}.get(n.image_channels, f"{n.image_channels}-channel")
    labels = f"{model.labels.count} labels" if model.labels.count else "no labels"
    count = sum(p.numel() for p in model.network.parameters())
    return f"{kind}, {channels} images of {n.image_size}x{n.image_size}, {labels}, {count:,} parameters"


def check_target(folder: Path) -> None:
    """ValueError: something else than a checkpoint stands there, which saving would replace."""
    if (
        folder.exists()
        and not (folder / "config.json").is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise ValueError(f"--out {folder} exists and is not an admg checkpoint, so it is not replaced: name another")
