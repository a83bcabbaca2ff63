"""What the commands that measure a model on real images share: opening them, their labels, the device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from admg.checkpoints.model import Labels, file_name
from admg.data import Dataset, open_dataset
from admg.data.dataset import Fit
from admg.data.transforms import GREY_MODES
from admg.engine import cpu as native


@dataclass(frozen=True)
class RealImages:
    """Some images of a data set, in the model's size. numbers: in the data set; labels: (N,), or None"""

    dataset: Dataset
    numbers: list[int]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, chosen: slice) -> tuple[Tensor, Tensor | None]:
        """x (n, C, S, S) in [-1, 1] and labels (n,) or None."""
        x, _ = self.dataset.batch(self.numbers[chosen])
        return x, None if self.labels is None else self.labels[chosen]


def add_image_arguments(parser: argparse.ArgumentParser, num: int) -> None:
    """The options that `open_images` takes."""
    add = parser.add_argument
    add("--num", type=int, default=num, metavar="N", help=f"images, spread evenly over all there are (default: {num})")
    add("--split", choices=("train", "test"), default="test", help="where the data has both (default: test)")
    add("--fit", choices=("resize", "pad"), help="smaller images: enlarge, or put on black, as the training did")
    add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")


def open_images(args: argparse.Namespace, path: str, channels: int, size: int, labels: Labels | None) -> RealImages:
    """args.num of the images, for a network of these channels and pixels of the side.

    labels: that the network was trained with; None: the data's are left out
    ValueError: no images, colours for a grey model, images smaller than the model's without --fit, unknown labels.
    """
    if args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    options = {"fit": args.fit or "resize", "split": args.split, "verify": False}
    dataset = open_dataset(path, size, channels=channels, labels=labels is not None, **options)
    numbers = [i * len(dataset) // args.num for i in range(args.num)] if args.num < len(dataset) else []
    numbers = numbers or list(range(len(dataset)))
    _check_images(path, dataset, numbers, args.fit)
    if labels is None or dataset.labels is None:
        return RealImages(dataset, numbers, None)
    known = torch.tensor(label_numbers(labels, dataset.label_names))
    return RealImages(dataset, numbers, known[torch.from_numpy(dataset.labels[numbers])])


def label_numbers(labels: Labels, names: Sequence[str]) -> list[int]:
    """The model's number of each of the data's labels, by its name, or by what is left of it in a file's name.

    Where the names are others, but as many, they are taken in their order, as the training took them.
    """
    by_file = [file_name(name).lower() for name in labels.names]
    if len(names) == labels.count and not all(file_name(name).lower() in by_file for name in names):
        return list(range(labels.count))
    try:
        return [_label_number(labels, by_file, name) for name in names]
    except ValueError as error:
        raise ValueError(
            f"the data's {len(names)} labels are not the model's {labels.count}: {error}; "
            f"--unconditional leaves labels out"
        ) from None


def _label_number(labels: Labels, by_file: Sequence[str], name: str) -> int:
    """ValueError: no label, or several, are called so."""
    try:
        return labels.number(name)
    except ValueError:
        if by_file.count(file_name(name).lower()) != 1:
            raise
        return by_file.index(file_name(name).lower())


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The device of this name; auto: the GPU of this rank, if there is one. ValueError: it cannot be computed on."""
    if name == "auto":
        name = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # meta has tensors, but no numbers in them
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _check_images(path: str, dataset: Dataset, numbers: Sequence[int], fit: Fit | None) -> None:
    for number in numbers:
        width, height, grey = header(dataset.images[number])
        if dataset.channels == 1 and not grey:
            raise ValueError(f"{path} has images in colour, and the model's are grey: convert them first")
        if fit is None and min(width, height) < dataset.image_size:
            side = dataset.image_size
            raise ValueError(
                f"{path} has images of {width}x{height}, smaller than the model's {side}x{side}: say --fit pad (a "
                f"black border) or --fit resize (enlarge), as the model was trained"
            )


def header(image) -> tuple[int, int, bool]:
    """Width, height, and whether it is grey."""
    if isinstance(image, Path):
        with Image.open(image) as file:
            return *file.size, file.mode in GREY_MODES
    return image.shape[1], image.shape[0], image.shape[-1] == 1


@cache
def note_missing_kernels(device: torch.device) -> None:
    """Say it, once, if the kernels for this CPU are not there."""
    if device.type == "cpu" and native.missing():
        why = "were not built when it was installed, for want of a C compiler"
        print(f"note: admg's kernels for this CPU {why}: torch computes, about half as fast", file=sys.stderr)
