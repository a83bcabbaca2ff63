"""Adaptive projected guidance (Sadat, Hilliges & Weber 2024, "Eliminating oversaturation and artifacts ...")."""

from __future__ import annotations

import math
from dataclasses import dataclass

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance
from .numbers import finite, per_image_dot, per_image_norm
from .state import State, check_conditional


@dataclass(frozen=True)
class APG(Guidance):
    """Classifier-free guidance of x_0 without most of its component along the conditional x_0, which oversaturates.

    x̂0 = x0(y) + (w - 1) (Δ⊥ + η Δ∥), where Δ = x0(y) - x0 with momentum and a limited norm, and ∥ is along x0(y).

    scale: guidance scale w, as in ClassifierFreeGuidance; 1 costs nothing
    eta: weight η of the parallel component; 0 drops it; 1 with no momentum and no max_norm is ClassifierFreeGuidance
    momentum: β of Δ̄_t = Δ_t + β Δ̄_{t+1}; negative in the paper, away from the direction of the last steps
    max_norm: largest norm r of an image's Δ̄; inf sets no limit

    With a sampler that evaluates the model twice per step (heun), both evaluations count for the momentum.

    Raises ValueError if the network is not conditioned on labels, or if a number is out of range.
    """

    scale: float = 4.0
    eta: float = 0.0
    momentum: float = -0.5
    max_norm: float = math.inf

    def __post_init__(self) -> None:
        finite(self.scale, "the guidance scale")
        finite(self.eta, "eta")
        if not -1 < self.momentum < 1:
            raise ValueError(f"the momentum must be between -1 and 1, got {self.momentum}")
        if not self.max_norm > 0:
            raise ValueError(f"the largest norm of a difference must be above 0, got {self.max_norm}")

    def begin(self) -> Guidance:
        return APGRun(self)

    def uses_uncond(self, state: State) -> bool:
        return self.scale != 1

    def modify_prediction(self, state: State) -> Prediction:
        return self.begin().modify_prediction(state)


@dataclass(eq=False)
class APGRun(Guidance):
    """APG in one run of a sampler.

    guide: its settings
    average: Δ̄ of the last step, or None at the first one
    """

    guide: APG
    average: Images | None = None

    def uses_uncond(self, state: State) -> bool:
        return self.guide.uses_uncond(state)

    def modify_prediction(self, state: State) -> Prediction:
        check_conditional(state)
        apg = self.guide
        if apg.scale == 1:
            return state.pred
        cond, uncond = state.both()
        delta = cond.x0 - uncond.x0
        if apg.momentum and self.average is not None:
            delta = delta + apg.momentum * self.average
        self.average = delta
        if apg.max_norm < math.inf:
            delta = delta * (apg.max_norm / per_image_norm(delta).clamp(min=1e-12)).clamp(max=1)
        along = parallel(delta, cond.x0)
        return state.with_x0(state.pred.x0 + (apg.scale - 1) * (delta - along + apg.eta * along))


def parallel(a: Images, b: Images) -> Images:
    """Return the component of each image a along b: <a, b>/<b, b> b."""
    return per_image_dot(a, b) / per_image_dot(b, b).clamp(min=1e-12) * b
