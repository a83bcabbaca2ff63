"""Heun's second-order method (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based ...", EDM)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from admg.config import with_fields
from admg.diffusion.gaussian import Images
from admg.guidance import DiffusionModel, Guide

from .base import GuidedModel, NoiseSampler, Step, gaussian_noise, guided_model
from .levels import level

MAX_SIGMA_RATIO = 100.0  # largest factor by which σ falls in a second-order step


def heun(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Sample with EDM's Algorithm 2, in the variables x/sqrt(ᾱ) and σ = sqrt((1 - ᾱ)/ᾱ), for which dx/dσ = ε.

    Each step is an Euler step, which is DDIM's, and is then repeated with the mean of ε at its two ends. The model is
    evaluated twice per step. The last step is an Euler step alone, and so is any step over which σ falls more than a
    hundredfold, such as the first one of a cosine schedule with evenly spaced steps, or one from ᾱ = 0, where σ is
    infinite. In such a step, the mean of ε would magnify the change of the predicted x0 by σ/(2σ').

    s_churn: amount of noise added before each of the N steps with σ in [s_min, s_max]: σ rises by the fraction
        min(s_churn/N, √2 - 1), rounded to a level that the network was trained at; 0 is deterministic
    s_min: lowest σ at which noise is added
    s_max: highest σ at which noise is added
    s_noise: standard deviation of that noise

    The other arguments are those of ddpm(). Raises ValueError if s_churn or s_noise is negative, or unless
    0 <= s_min <= s_max.
    """
    if not (s_churn >= 0 and s_noise >= 0):
        raise ValueError(f"s_churn and s_noise must not be negative, got {s_churn} and {s_noise}")
    if not 0 <= s_min <= s_max:
        raise ValueError(f"s_min and s_max must satisfy 0 <= s_min <= s_max, got {s_min} and {s_max}")
    x, guided, diffusion = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    gamma = min(s_churn / len(diffusion), math.sqrt(2) - 1)
    for i in guided.indices():
        raised = _with_raised_level(guided, i, gamma, s_min, s_max)
        current, noised, target = level(diffusion, i), level(raised.model.diffusion, i), level(diffusion, i - 1)
        if noised.alpha < current.alpha:  # x̂ = x + sqrt(σ̂² - σ²) S_noise ε
            more = math.sqrt((noised.sigma / noised.alpha) ** 2 - (current.sigma / current.alpha) ** 2)
            x = noised.alpha * (x / current.alpha + more * s_noise * noise_sampler(x, i))
        p = raised.predict_guided(x, i)
        x = target.alpha * p.x0 + target.sigma * p.eps  # Euler: x̂ + (σ' - σ̂) ε
        if i > 0 and noised.sigma * target.alpha <= MAX_SIGMA_RATIO * target.sigma * noised.alpha:
            slope = guided.predict_guided(x, i - 1).eps
            change = target.sigma / target.alpha - noised.sigma / noised.alpha  # σ' - σ̂
            x = x + target.alpha * change * (slope - p.eps) / 2  # (ε + ε')/2 in place of ε
        yield raised.step(x, p.x0, i)


def _with_raised_level(guided: GuidedModel, index: int, gamma: float, low: float, high: float) -> GuidedModel:
    """Return the model with (1 + gamma) σ in place of the noise level σ at an index, if σ is in [low, high].

    The network knows only the levels of its training, so the nearest one of the full schedule is taken.
    """
    if gamma == 0:
        return guided
    diffusion = guided.model.diffusion
    origin = diffusion.schedule.origin or diffusion.schedule
    sigmas = (1 / origin.alpha_bar - 1).sqrt()
    at = torch.searchsorted(origin.timesteps, diffusion.schedule.timesteps).tolist()
    own, sigma = at[index], sigmas[at[index]]
    raised = int((sigmas.log() - (sigma * (1 + gamma)).log()).abs().argmin())
    if raised <= own or not low <= sigma <= high:
        return guided
    kept = [*at[:index], raised, *(k for k in at[index + 1 :] if k > raised)]
    denser = diffusion.with_schedule(origin.keep(torch.tensor(kept)))
    return replace(guided, model=with_fields(guided.model, diffusion=denser))
