"""CFG-Zero* (Fan et al. 2025): classifier-free guidance with the optimal multiple of the unconditional prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance
from .classifier_free import away_from
from .numbers import finite, per_image_dot
from .state import State, check_conditional


@dataclass(frozen=True)
class CFGZeroStar(Guidance):
    """ε̂ = s* ε(x) + w (ε(x, y) - s* ε(x)), where s* = <ε(x, y), ε(x)>/||ε(x)||² for each image.

    s* ε(x) is the multiple of the unconditional ε that is nearest to the conditional one. The paper's models predict a
    velocity and skip it in the first steps ("zero-init"); that has no counterpart for ε.

    scale: guidance scale w; 1 is conditional and costs nothing

    Raises ValueError if the network is not conditioned on labels, or if the scale is not finite.
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        finite(self.scale, "the guidance scale")

    def uses_uncond(self, state: State) -> bool:
        return self.scale != 1

    def modify_prediction(self, state: State) -> Prediction:
        check_conditional(state)
        if self.scale == 1:
            return state.pred
        cond, uncond = state.both()
        return away_from(state, scaled_uncond(cond, uncond), self.scale)


def scaled_uncond(cond: Prediction, uncond: Prediction) -> Prediction:
    """Return the unconditional prediction with s* ε(x) for ε(x), and the x0 that belongs to it.

    As ε(x, y) - ε(x) = -sqrt(ᾱ/(1 - ᾱ)) Δ with Δ = x0(x, y) - x0(x), that x0 is x0(x) + <Δ, ε(x)>/||ε(x)||² ε(x), for
    ᾱ = 0 too.
    """
    eps = best_scale(cond.eps, uncond.eps) * uncond.eps
    return replace(uncond, eps=eps, x0=uncond.x0 + best_scale(cond.x0 - uncond.x0, uncond.eps) * uncond.eps)


def best_scale(target: Images, source: Images) -> Images:
    """Return s* (N, 1, 1, 1), which minimises ||target - s source|| for each image."""
    return per_image_dot(target, source) / per_image_dot(source, source).clamp(min=1e-12)
