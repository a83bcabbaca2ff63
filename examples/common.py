"""Options shared by the examples, and real garments to start from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import admg
from admg.data import open as open_dataset
from admg.files import check_output_folder

DATA = ("data/fashion-mnist", "/usr/share/datasets/fashion-mnist")  # the second one is Debian's dataset-fashion-mnist


def options(
    text: str | None, argv: Sequence[str] | None, *, steps: str, num: int, help: str, **own: tuple[Any, str]
) -> argparse.Namespace:
    """Return the options --out, --steps and --num and further ones, given as (default, help); create the folder."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--out", type=Path, default=Path("examples-out"), help="output folder (default: examples-out)")
    parser.add_argument("--steps", default=steps, help=f"number of sampling steps (default: {steps})")
    parser.add_argument("--num", type=int, default=num, metavar="N", help=f"{help} (default: {num})")
    for name, (default, what) in own.items():
        flag, kind = f"--{name.replace('_', '-')}", type(default)
        parser.add_argument(flag, type=kind, default=default, help=f"{what} (default: {default})")
    args = parser.parse_args(argv)
    check_output_folder(args.out)
    return args


def garments(model: admg.Model, labels: Sequence[str], first: int = 0) -> Tensor:
    """Return a test image of Fashion-MNIST for each label, (N, C, H, W) in [-1, 1].

    first: number of the first image among those of its label

    Without the data set, samples of the model with seed 1 are returned instead.
    """
    folder = next((path for path in DATA if Path(path).is_dir()), None)
    numbers = [model.labels.parse(label) for label in labels]
    if folder is None:
        return admg.sample(model, numbers, seed=1, first=first, progress=False).x
    data = open_dataset(folder, model.shape[1], channels=1, fit="pad", split="test")
    assert data.labels is not None
    of_label = {n: torch.from_numpy(data.labels == n).nonzero()[:, 0].tolist() for n in set(numbers)}
    return data.batch([of_label[n][first + numbers[:i].count(n)] for i, n in enumerate(numbers)])[0]
