"""What `admg sample` and `admg upsample` share: a stage is one model's pass over all images."""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from .. import guidance, presets, samplers
from ..model import Classifier, Labels, Model
from ..precision import Precision
from ..samplers import Sampler, Step
from ..sampling import SAMPLERS, find_sampler, sample
from ..shards import NpzImages, Shards
from .measure import device_of

SHARDS, SHARD_IMAGES, SHARD_BYTES = 500, 256, 64 << 20
UPSAMPLER_SEED = 2**32  # added to the seed: an upsampler's noise must not repeat that of its base images


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is sampled; see sample(). ValueError: a value out of range."""

    sampler: str
    steps: str
    eta: float
    seed: int
    precision: Precision
    unconditional: bool

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"--eta must be in [0, 1], got {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"--eta is of the sampler ddim, not of {self.sampler}")

    @property
    def function(self) -> Sampler:
        return functools.partial(samplers.ddim, eta=self.eta) if self.sampler == "ddim" else find_sampler(self.sampler)

    def __str__(self) -> str:
        return f"{self.sampler} {self.steps}, seed {self.seed}"


@dataclass(frozen=True)
class Guidance:
    """A classifier and its scale; none: no guidance."""

    name: str = ""
    classifier: Classifier | None = None
    scale: float = 0.0

    def __call__(self, scale: float | None = None) -> guidance.Classifier | None:
        """The guide of this scale, the classifier's own one by default."""
        return guidance.Classifier(self.classifier, self.scale if scale is None else scale) if self.classifier else None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One model's pass over all images: a label for each, and small images if it upsamples, in; one .npz out.

    name: of the model; names: of the labels; base: the .npz of the small images, which an earlier stage may make;
    origin: where they come from, for run.json
    """

    out: Path
    name: str
    model: Model
    recipe: Recipe
    guide: Guidance
    labels: Sequence[int | None]
    names: Labels
    chosen: Any  # how the labels were chosen, for run.json
    batch_size: int | None = None
    base: Path | None = None
    origin: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the images."""
        classifier = self.guide.classifier
        return {
            "model": self.name,
            "weights": fingerprint(self.model),
            "classifier": self.guide.name if classifier else None,
            "classifier_weights": fingerprint(classifier) if classifier else None,
            "scale": self.guide.scale,
            "labels": self.chosen,
            **asdict(self.recipe),
            "base": self.origin,
        }

    @property
    def title(self) -> str:
        return f"{self.name}, {self.recipe}" + (f", scale {self.guide.scale:g}" if self.guide.classifier else "")

    @property
    def batch(self) -> int:
        """Images at a time: by default as many as have the pixels of 64 of 64 x 64."""
        return self.batch_size or max(1, min(64, 64**3 // (self.model.shape[1] * self.model.shape[2])))

    def shards(self, size: int | None = None) -> Shards:
        """Whole batches; so many shards that little is lost by a break, of at most 256 images and 64 MB each."""
        channels, height, width = self.model.shape
        most = min(SHARD_IMAGES, SHARD_BYTES // (channels * height * width), -(-len(self.labels) // SHARDS))
        labelled = any(label is not None for label in self.labels)
        size = size or max(1, most // self.batch) * self.batch
        return Shards(self.out, len(self.labels), size, (height, width, channels), labelled)

    def make(self, images: range, base: NpzImages | None, done: Callable[[float], Any]) -> np.ndarray:
        """The images of these numbers, uint8 (N, H, W, C); `done` is told of each part of an image."""
        channels, height, width = self.model.shape
        result = np.empty((len(images), height, width, channels), np.uint8)
        for start in range(images.start, images.stop, self.batch):
            stop = min(start + self.batch, images.stop)
            samples = sample(
                self.model,
                self.labels[start:stop],
                guide=self.guide(),
                sampler=counted(self.recipe.function, done),
                steps=self.recipe.steps,
                seed=self.recipe.seed + (UPSAMPLER_SEED if self.model.upsamples else 0),
                batch_size=stop - start,
                low_res=None if base is None else to_float(base[start:stop]),
                y=None if self.recipe.unconditional else "labels",
                first=start,
                precision=self.recipe.precision,
                progress=False,
            )
            if not torch.isfinite(samples.x).all():
                raise FloatingPointError(f"images {start} to {stop - 1} of {self.name} are not finite numbers")
            result[start - images.start : stop - images.start] = samples.images
        return result


def counted(sampler: Sampler, done: Callable[[float], Any]) -> Sampler:
    """The sampler, telling after each step how much of its images that is."""

    def wrapped(model: Model, x_T: Tensor, **options: Any) -> Iterator[Step]:
        for step in sampler(model, x_T, **options):
            yield step
            done(len(x_T) / len(model.diffusion))

    return wrapped


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) -> (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def fingerprint(part: Model | Classifier) -> str:
    """Tells models apart, such as those of a training that went on: their settings, and each tensor's first numbers."""
    digest = hashlib.sha256(repr((part.config, getattr(part.network, "config", None))).encode())
    for tensor in part.network.state_dict().values():
        digest.update(tensor.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The options of Recipe, and where and in what batches it is computed."""
    add = parser.add_argument
    add("--sampler", choices=sorted(SAMPLERS), help="(default: of a published model the paper's, else ddim)")
    text = "a number, ddimN, counts per section such as 10,15,20, or uniformN, quadN, logsnrN, karrasN"
    add("--steps", help=f"{text} (default: of a published model the paper's, else 25)")
    add("--eta", type=float, default=0.0, help="of ddim: 0 is deterministic, 1 as random as ddpm (default: 0)")
    add("--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)")
    add("--precision", choices=get_args(Precision), default="fp32", help="of matrix products (default: fp32)")
    add("--unconditional", action="store_true", help="do not tell the model the label: the classifier alone steers")
    add("--batch-size", type=int, metavar="N", help="images at a time (default: 64 of 64x64 pixels, fewer if larger)")
    add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """As the options say, and what is usual for args.model. ValueError: one is out of range."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    usual = presets.recommended(args.model)
    sampler = args.sampler or usual.sampler
    return Recipe(
        sampler=sampler,
        steps=args.steps or (usual.steps if sampler == usual.sampler else "25"),
        eta=args.eta,
        seed=args.seed,
        precision=args.precision,
        unconditional=args.unconditional,
    )


def to_device(name: str, *parts: Model | Classifier | None) -> None:
    """Move the networks. ValueError: the device cannot be used."""
    device = device_of(name, from_torchrun("LOCAL_RANK", 0))
    for part in parts:
        if part is not None:
            part.to(device)


def from_torchrun(variable: str, default: int) -> int:
    """A number that torchrun sets in the environment. ValueError: it is set, but not a number."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment variable {variable} must be a whole number, got {text!r}")
    return int(text)


def load_guidance(model: Model, name: str | None, scale: float) -> Guidance:
    """A classifier that fits the model. ValueError: it has other labels or another image size."""
    if not name:
        raise ValueError("guidance needs --classifier: the model comes without one")
    classifier = presets.load_classifier(name)
    if model.labels.count and classifier.labels.count != model.labels.count:
        raise ValueError(f"the classifier has {classifier.labels.count} labels, the model {model.labels.count}")
    size = getattr(classifier.network.config, "image_size", model.shape[1])
    if size != model.shape[1]:
        raise ValueError(f"the classifier is for images of {size} pixels, the model's have {model.shape[1]}")
    return Guidance(name, classifier, scale)
