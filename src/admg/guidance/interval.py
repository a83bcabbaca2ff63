"""Guidance in a limited interval of noise levels (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from admg.diffusion.gaussian import Prediction

from .base import Guidance, Guide, State, changed, compares


@dataclass(frozen=True)
class Interval(Guidance):
    """Any guide, but only where low <= σ <= high, σ = sqrt((1 - ᾱ)/ᾱ); elsewhere it is not asked and costs nothing.

    Outside, classifier-free guidance leaves the conditional prediction, w = 1, as in the paper.

    guide: its changes of the prediction and its scores are both limited
    low, high: noise levels; 0 and inf are no limits. State.sigma is the level at a step
    ValueError: not 0 <= low <= high.
    """

    guide: Guide
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self):
        if not 0 <= self.low <= self.high:
            raise ValueError(f"an interval of noise levels needs 0 <= low <= high, got {self.low} and {self.high}")

    def compares(self, sigma: float) -> bool:
        return self.contains(sigma) and compares(self.guide, sigma)

    def change(self, state: State) -> Prediction:
        return changed(self.guide, state) if self.contains(state.sigma) else state.raw

    def __call__(self, state: State) -> Tensor | None:
        return self.guide(state) if self.contains(state.sigma) else None

    @property
    def classifier(self) -> Any:
        """The guide's, if it has one: its labels may be asked for by name."""
        return getattr(self.guide, "classifier", None)

    def contains(self, sigma: float) -> bool:
        return self.low <= sigma <= self.high
