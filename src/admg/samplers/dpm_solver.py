"""DPM-Solver++ (Lu et al. 2022): multistep methods for predictions of x_0, with one network call per step."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import DiffusionModel, Guide

from .base import NoiseSampler, Step, gaussian_noise, guided_model
from .levels import PastPrediction, advance, level


def dpmpp_2m(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
) -> Iterator[Step]:
    """Sample with DPM-Solver++(2M), Algorithm 2 of the paper, a method of second order.

    x_0 of two steps is extrapolated to the middle of the next one. The first step and the last, to the clean image, are
    DDIM steps. The arguments are those of ddpm(); no noise is drawn.
    """
    x, guided, diffusion = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    last: PastPrediction | None = None
    for i in guided.indices():
        p, now, then = guided.predict_guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        h = then.lam - now.lam
        d = p.x0 if i == 0 else _midpoint(p.x0, now.lam, h, last)
        x = then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * d  # Algorithm 2, line 9
        last = PastPrediction(now.lam, p.x0)
        yield guided.step(x, p.x0, i)


def dpmpp_2m_sde(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
) -> Iterator[Step]:
    """Sample with SDE-DPM-Solver++(2M) (the paper's appendix): dpmpp_2m() for the reverse SDE, with noise in each step.

    The last step, to the clean image, adds no noise. The arguments are those of ddpm().
    """
    x, guided, diffusion = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    last: PastPrediction | None = None
    for i in guided.indices():
        p, now, then = guided.predict_guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        h = then.lam - now.lam
        d = p.x0 if i == 0 else _midpoint(p.x0, now.lam, h, last)
        x_i = x
        x = then.sigma / now.sigma * math.exp(-h) * x - then.alpha * math.expm1(-2 * h) * d
        if i > 0:
            x = x + then.sigma * math.sqrt(-math.expm1(-2 * h)) * noise_sampler(x_i, i)
        last = PastPrediction(now.lam, p.x0)
        yield guided.step(x, p.x0, i)


def dpmpp_3m(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """Sample with DPM-Solver++(3M), a method of third order: x_0 of three steps is a parabola in λ, integrated exactly.

    The first two steps are of lower order, and the last is a DDIM step. (diffusers gives the second difference half of
    the integral's weight and therefore converges as 2M does; see levels.advance.)

    lower_order_final: whether the last step but one is of second order if there are fewer than 15 steps

    The other arguments are those of ddpm(); no noise is drawn.
    """
    x, guided, diffusion = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    past: list[PastPrediction] = []  # the latest one first
    for i in guided.indices():
        p, now, then = guided.predict_guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        highest = 1 if i == 0 else 2 if i == 1 and lower_order_final and len(diffusion) < 15 else 3
        x = advance(x, now, then, p.x0, past[: highest - 1])
        if now.alpha > 0:  # a prediction at λ = -inf does not determine a slope
            past = [PastPrediction(now.lam, p.x0), *past[:1]]
        yield guided.step(x, p.x0, i)


def _midpoint(x0: Images, lam: float, h: float, last: PastPrediction | None) -> Images:
    """Return x_0 half a step h ahead, on the line through this prediction and the last one."""
    if last is None:
        return x0
    r = (lam - last.lam) / h
    return x0 + (x0 - last.x0) / (2 * r)  # Algorithm 2, line 8; r is inf after a step from ᾱ = 0
