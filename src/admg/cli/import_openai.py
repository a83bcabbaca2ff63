"""`admg import-openai`: a `.pt` file of OpenAI's code as a native checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch

from admg.checkpoints import imagenet, native, openai
from admg.checkpoints.model import Classifier, Model
from admg.files import check_output_folder
from admg.models.unet import EncoderConfig

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
    native.check_target(args.out)
    check_output_folder(args.out.parent)
    model = openai.load(args.checkpoint, args.flags)
    model.save(args.out, torch.float16 if args.float16 else None)
    print(f"{args.out}: {described(model)}\nflags: {model.training['flags']}")


def described(model: Model | Classifier) -> str:
    """The kind of model, its images, labels and number of parameters, in a line."""
    n = cast(EncoderConfig, model.network.config)
    channels = {1: "grey", 3: "RGB"}.get(n.image_channels, f"{n.image_channels}-channel")
    labels = f"{model.labels.count} labels" if model.labels.count else "no labels"
    labels += " (named as ImageNet's)" if model.labels.names == imagenet.names() else ""
    count = sum(p.numel() for p in model.network.parameters())
    return f"{model.kind_name}, {channels} images of {n.image_size}x{n.image_size}, {labels}, {count:,} parameters"
