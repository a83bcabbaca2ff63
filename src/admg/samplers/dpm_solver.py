"""DPM-Solver++ (Lu et al. 2022): multistep methods for the prediction of x_0, of one network call a step."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import Guide

from .levels import Known, advance, level
from .steps import DiffusionModel, NoiseSampler, Step, gaussian_noise, guided_model


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
    """DPM-Solver++(2M), Algorithm 2: x_0 of two steps, extrapolated to the middle of the next one; second order.

    The first step and the last, to the clean image, are DDIM's. The arguments are those of ddpm(); no noise is drawn.
    """
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    last: Known | None = None
    for i in run.indices():
        p, now, then = run.guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        h = then.lam - now.lam
        d = p.x0 if i == 0 else _midpoint(p.x0, now.lam, h, last)
        x = then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * d  # Algorithm 2, line 9
        last = Known(now.lam, p.x0)
        yield run.step(x, p.x0, i)


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
    """SDE-DPM-Solver++(2M), the paper's appendix: as dpmpp_2m(), of the reverse SDE, with fresh noise in each step.

    The last step, to the clean image, has no noise. The arguments are those of ddpm().
    """
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    last: Known | None = None
    for i in run.indices():
        p, now, then = run.guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        h = then.lam - now.lam
        d = p.x0 if i == 0 else _midpoint(p.x0, now.lam, h, last)
        x_i = x
        x = then.sigma / now.sigma * math.exp(-h) * x - then.alpha * math.expm1(-2 * h) * d
        if i > 0:
            x = x + then.sigma * math.sqrt(-math.expm1(-2 * h)) * noise_sampler(x_i, i)
        last = Known(now.lam, p.x0)
        yield run.step(x, p.x0, i)


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
    """DPM-Solver++(3M): x_0 of three steps as a parabola in λ, integrated exactly; third order.

    (diffusers gives the second difference half of the integral's weight, and so converges as 2M; see levels.advance.)
    The first two steps are of lower order, and the last is DDIM's. The other arguments are those of ddpm().

    lower_order_final: with fewer than 15 steps, the last but one is of second order as well
    """
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    past: list[Known] = []  # the latest first
    for i in run.indices():
        p, now, then = run.guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        highest = 1 if i == 0 else 2 if i == 1 and lower_order_final and len(diffusion) < 15 else 3
        x = advance(x, now, then, p.x0, past[: highest - 1])
        if now.alpha > 0:  # a prediction at λ = -inf says nothing of the slope
            past = [Known(now.lam, p.x0), *past[:1]]
        yield run.step(x, p.x0, i)


def _midpoint(x0: Images, lam: float, h: float, last: Known | None) -> Images:
    """x_0 half a step h ahead, on the line through the prediction now and the last one."""
    if last is None:
        return x0
    r = (lam - last.lam) / h
    return x0 + (x0 - last.x0) / (2 * r)  # Algorithm 2, line 8; r is inf after a step from ᾱ = 0
