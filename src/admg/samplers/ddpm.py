"""Ancestral sampling (Ho et al. 2020), guided by Algorithm 1 of Dhariwal & Nichol 2021."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from admg.diffusion.gaussian import Images
from admg.guidance import DiffusionModel, Guide

from .base import NoiseSampler, Step, gaussian_noise, guided_model


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
    """Sample x_{t-1} ~ N(μ + Σ g, Σ) with the model's own Σ, where g = s ∇ log p(y | x_t) is the guide's gradient.

    model: a Model, or any object with `diffusion`, `conditional` and `predict`; see guidance.state.DiffusionModel
    x_T: standard normal noise (N, C, H, W)
    y: target labels (N,)
    guide: guide, for example ClassifierGuidance(classifier, scale)
    noise_sampler: function (x, index) -> noise of a step
    clip: whether x0 is clipped to [-1, 1] before μ is derived from it
    unconditional: if True, the network is not conditioned on y; the guide still uses it

    Yields a Step after each of the len(model.diffusion) steps; Step.x of the last one holds the samples (N, C, H, W).
    Raises ValueError if y is not one label per image.
    """
    x, guided = x_T.detach(), guided_model(model, x_T, y, guide, clip, unconditional)
    for i in guided.indices():
        p, g = guided.predict(x, i)
        mean = p.mean if g is None else p.mean + p.variance * g  # Algorithm 1
        x = mean if i == 0 else mean + (0.5 * p.log_variance).exp() * noise_sampler(x, i)
        yield guided.step(x, p.x0, i)
