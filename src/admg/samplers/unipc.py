"""UniPC (Zhao et al. 2023): a predictor, and a corrector that costs no network call of its own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import Guide

from .levels import Known, Level, advance, level
from .steps import DiffusionModel, NoiseSampler, Step, gaussian_noise, guided_model


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
    """UniPC with B_2(h), for the prediction of x_0: at the point that the last step predicted, the
    model is asked once; what it says corrects that point, and predicts the next one from there.

    order: p of the predictor; with the corrector the method is of order p + 1
    lower_order_final: no higher than the number of steps left; the last step is DDIM's in any case
    The other arguments are those of ddpm(); no noise is drawn. ValueError: order not 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    x, run, diffusion = x_T, guided_model(model, x_T, y, guide, clip, unconditional), model.diffusion
    past: list[Known] = []  # the latest first
    before: tuple[Images, Level] | None = None  # the last step: where it started,
    used = 1  # and its order
    for i in run.indices():
        p, now, then = run.guided(x, i), level(diffusion, i), level(diffusion, i - 1)
        if before and past:
            x = advance(*before, now, past[0].x0, [*past[1:used], Known(now.lam, p.x0)], halved=used == 1)
        if now.alpha > 0:  # a prediction at λ = -inf says nothing of the slope
            past, before = [Known(now.lam, p.x0), *past[: order - 1]], (x, now)
        used = 1 if i == 0 else min(order, max(len(past), 1), i + 1 if lower_order_final else order)
        x = advance(x, now, then, p.x0, past[1:used], halved=True)
        yield run.step(x, p.x0, i)
