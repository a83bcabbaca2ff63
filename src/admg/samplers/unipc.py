"""UniPC (Zhao et al. 2023): a predictor-corrector method with one network call per step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import DiffusionModel, Guide

from .base import NoiseSampler, Step, gaussian_noise, guided_model
from .levels import Level, PastPrediction, advance, level


def unipc(
    model: DiffusionModel,
    x_T: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
    order: int = 2,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """Sample with UniPC and B_2(h), for predictions of x_0.

    The model is evaluated once per step, at the point that the last step predicted. The result corrects that point and
    predicts the next one from it.

    order: order p of the predictor, 1, 2 or 3; with the corrector the method has order p + 1, but with order=3 and
        lower_order_final it has order 3
    lower_order_final: whether p is at most the number of remaining steps, which is more stable with few steps. Then the
        last step but one has p = 2, and nothing corrects its result. The last step is always a DDIM step

    The other arguments are those of ddpm(); no noise is drawn. Raises ValueError if the order is not 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    x, guided, diffusion = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    past: list[PastPrediction] = []  # the latest one first
    start: tuple[Images, Level] | None = None  # where the last step started
    used = 1  # order of the last step
    for i in guided.indices():
        p, now, then = guided.predict_guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        if start and past:
            x = advance(*start, now, past[0].x0, [*past[1:used], PastPrediction(now.lam, p.x0)], halved=used == 1)
        if now.alpha > 0:  # a prediction at λ = -inf does not determine a slope
            past, start = [PastPrediction(now.lam, p.x0), *past[: order - 1]], (x, now)
        used = 1 if i == 0 else min(order, max(len(past), 1), i + 1 if lower_order_final else order)
        x = advance(x, now, then, p.x0, past[1:used], halved=True)
        yield guided.step(x, p.x0, i)
