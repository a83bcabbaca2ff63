"""DDIM inversion: the x_T from which an image is sampled (Song et al. 2021, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images, Prediction
from admg.guidance import DiffusionModel, Guide

from .base import GuidedModel, Step, guided_model
from .levels import Level, level


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
    """Encode images x0 (N, C, H, W) as noise by following DDIM's ODE upwards. The x of the last step is x_T.

    ddim(model, x_T) with the same labels and guide leads back to the image, up to an error that falls with the number
    of steps. There is one step more than in ddim: the first one leads from the image, whose noise level the network
    does not know, to the lowest level. Step.t is the timestep given to the network.

    noise: standard normal noise like x0 to use in the first step, instead of the network's prediction. It keeps x_T
        from being smoother than noise where the image has no noise at all, for example on a plain background

    The other arguments are those of ddpm().
    """
    return _invert(guided_model(model, x0, y, guide, clip, unconditional), x0, noise)


# A separate function, since sample() treats every generator function of this package as a sampler.
def _invert(guided: GuidedModel, x: Images, noise: Images | None) -> Iterator[Step]:
    diffusion = guided.model.diffusion
    lowest = level(diffusion, 0)
    if noise is not None:
        x, x0 = lowest.alpha * x + lowest.sigma * noise, x
    else:
        p = guided.predict_guided(lowest.alpha * x, 0)
        x, x0 = lowest.alpha * x + lowest.sigma * p.eps, p.x0
    yield guided.step(x, x0, 0)
    for i in range(len(diffusion) - 1):
        p = guided.predict_guided(x, i)
        x = ddim_reverse(diffusion, p, i)
        yield guided.step(x, p.x0, i)


def ddim_reverse(diffusion: Diffusion, p: Prediction, index: int) -> Images:
    """Return x_{t+1} from the prediction at x_t (DDIM, equation 12, upwards). Above the highest level is pure noise."""
    above = level(diffusion, index + 1) if index + 1 < len(diffusion) else Level(0.0, 1.0)
    return above.alpha * p.x0 + above.sigma * p.eps
