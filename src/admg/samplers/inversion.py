"""DDIM's ODE upwards: the x_T that an image comes from (Song et al. 2021, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images, Prediction
from admg.guidance import Guide

from .levels import Level, level
from .steps import DiffusionModel, GuidedModel, Step, guided_model


def ddim_inversion(
    model: DiffusionModel,
    x0: Images,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    clip: bool = True,
    unconditional: bool = False,
    noise: Images | None = None,
) -> Iterator[Step]:
    """Encode images x0 (N, C, H, W): as many steps as ddim() has, from the image up to x_T, the x of the last one.

    ddim(model, x_T) with the same labels and guide leads back to the image, within an error that falls with the number
    of steps. Step.t is what the network was told, the level at which the step began; the step from the image, whose
    level no network knows, takes the lowest one. The arguments are those of ddpm().

    noise: like x0, standard normal: what the image gets in that step, instead of what the network takes for its noise.
        Of an image with none at all, such as on a plain background, x_T is smoother than noise; with this it is not.
    """
    return _upwards(guided_model(model, x0, y, guide, clip, unconditional), x0, noise)


def _upwards(
    run: GuidedModel, x: Images, noise: Images | None
) -> Iterator[Step]:  # apart, since a generator function is
    diffusion = run.model.diffusion  # a sampler to sample()
    lowest = level(diffusion, 0)
    if noise is not None:
        x, x0 = lowest.alpha * x + lowest.sigma * noise, x
    else:
        p = run.guided(lowest.alpha * x, 0)
        x, x0 = lowest.alpha * x + lowest.sigma * p.eps, p.x0
    yield run.step(x, x0, 0)
    for i in range(len(diffusion) - 1):
        p = run.guided(x, i)
        x = ddim_reverse(diffusion, p, i)
        yield run.step(x, p.x0, i)


def ddim_reverse(diffusion: Diffusion, p: Prediction, index: int) -> Images:
    """x_{t+1} from the prediction at x_t: DDIM's equation 12 with the next level up; after the highest, pure noise."""
    above = level(diffusion, index + 1) if index + 1 < len(diffusion) else Level(0.0, 1.0)
    return above.alpha * p.x0 + above.sigma * p.eps
