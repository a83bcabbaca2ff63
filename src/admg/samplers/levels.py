"""Noise levels in the log signal-to-noise ratio λ, and exact steps between them of the ODE that has λ for its time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images


@dataclass(frozen=True)
class Level:
    """x = α x_0 + σ ε."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """λ = log(α/σ), half the log signal-to-noise ratio; -inf for pure noise, inf for a clean image."""
        if self.alpha == 0 or self.sigma == 0:
            return -math.inf if self.alpha == 0 else math.inf
        return math.log(self.alpha / self.sigma)


def level(diffusion: Diffusion, index: int) -> Level:
    """That of a step of the schedule; -1 is the clean image."""
    alpha_bar = diffusion.at("alpha_bar", index) if index >= 0 else 1.0
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


@dataclass(frozen=True)
class Known:
    """A prediction of x_0 on the way, at λ."""

    lam: float
    x0: Images


def advance(x: Images, now: Level, then: Level, x0: Images, others: list[Known], halved: bool = False) -> Images:
    """x at the level `then`, if the prediction of x_0 is the polynomial in λ through x0, which is that now, and others.

    The ODE's solution x_then = σ_then/σ_now x + α_then ∫_0^h e^{u - h} D(λ_now + u) du, where h = λ_then - λ_now
    (DPM-Solver++, Proposition 4.1), and the integral is D_0 (1 - e^{-h}) + Σ_m w_m (D_m - D_0)/r_m.

    halved: with one other, half the weight of D_0 in place of the integral of its own, the same to second order in h
        (UniPC's simplification for B_2)
    """
    h = then.lam - now.lam
    phi = -math.expm1(-h)
    x = then.sigma / now.sigma * x + then.alpha * phi * x0
    if not others:
        return x
    ratios = [(known.lam - now.lam) / h for known in others]
    weights = [phi / 2] if halved and len(others) == 1 else _weights(h, ratios)
    for known, r, weight in zip(others, ratios, weights):
        x = x + then.alpha * weight / r * (known.x0 - x0)
    return x


def _weights(h: float, ratios: list[float]) -> list[float]:
    """w with Σ_m w_m r_m^{k-1} = ∫_0^h e^{u-h} (u/h)^k du for k = 1 .. len(r): every D = (u/h)^k is integrated exactly.

    UniPC's equation for its coefficients, whose B(h) is then of no account.
    """
    integral, integrals = -math.expm1(-h), []
    for k in range(1, len(ratios) + 1):
        integral = 1 - k * integral / h  # by parts
        integrals.append(integral)
    powers = torch.tensor([[r ** (k - 1) for r in ratios] for k in range(1, len(ratios) + 1)], dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(powers, torch.tensor(integrals, dtype=torch.float64))
    return solved.tolist()
