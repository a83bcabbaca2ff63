"""Edits of images towards labels (SDEdit), and the encoding of images as noise by DDIM inversion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Model
from admg.config import with_fields
from admg.diffusion.gaussian import Images
from admg.diffusion.noise import SeededNoise
from admg.diffusion.signed import check_signed
from admg.engine.compiling import Compile
from admg.engine.precision import Precision
from admg.guidance import Guide
from admg.guidance.rows import batch_context
from admg.samplers import Sampler, Step, ddim_inversion

from .labels import LabelsArgument, as_tensor, check_labels_used, is_single, resolve_labels
from .recipe import BatchSampler, Inputs, Recipe, Start, check_finite, dtype_of
from .sample import draw_samples, progress_bar
from .samples import Samples


def edit(
    model: Model | str | Path,
    images: Images | np.ndarray,
    labels: LabelsArgument = None,
    *,
    strength: float = 0.6,
    invert: bool = False,
    from_labels: LabelsArgument = None,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 25,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    batch_size: int | None = None,
    first: int = 0,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Samples:
    """Change images towards labels: add noise up to a level, then sample from there (SDEdit, Meng et al. 2022).

    model: a Model, or anything that admg.load accepts
    images: floats (N, C, H, W) in [-1, 1], one per label, or a single one for all labels
    labels: as in sample(); a single label applies to all images
    strength: share of the `steps` that is run, in (0, 1]: of S steps the last max(1, round(strength S)). Fewer steps
        preserve more of the image. 1 runs all steps, from x_T ~ q(x_T | x_0): the noise of sample() for this seed,
        with sqrt(ᾱ_T) of the image in it (0.6 % with the linear schedule)
    invert: begin with the DDIM inversion of the image at that level, with the seed's noise only at the lowest level
        (see ddim_inversion). With ddim and the same labels, this leads back to the image
    from_labels: labels that the network is conditioned on during inversion; None: no labels
    The other arguments are those of sample(), and the seeds have the same noise.
    Raises ValueError as sample() does, for a strength outside (0, 1], for images that do not fit the labels or the
    model, and for from_labels without invert.

    >>> import admg, torch
    >>> shirt = torch.full((1, 1, 32, 32), -1.0)
    >>> admg.edit("fashion-mnist", shirt, ["dress", "coat"], strength=0.5, steps=2, progress=False)
    Samples(2 images of 32x32, 1 channel; labels: Dress, Coat)
    """
    model, images = as_model(model), as_images(images)
    numbers = resolve_labels(model, guide, labels, len(images) if is_single(labels) else None)
    check_labels_used(model, guide, unconditional, numbers)
    count = len(numbers)
    if len(images) not in (1, count):
        raise ValueError(
            f"labels must be a single label, or a list of one per image, got {count} for {len(images)} images"
        )
    images = images.expand(count, -1, -1, -1) if len(images) == 1 else images
    check_images(model, images, count)
    check_from_labels(model, from_labels, invert, unconditional)
    if from_labels is not None and is_single(from_labels):
        from_labels = [from_labels] * count  # type: ignore[list-item]
    source = None if from_labels is None else label_tensor(model, from_labels, count)
    recipe = Recipe(
        guide=guide, sampler=sampler, steps=steps, seed=seed, unconditional=unconditional,
        bound_guidance=bound_guidance, batch_size=batch_size, precision=precision, compile=compile,
    )  # fmt: skip

    def start(batch: slice) -> Start:
        return (
            start_from_inversion(images[batch], None if source is None else source[batch])
            if invert
            else start_from_noised(images[batch])
        )

    lowest = lowest_steps(model.respace(steps), strength)
    return draw_samples(BatchSampler(lowest, recipe), numbers, Inputs(start=start), first=first, progress=progress)


def encode(
    model: Model | str | Path,
    images: Images | np.ndarray,
    labels: LabelsArgument = None,
    *,
    strength: float = 1.0,
    steps: int | str = 100,
    seed: int | None = 0,
    guide: Guide | None = None,
    bound_guidance: bool = True,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Images:
    """Return x_T of images (N, C, H, W) by DDIM inversion, or x at the level of a `strength` (see edit).

    labels: labels that the network is conditioned on, one per image; None: no labels
    seed: seed of the noise at the lowest level; None: the network's own prediction, which is too smooth on plain parts
        of an image
    guide: guide of the inversion, with these labels
    The other arguments are those of sample(). Image i gets the same x_T whatever the batch size.
    sample(model, labels, x_T=..., sampler="ddim", steps=steps) leads back to the images, more closely with more steps.
    Raises ValueError as edit() does.

    >>> import admg, torch
    >>> model = admg.load("fashion-mnist")
    >>> x_T = admg.encode(model, torch.full((1, 1, 32, 32), -1.0), steps=2, progress=False)
    >>> x_T.shape
    torch.Size([1, 1, 32, 32])
    """
    model, images = as_model(model), as_images(images)
    check_images(model, images, len(images))
    y = None if labels is None else label_tensor(model, labels, len(images), guide).to(model.device)
    numbers = [None] if y is None else [None if label < 0 else label for label in y.tolist()]
    model = lowest_steps(model.respace(steps), strength)
    noise = None if seed is None else SeededNoise(seed, range(len(images))).draw(model.shape).to(model.device)
    recipe = Recipe(
        guide=guide, bound_guidance=bound_guidance, batch_size=batch_size, precision=precision, compile=compile
    )
    total = len(images) * len(model.diffusion)
    with BatchSampler(model, recipe).ready(numbers) as fast, progress_bar(total, progress, "encoding") as bar:

        def invert(batch: slice) -> Images:
            x = images[batch].to(model.device, dtype_of(model))
            own_y, own_noise = (None if values is None else values[batch] for values in (y, noise))
            guide = fast.recipe.bounded_guide
            with batch_context(batch.start, batch.stop, len(images)):
                for done, step in enumerate(ddim_inversion(fast.model, x, y=own_y, guide=guide, noise=own_noise), 1):
                    latents = step.x
                    bar.update(batch.start * len(model.diffusion) + done * len(x) - bar.n)
            check_finite(latents, batch.start)
            return latents.to("cpu", dtype_of(model))

        return torch.cat([*fast.map_batches(invert, len(images), halve=batch_size is None)])


# -- parts that jobs also use ----------------------------------------------------------------------------------------


def lowest_steps(model: Model, strength: float) -> Model:
    """Return the model with only the last max(1, round(strength S)) of its S steps, those with the least noise.

    Raises ValueError if the strength is outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    own = model.diffusion
    kept = max(1, math.floor(strength * len(own) + 0.5))
    schedule = own.schedule if kept == len(own) else own.schedule.keep(torch.arange(kept))
    return with_fields(model, diffusion=own.with_schedule(schedule))


def start_from_noised(images: Images) -> Start:
    """Return a start at q(x_t | x_0), with the seed's noise."""
    return lambda model, noise, _: model.diffusion.q_sample(images.to(noise), len(model.diffusion) - 1, noise)


def start_from_inversion(images: Images, y: Tensor | None) -> Start:
    """Return a start at the DDIM inversion of the images, conditioned on y (N,), with noise at the lowest level."""

    def start(model: Model, noise: Images, unconditional: bool) -> Images:
        labels = None if y is None else y.to(noise.device)
        options: dict[str, Any] = {"y": labels, "unconditional": unconditional, "noise": noise}
        return last(ddim_inversion(model, images.to(noise), **options))

    return start


def last(steps: Iterator[Step]) -> Images:
    """Return the x of the last step."""
    *_, step = steps
    return step.x


def label_tensor(model: Model, labels: LabelsArgument, count: int, guide: Guide | None = None) -> Tensor:
    """Return label numbers (count,), -1 for no label. Raises ValueError for unknown labels or another number."""
    numbers = resolve_labels(model, guide, labels)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} labels for {count} images")
    return as_tensor(numbers)


def check_from_labels(model: Model, from_labels: LabelsArgument, invert: bool, unconditional: bool) -> None:
    """Raise ValueError for labels of an inversion if there is none, or if the network would not be given them."""
    if from_labels is not None and not invert:
        raise ValueError("from_labels requires invert=True: adding noise to an image needs no label")
    if from_labels is not None and (unconditional or not model.conditional):
        raise ValueError("from_labels must be None for an unconditional inversion")


def as_images(images: Any) -> Images:
    """Return images as a tensor. Raises ValueError for anything but a tensor or an array, such as a path."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "iuf":
        return torch.tensor(images)
    if not isinstance(images, Tensor):
        found = repr(images) if isinstance(images, str | Path) else type(images).__name__
        raise ValueError(
            f"images must be a tensor or an array (N, C, H, W) in [-1, 1], got {found}: "
            "admg.generation.starts.load_images([path], model)[0] opens files"
        )
    return images


def check_images(model: Model, images: Images, count: int) -> None:
    """Raise ValueError unless there are `count` images of the model's size and range, and it does not upsample."""
    if model.upsamples:
        raise ValueError("editing needs a model that makes images from noise, not an upsampling one")
    if images.shape != (count, *model.shape):
        raise ValueError(f"expected images of shape {(count, *model.shape)}, got {tuple(images.shape)}")
    check_signed(images)
