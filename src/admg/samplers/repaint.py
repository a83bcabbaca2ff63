"""RePaint (Lugmayr et al. 2022): inpainting by ancestral sampling that goes back up, so that both parts agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images
from admg.guidance import Guide, Mask

from .steps import DiffusionModel, NoiseSampler, Sampler, Step, gaussian_noise, guided_model


def repaint(known: Images, mask: Tensor, *, jump_length: int = 10, resamplings: int = 10) -> Sampler:
    """A sampler, called as ddpm() is, whose images have the pixels of `known` where the mask is true.

    Algorithm 1 with the jumps of the paper's section 4.2: in each step the known pixels are noised images of `known`,
    the others ddpm's; at every jump_length-th level, x is noised back by jump_length levels and denoised again, so that
    it comes down to it `resamplings` times, and the network is called nearly as many times as often.

    known: (1, C, H, W), or one for each image; in [-1, 1]; mask: bool (H, W) or (C, H, W), true where known
    jump_length: j; resamplings: r, 1 is without jumps; the paper has 10 and 10 with 250 steps
    A Step is yielded when its level is left for good. ValueError: a mask or known images of another shape; a j or r
    below 1; with jumps, a j that is not below the number of steps.
    """
    if known.ndim != 4:
        raise ValueError(f"the known images have shape (1 or N, C, H, W), not {tuple(known.shape)}")
    Mask(mask)(known)  # checks
    if jump_length < 1 or resamplings < 1:
        raise ValueError(f"jump_length and resamplings must be at least 1, got {jump_length} and {resamplings}")
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
    if known.shape[1:] != x_T.shape[1:] or len(known) not in (1, len(x_T)):
        raise ValueError(f"known images of shape {tuple(known.shape)} for samples {tuple(x_T.shape)}")
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    known, mask = known.to(x_T), mask.to(x_T.device)
    for i, rise, last in path(len(diffusion), jump_length, resamplings):
        p, g = run.predict(x, i)
        mean = p.mean if g is None else p.mean + p.variance * g  # as in ddpm()
        if i > 0:
            noise = noise_sampler(x, i)  # for both parts, which share no pixel
            unknown = mean + (0.5 * p.log_variance).exp() * noise
            x = torch.where(mask, diffusion.q_sample(known, i - 1, noise), unknown)
        else:
            x = torch.where(mask, known, mean)
        if rise:
            x = noised_up(diffusion, x, i - 1, i - 1 + rise, noise_sampler)
        if last:
            yield run.step(x, p.x0, i)


def path(steps: int, jump_length: int, resamplings: int) -> Iterator[tuple[int, int, bool]]:
    """(i, rise, last): the index of each denoising step, from i to i - 1; by how many levels x then rises, or 0; and
    whether it is the last one from i.

    ValueError: jumps as long as the whole way.
    """
    if resamplings > 1 and jump_length >= steps:
        raise ValueError(f"RePaint's jumps must be shorter than the {steps} steps, got a jump_length of {jump_length}")
    left = {level: resamplings - 1 for level in range(0, steps - jump_length, jump_length)}
    i = steps - 1
    while i >= 0:
        below = (i - 1) // jump_length * jump_length  # the only level that may lead to i again
        last = left.get(below, 0) == 0
        rise = 0 if last or below < i - 1 else jump_length
        if rise:
            left[below] -= 1
        yield i, rise, last
        i += rise - 1


def noised_up(diffusion: Diffusion, x: Images, low: int, high: int, noise_sampler: NoiseSampler) -> Images:
    """x_high ~ q(x_high | x_low), all steps between in one."""
    kept = diffusion.at("alpha_bar", high) / diffusion.at("alpha_bar", low)
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * noise_sampler(x, high)
