"""Inverse problems: samples of p(x_0 | y) where y = A(x_0) + noise is measured. Operators A are in operators.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Guidance, State
from .gradient import bounded, gradient


@dataclass(frozen=True, eq=False)
class LinearInverse(Guidance):
    """∇_x log N(y; A x0-hat(x_t), σ_y² + g r_t²): the gradient of the measurement's likelihood.

    noise_std: σ_y, known, in the units of the measurement
    prior_std: r_t² = the variance that is left in x_0 given x_t, if that of the data is prior_std²:
        prior_std² σ²/(prior_std² + σ²), σ the noise level; A Aᵀ = g I. 0: none is left, r_t = 0, as in DPS (Chung et
        al. 2023), which is overconfident: on Gaussian data N(0, v), the mean is not v y/(v + σ_y²) but
        2 sqrt(k) D(sqrt(k)) y with k = v/(2 σ_y²) and Dawson's function D, and the deviation is sqrt(v) e^-k. 1 is
        ΠGDM's choice (Song et al. 2023); with the data's own it is exact on Gaussian data.
    operator: A, of images (N, C, H, W); measurement: y, of the shape of A(x), or of one image for all
    A small σ_y makes the equation stiff: it then needs more steps, all the more with prior_std=0. Unless the sampler
    has clip=False, no entry of the score exceeds what an exact one can be (gradient.bounded): near pure noise, a
    network's x0-hat is too rough for more.
    ValueError: a σ_y not above 0; a prior_std with an operator of no g; a measurement of another shape.
    """

    operator: Callable[[Images], Tensor]
    measurement: Tensor
    noise_std: float
    prior_std: float = 0.0

    def __post_init__(self):
        if not 0 < self.noise_std < math.inf:
            raise ValueError(f"the deviation of the measurement's noise must be above 0, got {self.noise_std}")
        if not 0 <= self.prior_std < math.inf:
            raise ValueError(f"the deviation of the data must be 0 or more, got {self.prior_std}")
        if self.prior_std and getattr(self.operator, "gram", None) is None:
            raise ValueError("prior_std needs an operator with A Aᵀ = g I, such as Mask, Downsample or Grey")

    def __call__(self, state: State) -> Tensor:
        variance = self.variance(state.sigma)
        score = gradient(
            lambda x0: -residual(self.operator, self.measurement, x0).square().sum(1) / (2 * variance), state, "x0"
        )
        return bounded(score, state)

    def variance(self, sigma: float) -> float:
        """Of each entry of y given x_t, at this noise level: σ_y² + g r_t²."""
        if self.prior_std == 0:
            return self.noise_std**2
        left = 1 / (1 / self.prior_std**2 + 1 / sigma**2)  # v σ²/(v + σ²), at σ = inf too
        return self.noise_std**2 + getattr(self.operator, "gram", 1.0) * left


@dataclass(frozen=True, eq=False)
class DPS(Guidance):
    """Diffusion posterior sampling (Chung et al. 2023, Algorithm 1): x_{t-1} moves by -ζ ∇_x ||y - A(x0-hat(x_t))||.

    It needs no noise level, and A may be nonlinear. As a score, -(ζ/β_t) ∇||·||: in ddpm, which moves the mean by Σ·g,
    that is the paper's step where Σ = β_t (fixed_large); other samplers follow the same score. It is bounded as in
    LinearInverse.

    scale: ζ, as the authors' code has it; the paper's ζ' of ζ_i = ζ'/||·|| times ∇||·||² is half of it
    operator, measurement: as in LinearInverse
    ValueError: a scale not finite; a measurement of another shape.
    """

    operator: Callable[[Images], Tensor]
    measurement: Tensor
    scale: float = 1.0

    def __post_init__(self):
        if not math.isfinite(self.scale):
            raise ValueError(f"the step of DPS must be a finite number, got {self.scale}")

    def __call__(self, state: State) -> Tensor | None:
        if self.scale == 0:
            return None
        g = gradient(lambda x0: norm(residual(self.operator, self.measurement, x0)), state, "x0")
        return bounded(-self.scale / state.diffusion.schedule.betas[state.index].item() * g, state)


def residual(operator: Callable[[Images], Tensor], measurement: Tensor, x0: Images) -> Tensor:
    """y - A(x0) of each image, (N, M). ValueError: the shapes do not agree."""
    predicted = operator(x0)
    y = measurement.to(predicted)
    if y.shape[1:] != predicted.shape[1:] or len(y) not in (1, len(predicted)):
        raise ValueError(f"a measurement of shape {tuple(y.shape)}, but the operator gives {tuple(predicted.shape)}")
    return (y - predicted).flatten(1)


def norm(r: Tensor) -> Tensor:
    """||r|| of each row; its gradient is 0 at 0."""
    return torch.linalg.vector_norm(r, dim=1)
