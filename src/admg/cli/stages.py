"""What `admg sample` and `admg upsample` share: a stage is one model's pass over all images."""

from __future__ import annotations

import argparse
import functools
import hashlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from admg import samplers
from admg.checkpoints import loading
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.engine.compiling import Compile, fast
from admg.engine.memory import in_batches
from admg.engine.precision import Precision, resolve
from admg.generation.acceleration import batch_that_fits, networks_of
from admg.generation.contact_sheet import Layout, contact_sheet
from admg.generation.images import to_float
from admg.generation.recipe import Start
from admg.generation.sample import sample
from admg.generation.sampler_specs import SAMPLERS, find_sampler
from admg.generation.samples import Samples
from admg.generation.shards import NpzImages, Shards
from admg.samplers import Sampler, Step

from .guides import Guidance
from .measure import device_of, note_missing_kernels

SHARDS, SHARD_IMAGES, SHARD_BYTES = 500, 256, 64 << 20
UPSAMPLER_SEED = 2**32  # added to the seed: an upsampler's noise must not repeat that of its base images


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is sampled; see sample(). ValueError: a value out of range.

    options: the sampler's own, by name, but eta
    """

    sampler: str
    steps: str
    eta: float
    seed: int
    precision: Precision
    unconditional: bool
    options: Mapping[str, Any] | None = None

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"--eta must be in [0, 1], got {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"--eta is of the sampler ddim, not of {self.sampler}")

    @property
    def function(self) -> Sampler:
        if self.sampler == "ddim":
            return functools.partial(samplers.ddim, eta=self.eta)
        return functools.partial(find_sampler(self.sampler), **(self.options or {}))

    def __str__(self) -> str:
        options = "".join(f" {name} {value}" for name, value in (self.options or {}).items())
        return f"{self.sampler} {self.steps}{options}, seed {self.seed}"


class Begin(Protocol):
    """Where sampling begins, if not at the seed's noise. strength: see edit(); settings: what decides it"""

    @property
    def strength(self) -> float: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def start(self, images: range) -> Start: ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One model's pass over all images: a label for each, and small images if it upsamples, in; one .npz out.

    name: of the model; names: of the labels; base: the .npz of the small images, which an earlier stage may make;
    origin: where they come from, for run.json; draw: (images, label names, title) -> sheet.png
    batch_size: images at a time, None: as many as fit in memory; compile: see compiling.py
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
    compile: Compile = "auto"
    base: Path | None = None
    origin: Any = None
    begin: Begin | None = None
    draw: Layout = contact_sheet

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the images."""
        classifier = self.guide.classifier
        return {
            "model": self.name,
            "weights": fingerprint(self.model),
            "classifier": self.guide.name if classifier else None,
            "classifier_weights": fingerprint(classifier) if classifier else None,
            **self.guide.settings,
            "labels": self.chosen,
            **asdict(self.recipe),
            "precision": resolve(self.recipe.precision, self.model.device),
            "base": self.origin,
            "begin": self.begin and self.begin.settings,
        }

    @property
    def title(self) -> str:
        return f"{self.name}, {self.recipe}" + (f", {self.guide.title}" if self.guide.title else "")

    @property
    def batch(self) -> int:
        """Images that a shard holds a multiple of: by default as many as have the pixels of 64 of 64 x 64."""
        return self.batch_size or max(1, min(64, 64**3 // (self.model.shape[1] * self.model.shape[2])))

    def shards(self, size: int | None = None) -> Shards:
        """Whole batches; so many shards that little is lost by a break, of at most 256 images and 64 MB each."""
        channels, height, width = self.model.shape
        most = min(SHARD_IMAGES, SHARD_BYTES // (channels * height * width), -(-len(self.labels) // SHARDS))
        labelled = any(label is not None for label in self.labels)
        size = size or max(1, most // self.batch) * self.batch
        return Shards(self.out, len(self.labels), size, (height, width, channels), labelled)

    def try_out(self) -> None:
        """One step of one image: ValueError if the model, sampler and guides do not fit together."""
        labelled = next((i for i, label in enumerate(self.labels) if label is not None), 0)
        base = None if self.base is None else NpzImages(self.base)
        self._sample(range(labelled, labelled + 1), base, first_step(self.recipe.function), "off")

    def make(self, images: range, base: NpzImages | None, done: Callable[[float], Any]) -> np.ndarray:
        """The images of these numbers, uint8 (N, H, W, C); `done` is told of each part of an image."""
        channels, height, width = self.model.shape
        result = np.empty((len(images), height, width, channels), np.uint8)

        def make(batch: slice) -> None:
            numbers = images[batch]
            samples = self._sample(numbers, base, counted(self.recipe.function, done), self.compile)
            if not torch.isfinite(samples.x).all():
                raise FloatingPointError(f"images {numbers[0]} to {numbers[-1]} of {self.name} are not finite numbers")
            result[batch] = samples.images

        for _ in in_batches(make, len(images), self.batch_size or batch_that_fits(self.model, self.guide())):
            pass
        return result

    def fast(self) -> AbstractContextManager:
        """Within it, make() does not prepare the networks at each batch anew."""
        networks = networks_of(self.model, self.guide())
        return fast(networks, self.model.device, precision=self.recipe.precision, compile=self.compile)

    def _sample(self, images: range, base: NpzImages | None, sampler: Sampler, compile: Compile) -> Samples:
        """One batch."""
        model, steps = self.model, self.recipe.steps
        chosen = slice(images.start, images.stop)
        return sample(
            model,
            self.labels[chosen],
            guide=self.guide(),
            sampler=sampler,
            steps=steps,
            seed=self.recipe.seed + (UPSAMPLER_SEED if self.model.upsamples else 0),
            batch_size=len(images),
            low_res=None if base is None else to_float(base[chosen]),
            unconditional=self.recipe.unconditional,
            first=images.start,
            precision=self.recipe.precision,
            compile=compile,
            progress=False,
        )


def counted(sampler: Sampler, done: Callable[[float], Any]) -> Sampler:
    """The sampler, telling after each step how much of its images that is."""

    def wrapped(model: Model, x_T: Tensor, **options: Any) -> Iterator[Step]:
        for step in sampler(model, x_T, **options):
            yield step
            done(len(x_T) / len(model.diffusion))

    return wrapped


def first_step(sampler: Sampler) -> Sampler:
    """The sampler, stopped after its first step."""
    return lambda model, x_T, **options: itertools.islice(sampler(model, x_T, **options), 1)


def fingerprint(part: Model | Classifier) -> str:
    """Tells models apart, such as those of a training that went on: their settings, and each tensor's first numbers."""
    digest = hashlib.sha256(repr((part.config, getattr(part.network, "config", None))).encode())
    for tensor in part.network.state_dict().values():
        digest.update(tensor.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def add_recipe(parser: argparse.ArgumentParser, sampler: str | None = None, steps: str | None = None) -> None:
    """The options of Recipe, and where and in what batches it is computed.

    sampler, steps: what they are by default; None: as usual for the model
    """
    usual = "of a published model the paper's, else"
    add = parser.add_argument
    add("--sampler", choices=sorted(SAMPLERS), default=sampler, help=f"(default: {sampler or f'{usual} ddim'})")
    text = "a number, ddimN, counts per section such as 10,15,20, or uniformN, quadN, logsnrN, karrasN"
    add("--steps", default=steps, help=f"{text} (default: {steps or f'{usual} 25'})")
    add_recipe_rest(parser)


def add_recipe_rest(parser: argparse.ArgumentParser) -> None:
    """The options of Recipe but --sampler and --steps, and where and in what batches it is computed."""
    add = parser.add_argument
    add("--eta", type=float, default=0.0, help="of ddim: 0 is deterministic, 1 as random as ddpm (default: 0)")
    text = "; ".join(f"of {name}: {', '.join(own)}" for name in sorted(SAMPLERS) if (own := own_options(name)))
    add("--sampler-option", action="append", metavar="NAME=VALUE", help=f"{text}; may be repeated")
    add("--seed", type=int, default=0, help="image i of a seed is always the same (default: 0)")
    text = "of matrix products; auto: bf16 where the processor or GPU has it, else fp32 (default: auto)"
    add("--precision", choices=get_args(Precision), default="auto", help=text)
    text = "build networks by torch.compile first, which takes minutes; auto: no (default: auto)"
    add("--compile", choices=get_args(Compile), default="auto", help=text)
    add("--unconditional", action="store_true", help="do not tell the model the label: the classifier alone steers")
    add("--batch-size", type=int, metavar="N", help="images at a time (default: what fits in memory, up to 64)")
    add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """As the options say, and what is usual for args.model. ValueError: one is out of range."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    usual = loading.recommended(args.model)
    sampler = args.sampler or usual.sampler
    return Recipe(
        sampler=sampler,
        steps=args.steps or (usual.steps if sampler == usual.sampler else "25"),
        eta=args.eta,
        seed=args.seed,
        precision=args.precision,
        unconditional=args.unconditional,
        options=parse_options(sampler, args.sampler_option or []) or None,
    )


def own_options(sampler: str) -> dict[str, Any]:
    """What this sampler takes that ddpm does not, but eta, and the defaults."""
    common = {*inspect.signature(samplers.ddpm).parameters, "eta"}
    parameters = inspect.signature(SAMPLERS[sampler]).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in common}


def parse_options(sampler: str, given: Sequence[str]) -> dict[str, Any]:
    """`order=3` and its like, by name. ValueError: an option that the sampler has not, or a value of another type."""
    known, found = own_options(sampler), {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"--sampler-option {text}: {sampler} has no option {name!r}: allowed are {allowed}")
        kind = type(known[name])
        try:
            found[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            wanted = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
            raise ValueError(f"--sampler-option {text}: {name} must be {wanted}") from None
    return found


def to_device(name: str, *parts: Model | Classifier | None) -> None:
    """Move the networks. ValueError: the device cannot be used."""
    device = device_of(name, from_torchrun("LOCAL_RANK", 0))
    note_missing_kernels(device)
    for part in parts:
        if part is not None:
            part.to(device)


def from_torchrun(variable: str, default: int) -> int:
    """A number that torchrun sets in the environment. ValueError: it is set, but not a number."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment variable {variable} must be a whole number, got {text!r}")
    return int(text)
