"""Samples that begin at images instead of noise: edits (SDEdit), encoding by DDIM inversion, interpolation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion, Images
from admg.engine.compiling import Compile
from admg.engine.memory import in_batches
from admg.engine.precision import Precision, autocast
from admg.guidance import Guide
from admg.samplers import Sampler, Step, ddim_inversion

from .sample import SeededNoise, batch_that_fits, find_sampler, resolve_labels, sample
from .samples import Samples

LabelsAsked = Sequence[int | str | None] | Tensor
Start = Callable[[Model, Images, bool], Images]
"""(model, noise, unconditional) -> the x (N, C, H, W) at the highest step of the model that sampling begins with."""


def edit(
    model: Model,
    images: Images,
    labels: LabelsAsked,
    *,
    strength: float = 0.6,
    invert: bool = False,
    from_labels: LabelsAsked | None = None,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 25,
    seed: int = 0,
    batch_size: int | None = None,
    unconditional: bool = False,
    first: int = 0,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Samples:
    """Images changed towards labels: noised to a level, and sampled from there (SDEdit, Meng et al. 2022).

    images: (N, C, H, W) in [-1, 1], one for each label, or one (1, C, H, W) for all
    strength: the share of the `steps` that is done, in (0, 1]: the lowest k = max(1, round(strength S)) of S. The
        fewer, the more of the image stays. 1 is all of them, from x_T ~ q(x_T | x_0): the noise that sample() has for
        this seed, with sqrt(ᾱ_T) of the image in it (0.6 % with the linear schedule)
    invert: begin with what DDIM's ODE makes of the image at that level, where the seed's noise is at the lowest level
        alone (see ddim_inversion). With ddim and the same labels, that leads back to the image
    from_labels: what the network is told while inverting, names or numbers; None: nothing
    The rest as in sample(), whose seeds it has. ValueError: as sample(); a strength outside (0, 1], images that do not
    fit the labels or the model, from_labels without invert.
    """
    count = len(labels)
    images = images.expand(count, -1, -1, -1) if len(images) == 1 else images
    check_images(model, images, count)
    if from_labels is not None and not invert:
        raise ValueError("from_labels is for invert=True: noising an image asks for no label")
    source = None if from_labels is None else told_labels(model, from_labels, count)
    model = lowest(model.respace(steps), strength)
    size = batch_that_fits(model, guide) if batch_size is None else batch_size

    def make(batch: slice) -> Samples:
        start = encoded(images[batch], None if source is None else source[batch]) if invert else noised(images[batch])
        options: dict[str, Any] = {
            "unconditional": unconditional,
            "precision": precision,
            "compile": compile,
            "progress": progress,
        }
        return sample(model, labels[batch], guide=guide, sampler=begun(find_sampler(sampler), start), seed=seed,
                      steps=len(model.diffusion), batch_size=size, first=first + batch.start, **options)  # fmt: skip

    # with no labels once, so that sample() refuses them
    return joined(list(in_batches(make, max(1, count), max(1, size))))


def encode(
    model: Model,
    images: Images,
    labels: LabelsAsked | None = None,
    *,
    strength: float = 1.0,
    steps: int | str = 100,
    seed: int | None = 0,
    guide: Guide | None = None,
    precision: Precision = "fp32",
) -> Images:
    """x_T of images (N, C, H, W) by DDIM inversion, or x at the level of a `strength` (see edit).

    labels: what the network is told, None: nothing; guide: as ddim_inversion() has it, with these labels
    seed: of the noise at the lowest level; None: the network's, which on plain parts of an image is too smooth
    sample(model, labels, x_T=that, sampler="ddim", steps=steps) leads back, the nearer the more steps. All images are
    encoded at once. ValueError: as edit().
    """
    check_images(model, images, len(images))
    y = None if labels is None else told_labels(model, labels, len(images), guide)
    model = lowest(model.respace(steps), strength)
    noise = None if seed is None else SeededNoise(seed, range(len(images))).draw(model.shape).to(model.device)
    with autocast(precision, model.device):
        x = last(ddim_inversion(model, images.to(model.device), y=y, guide=guide, noise=noise))
    return x.float().cpu()


def interpolate(
    model: Model,
    ends: Images | tuple[int, int],
    label: int | str | None = None,
    *,
    frames: int = 8,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 100,
    seed: int = 0,
    batch_size: int | None = None,
    unconditional: bool = False,
    precision: Precision = "fp32",
    progress: bool = True,
) -> Samples:
    """Images on the way from one to another: their x_T are between those of the two, by slerp (DDIM, section 5.3).

    ends: two images (2, C, H, W) in [-1, 1], which are encoded, so that the first and the last frame are nearly they,
        the nearer the more steps (and with no guide); or two seeds, so that these frames are image 0 of each
    label: what all of it is told, the encoding of images too, which is without the guide
    frames: with both ends. The rest as in sample().
    ValueError: as sample(); fewer than two frames, not two ends.
    """
    if len(ends) != 2:
        raise ValueError(f"interpolation is between two ends, not {len(ends)}")
    if isinstance(ends, Tensor):
        labels = None if label is None or unconditional else [label] * 2
        noise = encode(model, ends, labels, steps=steps, seed=seed, precision=precision)
    else:
        noise = seed_noise(model, ends)
    x_T = between(noise, frames)
    return sample(model, [label] * frames, guide=guide, sampler=sampler, steps=steps, seed=seed, batch_size=batch_size,
                  x_T=x_T, unconditional=unconditional, precision=precision, progress=progress)  # fmt: skip


def seed_noise(model: Model, seeds: Sequence[int]) -> Images:
    """x_T of image 0 of each seed."""
    return torch.cat([SeededNoise(seed, [0]).draw(model.shape) for seed in seeds])


def between(ends: Images, frames: int) -> Images:
    """slerp of two ends at `frames` even places, both ends with them."""
    if frames < 2:
        raise ValueError(f"interpolation has at least the two frames at its ends, not {frames}")
    return torch.stack([slerp(ends[0], ends[1], i / (frames - 1)) for i in range(frames)])


def slerp(a: Float[Tensor, " *s"], b: Float[Tensor, " *s"], t: float) -> Float[Tensor, " *s"]:
    """Spherical interpolation (Shoemake 1985): sin((1-t)θ)/sin θ a + sin(tθ)/sin θ b, θ the angle between a and b.

    Noise of variance 1 keeps it on the way, where a straight line would have (1-t)² + t². Parallel ones: the line.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
    theta = math.acos(max(-1.0, min(1.0, cosine.item())))
    if math.sin(theta) < 1e-4:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


# -- parts, of which a command makes the same ------------------------------------------------------------------------


def lowest(model: Model, strength: float) -> Model:
    """The model with the lowest max(1, round(strength S)) of its S steps alone. ValueError: strength outside (0, 1]."""
    if not 0 < strength <= 1:
        raise ValueError(f"the strength of an edit must be above 0 and at most 1, got {strength}")
    own = model.diffusion
    kept = max(1, math.floor(strength * len(own) + 0.5))
    schedule = own.schedule if kept == len(own) else own.schedule.keep(torch.arange(kept))
    return dataclasses.replace(model, diffusion=Diffusion(schedule, own.predicts, own.variance))


def noised(images: Images) -> Start:
    """q(x_t | x_0), with the noise that sampling would begin with."""
    return lambda model, noise, _: model.diffusion.q_sample(images.to(noise), len(model.diffusion) - 1, noise)


def encoded(images: Images, y: Tensor | None) -> Start:
    """The end of DDIM's inversion, the network told y (N,), with the noise at the lowest level."""

    def start(model: Model, noise: Images, unconditional: bool) -> Images:
        told = None if y is None else y.to(noise.device)
        return last(ddim_inversion(model, images.to(noise), y=told, unconditional=unconditional, noise=noise))

    return start


def begun(sampler: Sampler, start: Start) -> Sampler:
    """The sampler, beginning where `start` says instead of with the noise that it is given."""

    def wrapped(model: Model, x_T: Images, *, unconditional: bool = False, **options: Any) -> Iterator[Step]:
        yield from sampler(model, start(model, x_T, unconditional), unconditional=unconditional, **options)

    return wrapped


def last(steps: Iterator[Step]) -> Images:
    """The x of the last step."""
    *_, step = steps
    return step.x


def told_labels(model: Model, labels: LabelsAsked, count: int, guide: Guide | None = None) -> Tensor:
    """(count,), -1 for None. ValueError: unknown ones, or of another number."""
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    return torch.tensor([-1 if n is None else n for n in resolve_labels(model, guide, labels)], dtype=torch.int64)


def check_images(model: Model, images: Images, count: int) -> None:
    """ValueError: not `count` images of the model's size, or an upsampling model."""
    if model.upsamples:
        raise ValueError("editing is for models that make images from noise, not for an upsampling one")
    if images.shape != (count, *model.shape):
        raise ValueError(f"images of shape {tuple(images.shape)}: needed is {(count, *model.shape)}")


def joined(parts: Sequence[Samples]) -> Samples:
    """Several batches as one."""
    names = tuple(name for part in parts for name in part.label_names)
    return Samples(torch.cat([part.x for part in parts]), torch.cat([part.labels for part in parts]), names)
