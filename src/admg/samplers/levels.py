"""Noise levels, and exact steps between them of the probability-flow ODE in the log signal-to-noise ratio λ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images


@dataclass(frozen=True)
class Level:
    """A noise level: x = α x_0 + σ ε."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """λ = log(α/σ), half the log signal-to-noise ratio; -inf for pure noise, inf for a clean image."""
        if self.alpha == 0 or self.sigma == 0:
            return -math.inf if self.alpha == 0 else math.inf
        return math.log(self.alpha / self.sigma)


def level(diffusion: Diffusion, index: int) -> Level:
    """Return the noise level at an index of the schedule. The index -1 is the clean image."""
    alpha_bar = diffusion.schedule.alpha_bar[index].item() if index >= 0 else 1.0
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


@dataclass(frozen=True)
class PastPrediction:
    """An earlier prediction of x_0, at λ."""

    lam: float
    x0: Images


def advance(
    x: Images, now: Level, then: Level, x0: Images, others: list[PastPrediction], halved: bool = False
) -> Images:
    """Return x at the level `then`, for a prediction of x_0 that is a polynomial in λ.

    The polynomial passes through x0, the prediction at the level `now`, and through the other predictions. The solution
    of the ODE is x_then = σ_then/σ_now x + α_then ∫_0^h e^{u - h} D(λ_now + u) du with h = λ_then - λ_now
    (DPM-Solver++, Proposition 4.1), and the integral is D_0 (1 - e^{-h}) + Σ_m w_m (D_m - D_0)/r_m.

    halved: with a single other prediction, use half the weight of D_0 instead of its exact integral, which is the same
        to second order in h (UniPC's simplification for B_2)
    """
    h = then.lam - now.lam
    phi = -math.expm1(-h)
    x = then.sigma / now.sigma * x + then.alpha * phi * x0
    if not others:
        return x
    ratios = [(past.lam - now.lam) / h for past in others]
    weights = [phi / 2] if halved and len(others) == 1 else _weights(h, ratios)
    for past, r, weight in zip(others, ratios, weights):
        x = x + then.alpha * weight / r * (past.x0 - x0)
    return x


def _weights(h: float, ratios: list[float]) -> list[float]:
    """Return w with Σ_m w_m r_m^{k-1} = ∫_0^h e^{u-h} (u/h)^k du for k = 1 .. len(r).

    Every D = (u/h)^k is then integrated exactly. This is UniPC's equation for its coefficients, in which B(h) cancels.
    """
    integral, integrals = -math.expm1(-h), []
    for k in range(1, len(ratios) + 1):
        integral = 1 - k * integral / h  # by parts
        integrals.append(integral)
    powers = torch.tensor([[r ** (k - 1) for r in ratios] for k in range(1, len(ratios) + 1)], dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(powers, torch.tensor(integrals, dtype=torch.float64))
    return solved.tolist()
