"""DDIM (Song et al. 2021), guided by Algorithm 2 of Dhariwal & Nichol 2021."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import Guide

from .steps import DiffusionModel, NoiseSampler, Step, gaussian_noise, guided_model


def ddim(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    eta: float = 0.0,
    clip: bool = True,
    unconditional: bool = False,
) -> Iterator[Step]:
    """Algorithm 2: ε̂ = ε - sqrt(1 - ᾱ) g, then the DDIM step with ε̂, where g is the guide's score (s ∇ log p(y | x_t)).

    eta: 0 is deterministic, 1 has the variance of DDPM's fixed_small. The rest as in ddpm().
    ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional, takes_both=True), model.diffusion
    for i in run.indices():
        p = run.guided(x, i)  # Algorithm 2: ε̂ = ε - sqrt(1 - ᾱ) g, and x0 from ε̂

        alpha_bar, alpha_bar_prev = diffusion.at("alpha_bar", i), diffusion.at("alpha_bar_prev", i)
        sigma = eta * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))  # eq. 16
        x_i = x
        x = math.sqrt(alpha_bar_prev) * p.x0 + math.sqrt(1 - alpha_bar_prev - sigma**2) * p.eps  # DDIM, equation 12
        if sigma > 0:
            x = x + sigma * noise_sampler(x_i, i)
        yield run.step(x, p.x0, i)
