"""Adaptive projected guidance (Sadat, Hilliges & Weber 2024, "Eliminating oversaturation and artifacts ...")."""

from __future__ import annotations

import math
from dataclasses import dataclass

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance, State
from .classifier_free import check_told
from .gradient import finite, per_image_dot, per_image_norm


@dataclass(frozen=True)
class APG(Guidance):
    """Classifier-free guidance of x_0 without most of its part along the conditional x_0, which oversaturates.

    x̂0 = x0(y) + (w - 1) (Δ⊥ + η Δ∥), of Δ = x0(y) - x0 with momentum and of bounded norm, and ∥ along x0(y).

    scale: w, as in ClassifierFreeGuidance; 1 costs nothing
    eta: η; 0 drops the parallel part, 1 with no momentum and no max_norm is ClassifierFreeGuidance
    momentum: β of Δ̄_t = Δ_t + β Δ̄_{t+1}, negative in the paper: away from where the last steps went
    max_norm: r, the largest norm of Δ̄ of an image; inf is no bound
    With a sampler that asks twice a step (heun), the momentum counts both times.
    ValueError: the network was not told labels; a number out of its range.
    """

    scale: float = 4.0
    eta: float = 0.0
    momentum: float = -0.5
    max_norm: float = math.inf

    def __post_init__(self):
        finite(self.scale, "the guidance scale")
        finite(self.eta, "eta")
        if not -1 < self.momentum < 1:
            raise ValueError(f"the momentum must be between -1 and 1, got {self.momentum}")
        if not self.max_norm > 0:
            raise ValueError(f"the largest norm of a difference must be above 0, got {self.max_norm}")

    def compares(self, sigma: float) -> bool:
        return self.scale != 1

    def change(self, state: State) -> Prediction:
        check_told(state)
        if self.scale == 1:
            return state.raw
        x0 = state.unguided.x0
        delta, key = x0 - state.predict(None).x0, ("apg", id(self))
        if self.momentum and key in state.memory:
            delta = delta + self.momentum * state.memory[key]
        state.memory[key] = delta
        if self.max_norm < math.inf:
            delta = delta * (self.max_norm / per_image_norm(delta).clamp(min=1e-12)).clamp(max=1)
        along = parallel(delta, x0)
        return state.with_x0(state.raw.x0 + (self.scale - 1) * (delta - along + self.eta * along))


def parallel(a: Images, b: Images) -> Images:
    """The part of each image a along b: <a, b>/<b, b> b."""
    return per_image_dot(a, b) / per_image_dot(b, b).clamp(min=1e-12) * b
