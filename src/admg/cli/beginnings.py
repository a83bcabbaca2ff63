"""What sampling begins with in place of noise: images of files, or given x_T."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admg.checkpoints.model import Model
from admg.data import Dataset
from admg.data import open as open_dataset
from admg.data.dataset import Fit
from admg.data.folder import read_image
from admg.data.transforms import check_pad
from admg.diffusion.gaussian import Images
from admg.generation.edit import Start, encoded, noised

STRENGTH = 0.6


@dataclass(frozen=True, eq=False)
class FromImages:
    """Image i begins at images[which[i]], noised, or encoded by DDIM's inversion.

    images: (M, C, H, W) in [-1, 1]; strength: see edit(); from_y: (M,) labels that the network is told while inverting,
    or None for none of them
    """

    images: Images
    which: Sequence[int]
    strength: float
    invert: bool = False
    from_y: Tensor | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "images": checksum(self.images),
            "strength": self.strength,
            "invert": self.invert,
            "from_label": None if self.from_y is None else self.from_y.tolist(),
        }

    def start(self, images: range) -> Start:
        chosen = [self.which[i] for i in images]
        if not self.invert:
            return noised(self.images[chosen])
        return encoded(self.images[chosen], None if self.from_y is None else self.from_y[chosen])


@dataclass(frozen=True, eq=False)
class FromNoise:
    """Image i begins at x_T[i]; settings: what decides it."""

    x_T: Images
    settings: dict[str, Any]
    strength: float = 1.0

    def start(self, images: range) -> Start:
        chosen = self.x_T[images.start : images.stop]
        return lambda model, noise, _: chosen.to(noise)


def add_beginning(group: Any) -> None:
    """--strength and --fit."""
    text = "share of the steps that is done, above 0 and at most 1: the less, the more of the image stays"
    group.add_argument("--strength", type=float, metavar="S", help=f"{text} (default: {STRENGTH:g})")
    text = "an image of another size: scale and crop, or put on black (default: as the model's training did, if known)"
    group.add_argument("--fit", choices=("resize", "pad"), help=text)


def strength_of(args: argparse.Namespace) -> float:
    """ValueError: outside (0, 1]."""
    strength = STRENGTH if args.strength is None else args.strength
    if not 0 < strength <= 1:
        raise ValueError(f"--strength must be above 0 and at most 1, got {strength}")
    return strength


def load_images(sources: Sequence[str], model: Model, fit: Fit | None) -> tuple[Images, list[str]]:
    """(M, C, S, S) in [-1, 1] of pictures, folders of them, .npz or IDX files, fitted as for training; and their names.

    ValueError: not images, or with fit="pad" larger ones than the model's.
    """
    fit = fit or trained_fit(model)
    found, names = [], []
    for source in sources:
        data = _open(Path(source).expanduser(), model, fit)
        found.append(data.batch(range(len(data)))[0])
        paths = [] if hasattr(data.images, "dtype") else [Path(str(path)).stem for path in data.images]
        names += paths or [f"{Path(source).stem} {i}" for i in range(len(data))]
    return torch.cat(found), names


def _open(path: Path, model: Model, fit: Fit) -> Dataset:
    channels, size, _ = model.shape
    if not path.is_file() or path.suffix.lower() == ".npz" or "idx" in path.name:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: an image, or a folder of images, is needed")
        return open_dataset(path, size, channels=channels, fit=fit, labels=False, split="test")
    image = read_image(path)
    if fit == "pad":
        check_pad(*image.size, size, path)
    return Dataset((path,), size, channels, fit=fit)


def trained_fit(model: Model) -> Fit:
    """As the command that trained the model said; else resize, by the rule of the published models."""
    said = re.search(r"--fit[ =](pad|resize)\b", str(model.training.get("command", "")))
    return "pad" if said and said[1] == "pad" else "resize"


def checksum(images: Images) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:12]
