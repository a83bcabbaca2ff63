"""Adaptive projected guidance (Sadat, Hilliges & Weber 2024, "Eliminating oversaturation and artifacts ...")."""

from __future__ import annotations

import math
from dataclasses import dataclass

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance
from .numbers import Scale, check_scale, clip_norm, finite, projection, scale_at
from .state import State, check_conditional


@dataclass(frozen=True)
class APG(Guidance):
    """Classifier-free guidance of x_0 without most of its component along the conditional x_0, which oversaturates.

    x̂0 = x0(y) + (w - 1) (Δ⊥ + η Δ∥), where Δ = x0(y) - x0 with momentum and a limited norm, and ∥ is along x0(y).

    scale: guidance scale w, or a function of the noise level, as in ClassifierFreeGuidance; 1 costs nothing
    eta: weight η of the parallel component; 0 drops it; 1 with no momentum and no max_norm is ClassifierFreeGuidance
    momentum: β of Δ̄_t = Δ_t + β Δ̄_{t+1}; negative in the paper, away from the direction of the last steps
    max_norm: largest norm r of an image's Δ̄; inf sets no limit

    With a sampler that evaluates the model twice per step (heun), both evaluations count for the momentum.

    Raises ValueError if the network is not conditioned on labels, or if a number is out of range.
    """

    scale: Scale = 4.0
    eta: float = 0.0
    momentum: float = -0.5
    max_norm: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale)
        finite(self.eta, "eta")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum must be between -1 and 1, got {self.momentum}")
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {self.max_norm}")

    def begin(self) -> Guidance:
        return APGRun(self)

    def uses_uncond(self, state: State) -> bool:
        return scale_at(self.scale, state.sigma) != 1

    def modify_prediction(self, state: State) -> Prediction:
        return self.begin().modify_prediction(state)


@dataclass(eq=False)
class APGRun(Guidance):
    """APG in one run of a sampler.

    guide: settings of the guide
    average: Δ̄ of the last step, or None at the first one
    """

    guide: APG
    average: Images | None = None

    def uses_uncond(self, state: State) -> bool:
        return self.guide.uses_uncond(state)

    def modify_prediction(self, state: State) -> Prediction:
        check_conditional(state)
        apg, scale = self.guide, scale_at(self.guide.scale, state.sigma)
        if scale == 1:
            return state.pred
        cond, uncond = state.both()
        delta = cond.x0 - uncond.x0
        if apg.momentum and self.average is not None:
            delta = delta + apg.momentum * self.average
        self.average = delta
        delta = clip_norm(delta, apg.max_norm)
        along = projection(delta, cond.x0) * cond.x0
        return state.with_x0(state.pred.x0 + (scale - 1) * (delta - along + apg.eta * along))
