"""CFG-Zero* (Fan et al. 2025): classifier-free guidance from the unconditional prediction at its best scale."""

from __future__ import annotations

from dataclasses import dataclass

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance, State
from .classifier_free import away_from, check_told
from .gradient import finite, per_image_dot


@dataclass(frozen=True)
class CFGZeroStar(Guidance):
    """ε̂ = s* ε(x) + w (ε(x, y) - s* ε(x)), where s* = <ε(x, y), ε(x)>/||ε(x)||² of each image.

    s* ε(x) is the multiple of the unconditional ε that is nearest to the conditional one. (The paper's models predict a
    velocity, and are left out in the first steps, "zero-init"; of an ε, that has no counterpart.)

    scale: w; 1 is conditional and costs nothing
    ValueError: the network was not told labels; a scale that is not finite.
    """

    scale: float = 2.0

    def __post_init__(self):
        finite(self.scale, "the guidance scale")

    def compares(self, sigma: float) -> bool:
        return self.scale != 1

    def change(self, state: State) -> Prediction:
        check_told(state)
        if self.scale == 1:
            return state.raw
        uncond = state.predict(None).eps
        return away_from(state, best_scale(state.unguided.eps, uncond) * uncond, self.scale)


def best_scale(target: Images, of: Images) -> Images:
    """s* of each image, (N, 1, 1, 1): it minimises ||target - s of||."""
    return per_image_dot(target, of) / per_image_dot(of, of).clamp(min=1e-12)
