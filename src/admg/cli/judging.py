"""The options of features."""

from __future__ import annotations

import argparse


def add_network_arguments(parser: argparse.ArgumentParser, split: str, within: bool = False) -> None:
    """within: a command that has --batch-size and --device of its own"""
    group = parser.add_argument_group("features")
    add = group.add_argument
    add(
        "--network",
        default="inception",
        metavar="NAME",
        help="inception (2015, of which alone FID is said; downloaded at first use), efficientnet-lite0 (no download), "
        "dinov2_vitl14 and its like, or file.py:name, a torch.nn.Module (default: inception)",
    )
    add("--weights", metavar="FILE", help="Inception's weight file, weights-inception-2015-12-05-6726825d.pth")
    add("--fit", choices=("resize", "pad"), help="where sizes differ: scale and crop to the samples', or put on black")
    add("--split", choices=("train", "test"), default=split, help=f"where the data has both (default: {split})")
    batch = "--feature-batch-size" if within else "--batch-size"
    add(batch, type=int, default=50, metavar="N", help="images at a time (default: 50)")
    if not within:
        add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")
    add("--cache", metavar="DIR", help="where features are kept for the next time (default: admg's cache folder)")
    add("--no-cache", action="store_true", help="keep no features")
