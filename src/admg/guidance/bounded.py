"""Gradients limited to the range of the exact score of images in [-1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Wrapper, gradient_of
from .state import State


@dataclass(frozen=True)
class Bounded(Wrapper):
    """A guide whose gradient has no entry that is impossible for images in [-1, 1].

    For any f(x_0) >= 0, such as p(y | x_0)^s or a product of several, the exact gradient of log E[f(x_0) | x_t] is
    sqrt(ᾱ)/(1 - ᾱ) (E_f[x_0 | x_t] - E[x_0 | x_t]), where E_f is weighted by f (Tweedie's formula). Both means are in
    [-1, 1], so no entry exceeds ±2 sqrt(ᾱ)/(1 - ᾱ), at any guidance scale and for any sum of guides. An entry that
    exceeds this is replaced by the largest value of the same sign that is possible for the predicted x0, at which the
    guided x0, x0 + (1 - ᾱ)/sqrt(ᾱ) g, is ±1. All other entries stay unchanged, bit for bit.

    Without the bound, any response of a classifier to near-pure noise is amplified by 1/sqrt(ᾱ) in the guided x0, a
    factor of 20,000 at the first step of a cosine schedule. sample() and the commands bound their guides by default.

    guide: guide, which may be a plain function; a sum is bounded as a whole

    Where the sampler does not clip x0, the range of images is not known, and the gradient stays as it is.
    """

    def __call__(self, state: State) -> Tensor | None:
        g = gradient_of(self.guide, state)
        if g is None or not state.clip or state.pure_noise:
            return g
        return bounded_by_x0(g, state.prediction.x0, state.diffusion.schedule.alpha_bar[state.index].item())


def bounded_by_x0(g: Images, x0: Images, alpha_bar: float) -> Images:
    """Return the gradient g with the entries beyond ±2 sqrt(ᾱ)/(1 - ᾱ) replaced; see Bounded.

    x0: predicted images in [-1, 1]
    """
    unit = math.sqrt(alpha_bar) / (1 - alpha_bar)  # moves x0 by 1
    nearest = torch.where(g > 0, 1 - x0, -1 - x0) * unit
    return torch.where(g.abs() > 2 * unit, nearest.to(g), g)


def clamp_gradient(g: Images, state: State) -> Images:
    """Return a gradient with each entry clamped to ±2 sqrt(ᾱ)/(1 - ᾱ), which no exact score exceeds (see Bounded).

    For gradients through the network's x0-hat, which are far larger near pure noise, since errors of eps count
    1/sqrt(ᾱ) times. If the sampler does not clip x0, the range of images is not known, and g is returned as it is.
    """
    if not state.clip:
        return g
    alpha_bar = state.diffusion.schedule.alpha_bar[state.index].item()
    limit = 2 * math.sqrt(alpha_bar) / (1 - alpha_bar)
    return g.clamp(-limit, limit)
