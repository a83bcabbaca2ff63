"""Guidance in a limited interval of noise levels (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from admg.diffusion.gaussian import Prediction

from .base import Wrapper, gradient_of
from .state import State


@dataclass(frozen=True)
class Interval(Wrapper):
    """A guide that is used only where low <= σ <= high, with σ = sqrt((1 - ᾱ)/ᾱ). Elsewhere it costs nothing.

    Outside the interval, classifier-free guidance leaves the conditional prediction (w = 1), as in the paper.

    guide: guide, whose modified predictions and gradients are both limited to the interval
    low: lowest noise level; 0 sets no limit
    high: highest noise level; inf sets no limit

    Raises ValueError unless 0 <= low <= high.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"interval must satisfy 0 <= low <= high, got {self.low:g},{self.high:g}")

    def uses_uncond(self, state: State) -> bool:
        return self.contains(state.sigma) and super().uses_uncond(state)

    def modify_prediction(self, state: State) -> Prediction:
        return super().modify_prediction(state) if self.contains(state.sigma) else state.pred

    def __call__(self, state: State) -> Tensor | None:
        return gradient_of(self.guide, state) if self.contains(state.sigma) else None

    def contains(self, sigma: float) -> bool:
        """Whether the noise level is in the interval."""
        return self.low <= sigma <= self.high
