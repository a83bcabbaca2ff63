"""Heun's second-order method (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based ...", EDM)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images
from admg.guidance import Guide

from .levels import level
from .steps import DiffusionModel, NoiseSampler, Step, gaussian_noise, guided_model


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
    """EDM's Algorithm 2, in x/sqrt(ᾱ) and σ = sqrt((1 - ᾱ)/ᾱ), where dx/dσ = ε: Euler's step, which is DDIM's, and then
    the mean of ε at both of its ends; the last step is Euler's alone. It asks the model twice a step.

    s_churn: noise before each of N steps with σ in [s_min, s_max]: σ rises by the fraction min(s_churn/N, √2 - 1),
        then to the nearest level that the network was trained at, of which none is above the first; 0 is deterministic
    s_noise: the deviation of that noise
    The other arguments are those of ddpm(). From ᾱ = 0, where σ is infinite, the step is DDIM's as well.
    ValueError: a negative s_churn or s_noise.
    """
    if not (s_churn >= 0 and s_noise >= 0):
        raise ValueError(f"s_churn and s_noise must not be negative, got {s_churn} and {s_noise}")
    steps = len(model.diffusion)
    model, own, raised = _with_raised_levels(model, min(s_churn / steps, math.sqrt(2) - 1), s_min, s_max)
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    for i in range(steps - 1, -1, -1):
        now, hat, then = (level(diffusion, k) for k in (own[i], raised[i], own[i - 1] if i else -1))
        if raised[i] > own[i]:  # x̂ = x + sqrt(σ̂² - σ²) S_noise ε
            more = math.sqrt((hat.sigma / hat.alpha) ** 2 - (now.sigma / now.alpha) ** 2)
            x = hat.alpha * (x / now.alpha + more * s_noise * noise_sampler(x, i))
        p = run.guided(x, raised[i])
        x = then.alpha * p.x0 + then.sigma * p.eps  # Euler: x̂ + (σ' - σ̂) ε
        if i > 0 and hat.alpha > 0:
            slope = run.guided(x, own[i - 1]).eps
            change = then.sigma / then.alpha - hat.sigma / hat.alpha  # σ' - σ̂
            x = x + then.alpha * change * (slope - p.eps) / 2  # (ε + ε')/2 in place of ε
        yield replace(run.step(x, p.x0, raised[i]), index=i)


def _with_raised_levels(model: Any, gamma: float, low: float, high: float) -> tuple[Any, list[int], list[int]]:
    """The model with further levels for its schedule; for each step its index there, and that of (1 + gamma) σ.

    The network can be asked at the levels of its training alone, so these are of the schedule's origin.
    """
    diffusion = model.diffusion
    schedule, every = diffusion.schedule, list(range(len(diffusion)))
    if gamma == 0:
        return model, every, every
    origin = schedule.origin or schedule
    sigmas = (1 / origin.alphas_cumprod - 1).sqrt()
    at = [int((origin.timesteps == t).nonzero()) for t in schedule.timesteps]
    raised = [
        max(k, int((sigmas.log() - (sigmas[k] * (1 + gamma)).log()).abs().argmin())) if low <= sigmas[k] <= high else k
        for k in at
    ]
    kept = sorted({*at, *raised})
    denser = Diffusion(origin.keep(torch.tensor(kept)), diffusion.predicts, diffusion.variance)
    return replace(model, diffusion=denser), [kept.index(k) for k in at], [kept.index(k) for k in raised]
