"""Interpolation between two images or two seeds: spherical interpolation of their noise (DDIM, section 5.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Images
from admg.diffusion.noise import SeededNoise
from admg.engine.compiling import Compile
from admg.engine.precision import Precision
from admg.guidance import Guide
from admg.samplers import Sampler

from .edit import encode
from .labels import Label
from .sample import sample
from .samples import Samples

MAX_FRAMES = 10_000


def interpolate(
    model: Model | str | Path,
    ends: Images | tuple[int, int],
    label: Label = None,
    *,
    frames: int = 8,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 100,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Samples:
    """Generate the images between two images, or between the first images of two seeds.

    ends: two images (2, C, H, W) in [-1, 1], which are encoded: the first and the last frame resemble them, more
        closely with more steps (and without a guide); or two seeds
    label: label of all frames; the network is also conditioned on it while it encodes images, without the guide
    frames: number of images, both ends included
    The other arguments are those of sample().
    Raises ValueError as sample() does, and unless there are two ends and at least two frames.

    >>> import admg
    >>> admg.interpolate("fashion-mnist", (0, 1), "sneaker", frames=3, steps=2, progress=False)
    Samples(3 images of 32x32, 1 channel; labels: Sneaker)
    """
    model = as_model(model)
    x_T = frame_noise(model, ends, label, frames=frames, steps=steps, seed=seed, unconditional=unconditional,
                      precision=precision)  # fmt: skip
    return sample(model, [label] * frames, guide=guide, sampler=sampler, steps=steps, seed=seed, batch_size=batch_size,
                  x_T=x_T, unconditional=unconditional, bound_guidance=bound_guidance, precision=precision,
                  compile=compile, progress=progress)  # fmt: skip


def frame_noise(
    model: Model,
    ends: Images | tuple[int, int],
    label: Label,
    *,
    frames: int,
    steps: int | str,
    seed: int,
    unconditional: bool,
    precision: Precision,
) -> Images:
    """Return x_T (frames, C, H, W) of each frame."""
    if len(ends) != 2:
        raise ValueError(f"interpolation needs two ends, got {len(ends)}")
    if not isinstance(ends, Tensor):
        if not all(isinstance(seed, int | np.integer) and seed >= 0 for seed in ends):
            raise ValueError("the ends must be two seeds (non-negative integers) or a tensor of two images")
        return between(seed_noise(model, ends), frames)
    labels = None if label is None or unconditional or not model.conditional else [label] * 2
    return between(encode(model, ends, labels, steps=steps, seed=seed, precision=precision, progress=False), frames)


def seed_noise(model: Model, seeds: Sequence[int]) -> Images:
    """Return x_T of the first image of each seed."""
    return torch.cat([SeededNoise(seed, [0]).draw(model.shape) for seed in seeds])


def between(ends: Images, frames: int) -> Images:
    """Return the slerp of two ends at `frames` evenly spaced positions, both ends included."""
    if not 2 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be from 2 (the two ends) to {MAX_FRAMES:,}, got {frames:,}")
    return torch.stack([slerp(ends[0], ends[1], i / (frames - 1)) for i in range(frames)])


def slerp(a: Float[Tensor, " *s"], b: Float[Tensor, " *s"], t: float) -> Float[Tensor, " *s"]:
    """Return sin((1-t)θ)/sin θ a + sin(tθ)/sin θ b, where θ is the angle between a and b (Shoemake 1985).

    It keeps the variance of noise, which a straight line would reduce to (1-t)² + t². Parallel vectors are
    interpolated linearly.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
    theta = math.acos(max(-1.0, min(1.0, cosine.item())))
    if math.sin(theta) < 1e-4:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)
