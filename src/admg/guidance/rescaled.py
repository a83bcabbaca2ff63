"""Rescaled guidance (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

from admg.diffusion.gaussian import Images, Prediction

from .base import Wrapper
from .numbers import projection
from .state import State, check_consistent


@dataclass(frozen=True)
class Rescaled(Wrapper):
    """A guide whose ε̂ is rescaled towards the standard deviation of ε: φ ε̂ std(ε)/std(ε̂) + (1 - φ) ε̂.

    The standard deviation is over the channels and pixels of each image. Without this, large scales of
    ClassifierFreeGuidance overexpose. (The paper rescales v, which its model predicts; here it is always ε.)

    guide: guide that modifies the prediction; its gradient stays unchanged
    phi: weight φ in [0, 1]; 0 leaves the guide as it is, 0.7 is the paper's, 1 keeps the standard deviation

    Raises ValueError if phi is out of range.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi must be in [0, 1], got {self.phi}")

    def modify_prediction(self, state: State) -> Prediction:
        guided = super().modify_prediction(state)
        if self.phi == 0 or guided is state.pred:
            return guided
        check_consistent(guided)
        if state.pure_noise:
            return state.with_x0(guided.x0 - self.phi * x0_shift(guided, state.pred))
        before, after = (eps.std(dim=(1, 2, 3), keepdim=True) for eps in (state.pred.eps, guided.eps))
        ratio = before / after.clamp(min=1e-12)
        return state.with_eps(self.phi * ratio * guided.eps + (1 - self.phi) * guided.eps)


def x0_shift(guided: Prediction, own: Prediction) -> Images:
    """Return x̂0 - x0(ε̂ std(ε)/std(ε̂)): cov(Δ, ε)/var(ε) ε for pure noise, with Δ = x̂0 - x0 and ε = ε̂ = x.

    It follows from ε - ε̂ = sqrt(ᾱ/(1 - ᾱ)) Δ: then std(ε)/std(ε̂) - 1 is sqrt(ᾱ) cov(Δ, x)/var(x) in the limit ᾱ = 0.
    """
    noise = own.eps - own.eps.mean(dim=(1, 2, 3), keepdim=True)
    return projection(guided.x0 - own.x0, noise) * own.eps
