"""Ancestral sampling (Ho et al. 2020), guided by Algorithm 1 of Dhariwal & Nichol 2021."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import Guide

from .steps import DiffusionModel, NoiseSampler, Step, gaussian_noise, guided_model


def ddpm(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
) -> Iterator[Step]:
    """Algorithm 1: x_{t-1} ~ N(μ + Σ g, Σ) with the model's own Σ, where g is the guide's score (s ∇ log p(y | x_t)).

    x_T: (N, C, H, W) standard normal; y: (N,) wanted labels; clip: x0 to [-1, 1] before μ is derived from it
    unconditional: do not tell y to a conditional network, only to the guide
    """
    x, run = x_T, guided_model(model, x_T, y, guide, clip, unconditional)
    for i in run.indices():
        p, g = run.predict(x, i)
        mean = p.mean if g is None else p.mean + p.variance * g  # Algorithm 1
        x = mean if i == 0 else mean + (0.5 * p.log_variance).exp() * noise_sampler(x, i)
        yield run.step(x, p.x0, i)
