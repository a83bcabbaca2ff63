"""Inverse problems: samples of p(x_0 | y) for a measurement y = A(x_0) + noise. Operators A are in operators.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Guidance
from .bounded import clamp_gradient
from .gradient import gradient
from .numbers import finite
from .rows import select_batch_rows
from .state import State


@dataclass(frozen=True, eq=False)
class LinearInverse(Guidance):
    """The gradient ∇_x log N(y; A x0-hat(x_t), σ_y² + g r_t²) of the measurement's likelihood, where A Aᵀ = g I.

    The variance of x_0 given x_t is modelled as r_t² = prior_std² σ²/(prior_std² + σ²), with the noise level σ. A small
    σ_y makes the ODE stiff, so that it needs more steps, in particular with prior_std=0. If the sampler clips x0, the
    entries of the gradient are limited, since x0-hat is rough near pure noise; see bounded.clamp_gradient.

    operator: operator A of images (N, C, H, W): linear with A Aᵀ = g I, or any differentiable function if prior_std=0
    measurement: y, with the shape of A(x), for each image or for one image
    noise_std: standard deviation σ_y of the measurement's noise, in the units of the measurement
    prior_std: standard deviation of the data. With the true one the gradient is exact for Gaussian data. 1 is ΠGDM's
        choice (Song et al. 2023). 0 sets r_t = 0 as in DPS (Chung et al. 2023), which is overconfident: for data
        N(0, v) the mean is 2 sqrt(k) D(sqrt(k)) y instead of v y/(v + σ_y²), with k = v/(2 σ_y²) and Dawson's function
        D, and the standard deviation is sqrt(v) e^-k

    Raises ValueError if σ_y is not above 0, if prior_std is used with an operator without g, or if shapes differ.
    """

    operator: Callable[[Images], Tensor]
    measurement: Tensor
    noise_std: float
    prior_std: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_std < math.inf:
            raise ValueError(f"noise_std must be above 0, got {self.noise_std}")
        if not 0 <= self.prior_std < math.inf:
            raise ValueError(f"prior_std must be at least 0, got {self.prior_std}")
        if self.prior_std and getattr(self.operator, "gram", None) is None:
            raise ValueError("prior_std needs an operator with A Aᵀ = g I, such as Mask, Downsample or Grey")

    @property
    def reads_labels(self) -> bool:
        return False

    def __call__(self, state: State) -> Tensor:
        variance = self.variance(state.sigma)
        score = gradient(
            lambda x0: -residual(self.operator, self.measurement, x0).square().sum(1) / (2 * variance), state, "x0"
        )
        return clamp_gradient(score, state)

    def variance(self, sigma: float) -> float:
        """Return the variance σ_y² + g r_t² of each entry of y given x_t, at a noise level."""
        if self.prior_std == 0:
            return self.noise_std**2
        r_squared = 1 / (1 / self.prior_std**2 + 1 / sigma**2)  # v σ²/(v + σ²), defined for σ = inf too
        return self.noise_std**2 + getattr(self.operator, "gram", 1.0) * r_squared


@dataclass(frozen=True, eq=False)
class DPS(Guidance):
    """Diffusion posterior sampling (Chung et al. 2023, Algorithm 1): x_{t-1} moves by -ζ ∇_x ||y - A(x0-hat(x_t))||.

    The noise of the measurement need not be known, and A may be nonlinear. The gradient is -(ζ/Σ) ∇||·||, so that ddpm,
    which moves the mean by Σ·g, takes the paper's step for every kind of variance. Where Σ is 0, in the last step with
    `fixed_small`, β_t takes its place, and ddpm does not move. Entries are limited as in LinearInverse.

    operator: differentiable operator A of images (N, C, H, W)
    measurement: y, with the shape of A(x), for each image or for one image
    scale: step size ζ, as in the authors' code; it is twice the paper's ζ' in ζ_i = ζ'/||·||, which multiplies ∇||·||²

    Raises ValueError if the scale is not finite or if the measurement has another shape.
    """

    operator: Callable[[Images], Tensor]
    measurement: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        finite(self.scale, "the step size of DPS")

    @property
    def reads_labels(self) -> bool:
        return False

    def __call__(self, state: State) -> Tensor | None:
        if self.scale == 0:
            return None
        g = gradient(lambda x0: norm(residual(self.operator, self.measurement, x0)), state, "x0")
        variance = state.prediction.variance
        beta = state.diffusion.schedule.betas[state.index].item()
        return clamp_gradient(-self.scale / torch.where(variance > 0, variance, beta) * g, state)


def residual(operator: Callable[[Images], Tensor], measurement: Tensor, x0: Images) -> Tensor:
    """Return y - A(x0) of each image, (N, M). Raises ValueError if the shapes do not agree."""
    predicted = operator(x0)
    if not measurement.is_floating_point():
        raise ValueError(f"the measurement must be floating-point, like the operator's result, got {measurement.dtype}")
    y = select_batch_rows(measurement, len(predicted), "the measurement").to(predicted)
    if y.shape[1:] != predicted.shape[1:] or len(y) not in (1, len(predicted)):
        raise ValueError(
            f"the measurement must have the shape of the operator's result, {tuple(predicted.shape)}, "
            f"got {tuple(y.shape)}"
        )
    return (y - predicted).flatten(1)


def norm(r: Tensor) -> Tensor:
    """Return the norm of each row; its gradient at 0 is 0."""
    norms: Tensor = torch.linalg.vector_norm(r, dim=1)
    return norms
