"""CFG++ (Chung et al. 2024): classifier-free guidance of x_0 alone, renoised with the unconditional ε."""

from __future__ import annotations

from dataclasses import dataclass

from admg.diffusion.gaussian import Prediction

from .base import Guidance, Split, State
from .classifier_free import check_told


@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """x0 from ε̂ = ε(x) + λ (ε(x, y) - ε(x)), but the noise of the next step from ε(x): the paper's Algorithm 2.

    Samples stay near the data where ClassifierFreeGuidance extrapolates, so small scales do. Only a sampler that
    takes x0 and eps apart can do it, such as ddim. No other guide may change the prediction, nor add a score.

    scale: λ in [0, 1]; 0 is unconditional
    ValueError: a scale outside [0, 1]; the network was not told labels; a sampler or another guide that does not fit.
    """

    scale: float = 0.6

    def __post_init__(self):
        if not 0 <= self.scale <= 1:
            raise ValueError(f"the scale of CFG++ must be in [0, 1], got {self.scale}")

    def compares(self, sigma: float) -> bool:
        return True

    def change(self, state: State) -> Prediction:
        check_told(state)
        if not state.takes_both:
            raise ValueError("CFG++ needs a sampler that takes x0 and eps apart, such as ddim: not this one")
        if state.raw is not state.unguided:
            raise ValueError("CFG++ takes the network's own predictions: no guide may change them before it")
        uncond = state.predict(None).eps
        p = state.with_eps(uncond + self.scale * (state.raw.eps - uncond))
        return Split(p.x0, uncond, p.mean, p.variance, p.log_variance)
