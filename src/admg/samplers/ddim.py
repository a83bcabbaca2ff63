"""DDIM (Song et al. 2021), guided by Algorithm 2 of Dhariwal & Nichol 2021."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import DiffusionModel, Guide

from .base import NoiseSampler, Step, gaussian_noise, guided_model


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
    """Sample with the DDIM step of ε̂ = ε - sqrt(1 - ᾱ) g, where g = s ∇ log p(y | x_t) is the guide's gradient.

    eta: amount of noise in [0, 1]; 0 is deterministic, 1 has the variance of DDPM's `fixed_small`

    The other arguments are those of ddpm(). Raises ValueError if eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    x, guided = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional)
    schedule = model.diffusion.schedule
    for i in guided.indices():
        p, g = guided.predict(x, i)
        eps, x0 = p.eps, p.x0
        alpha_bar, alpha_bar_prev = schedule.alpha_bar[i].item(), schedule.alpha_bar_prev[i].item()
        if g is not None:
            eps = p.eps - sqrt(1 - alpha_bar) * g  # Algorithm 2
            x0 = model.diffusion.x0_from_eps(x, i, eps)
        sigma = eta * sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))  # DDIM, eq. 16
        noise = noise_sampler(x, i) if sigma > 0 else 0.0
        kept = sqrt(max(0.0, 1 - alpha_bar_prev - sigma**2))  # 0 from pure noise with eta = 1, up to rounding
        x = sqrt(alpha_bar_prev) * x0 + kept * eps + sigma * noise  # DDIM, equation 12
        yield guided.step(x, x0, i)
