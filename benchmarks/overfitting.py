"""What overfitting looks like: train on 200 images, and compare losses and nearest neighbours.

python benchmarks/overfitting.py data/emoji --out overfitting

It draws the pictures of docs/own-images.md in half an hour, beside other work. tools/models/emoji.py makes the data.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

IMAGES, LEVELS = 200, {222: "C2", 555: "C3", 777: "C4"}


def some(source: Path, folder: Path) -> None:
    """Copy a random selection of the images of a data set, in the folders of their classes."""
    for path in random.Random(0).sample(sorted(source.rglob("*.png")), IMAGES):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.parent.name)


def plot(log: Path, out: Path) -> None:
    """Draw the losses on training and validation images over the number of passes."""
    rows = [row for row in csv.DictReader(log.open()) if row["val_loss"]]
    passes = [int(row["images"]) / IMAGES for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for part, style, label in (("train", "--", "training images"), ("val", "-", "validation images")):
        left.plot(passes, [float(row[f"{part}_loss"]) for row in rows], style, label=label)
        for t, colour in LEVELS.items():
            values = [float(row[f"{part}_loss_t{t}"]) for row in rows]
            right.plot(passes, values, style, color=colour, label=f"t = {t}" if part == "val" else None)
    left.set(title="mean over noise levels", ylabel="loss")
    right.set(title="by noise level", yscale="log")
    for axes in (left, right):
        axes.set_xlabel("times each image was seen")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/ and test/, as tools/models/emoji.py makes it")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the run and the pictures")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps (default: 3000)")
    args = parser.parse_args()
    few, run = args.out / "images", args.out / "run"
    some(args.data / "train", few)

    def admg(*words: object) -> None:
        subprocess.run([sys.executable, "-m", "admg", *map(str, words)], check=True)

    admg("train", "--data", few, "--val-data", args.data / "test", "--image-size", 16, "--channels", 32,
         "--attention-resolutions", 8, "--steps", args.steps, "--batch-size", 16, "--threads", 1,
         "--preview-every", max(1, args.steps // 12), "--log-every", max(1, args.steps // 60), "--seed", 0,
         "--out", run)  # fmt: skip
    plot(run / "log.csv", args.out / "overfitting.png")
    admg("sample", "--model", run, "--cfg", 1, "--num", 64, "--steps", 25, "--threads", 1, "--out", args.out / "plain")
    admg("neighbours", args.out / "plain", few, "--fit", "resize", "--network", "efficientnet-lite0", "--closest",
         "--num", 6, "--k", 3, "--out", args.out / "memorised.png")  # fmt: skip


if __name__ == "__main__":
    main()
