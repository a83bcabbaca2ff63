"""RePaint (Lugmayr et al. 2022): inpainting by ancestral sampling with resampling jumps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from admg.config import check_integer
from admg.diffusion.gaussian import Diffusion, Images
from admg.diffusion.signed import check_signed
from admg.guidance import DiffusionModel, Guide
from admg.guidance.operators import Mask
from admg.guidance.rows import select_batch_rows

from .base import NoiseSampler, Sampler, Step, gaussian_noise, guided_model


def repaint(known: Images, mask: Tensor, *, jump_length: int = 10, resamplings: int = 10) -> Sampler:
    """Return a sampler, called as ddpm(), whose images have the pixels of `known` where the mask is true.

    This is the paper's Algorithm 1 with the jumps of its section 4.2. In each step the known pixels are noised pixels
    of `known`, and the others are those of ddpm. At every jump_length-th level, x is noised by jump_length levels and
    denoised again until it has reached the level `resamplings` times, so the network is evaluated nearly that many
    times as often. A Step is yielded when its level is left for the last time.

    known: images in [-1, 1], (1, C, H, W) or (N, C, H, W)
    mask: bool (H, W) or (C, H, W), true where pixels are known
    jump_length: length j of the jumps in steps; 10 in the paper, with 250 steps
    resamplings: number r of passes; 1 makes no jumps; 10 in the paper

    Raises ValueError if shapes do not fit, if j or r is below 1, or if j is not below the number of steps.
    """
    if known.ndim != 4:
        raise ValueError(f"the known images must have shape (1 or N, C, H, W), got {tuple(known.shape)}")
    Mask(mask)(known)  # raises ValueError if the shapes do not fit
    check_integer("jump_length", jump_length)
    check_integer("resamplings", resamplings)
    return partial(_repaint, known, mask, jump_length, resamplings)


def _repaint(
    known: Images,
    mask: Tensor,
    jump_length: int,
    resamplings: int,
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
) -> Iterator[Step]:
    known = select_batch_rows(known, len(x_T), "the known images")
    if known.shape[1:] != x_T.shape[1:] or len(known) not in (1, len(x_T)):
        raise ValueError(
            f"the known images must have shape {tuple(x_T.shape)}, or be one image, got {tuple(known.shape)}"
        )
    check_signed(known, "the known images")
    x, guided, diffusion = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    known, mask = known.to(x_T), mask.to(x_T.device)
    for i, rise, last in jump_schedule(len(diffusion), jump_length, resamplings):
        p, g = guided.predict(x, i)
        mean = p.mean if g is None else p.mean + p.variance * g  # Algorithm 1
        if i > 0:
            noise = noise_sampler(x, i)  # shared by both parts, which have no pixel in common
            unknown = mean + (0.5 * p.log_variance).exp() * noise
            x = torch.where(mask, diffusion.q_sample(known, i - 1, noise), unknown)
        else:
            x = torch.where(mask, known, mean)
        if rise:
            x = renoise(diffusion, x, i - 1, i - 1 + rise, noise_sampler)
        if last:
            yield guided.step(x, p.x0, i)


def jump_schedule(steps: int, jump_length: int, resamplings: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (i, rise, last) for each denoising step from i to i - 1.

    rise: number of levels by which x is noised afterwards
    last: whether this is the last step from i

    Raises ValueError if the jumps are not shorter than the number of steps.
    """
    if resamplings > 1 and jump_length >= steps:
        raise ValueError(f"jump_length must be less than the number of steps, {steps}, got {jump_length}")
    remaining = {level: resamplings - 1 for level in range(0, steps - jump_length, jump_length)}
    i = steps - 1
    while i >= 0:
        below = (i - 1) // jump_length * jump_length  # the only level from which a jump can lead to i again
        last = remaining.get(below, 0) == 0
        rise = 0 if last or below < i - 1 else jump_length
        if rise:
            remaining[below] -= 1
        yield i, rise, last
        i += rise - 1


def renoise(diffusion: Diffusion, x: Images, low: int, high: int, noise_sampler: NoiseSampler) -> Images:
    """Return a sample x_high ~ q(x_high | x_low), all steps between them at once."""
    ratio = (diffusion.schedule.alpha_bar[high] / diffusion.schedule.alpha_bar[low]).item()
    return math.sqrt(ratio) * x + math.sqrt(1 - ratio) * noise_sampler(x, high)
