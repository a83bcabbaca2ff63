"""Guidance rescaled (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from admg.diffusion.gaussian import Prediction

from .base import Guidance, Guide, State, changed, check_whole, compares


@dataclass(frozen=True)
class Rescaled(Guidance):
    """A guide's ε̂, brought towards the deviation that ε had before: φ ε̂ std(ε)/std(ε̂) + (1 - φ) ε̂.

    The deviation is over channels and pixels of each image. Large scales of ClassifierFreeGuidance overexpose
    without it. (The paper's model predicts v; here it is ε, whatever the network predicts.)

    guide: one that changes the prediction; a score that it adds stays as it is
    phi: 0 leaves the guide as it is, the paper's 0.7, 1 keeps the deviation
    ValueError: phi outside [0, 1].
    """

    guide: Guide
    phi: float = 0.7

    def __post_init__(self):
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi must be in [0, 1], got {self.phi}")

    def compares(self, sigma: float) -> bool:
        return compares(self.guide, sigma)

    def change(self, state: State) -> Prediction:
        guided = changed(self.guide, state)
        if self.phi == 0 or guided is state.raw:
            return guided
        check_whole(guided)
        before, after = (eps.std(dim=(1, 2, 3), keepdim=True) for eps in (state.raw.eps, guided.eps))
        ratio = before / after.clamp(min=1e-12)
        return state.with_eps(self.phi * ratio * guided.eps + (1 - self.phi) * guided.eps)

    def __call__(self, state: State) -> Tensor | None:
        return self.guide(state)
