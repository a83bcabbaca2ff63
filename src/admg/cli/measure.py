"""What the commands that run networks share: the device, and a note about missing kernels."""

from __future__ import annotations

import argparse
import sys
from functools import cache

import torch

from admg.checkpoints.model import Labels
from admg.engine import cpu as native
from admg.engine.device import choose_device as device_of
from admg.evaluation.real_images import RealImages, header, label_numbers, open_real_images

__all__ = ["RealImages", "device_of", "header", "label_numbers", "note_missing_kernels", "open_images"]


@cache
def note_missing_kernels(device: torch.device) -> None:
    """Print a note, once per process, if the kernels for this CPU were not built."""
    if device.type == "cpu" and native.missing():
        why = "were not built at installation, since there was no C compiler"
        print(f"note: admg's kernels for this CPU {why}; torch is used, at about half the speed", file=sys.stderr)


def add_image_arguments(parser: argparse.ArgumentParser, num: int) -> None:
    """Add the options that `open_images` takes."""
    add = parser.add_argument
    add("--num", type=int, default=num, metavar="N", help=f"images, spread evenly over all there are (default: {num})")
    add("--split", choices=("train", "test"), default="test", help="where the data has both (default: test)")
    add("--fit", choices=("resize", "pad"), help="smaller images: enlarge, or put on black, as the training did")
    add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")


def open_images(args: argparse.Namespace, path: str, channels: int, size: int, labels: Labels | None) -> RealImages:
    """Open the images that the options choose."""
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    return open_real_images(path, (channels, size, size), labels, num=args.num, fit=args.fit, split=args.split)
