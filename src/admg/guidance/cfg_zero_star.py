"""CFG-Zero* (Fan et al. 2025): classifier-free guidance with the optimal multiple of the unconditional prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from admg.diffusion.gaussian import Prediction

from .base import Guidance
from .classifier_free import away_from
from .numbers import Scale, check_scale, projection, scale_at
from .state import State, check_conditional


@dataclass(frozen=True)
class CFGZeroStar(Guidance):
    """ε̂ = s* ε(x) + w (ε(x, y) - s* ε(x)), where s* = <ε(x, y), ε(x)>/||ε(x)||² for each image.

    s* ε(x) is the multiple of the unconditional ε that is nearest to the conditional one. The paper's models predict a
    velocity and skip it in the first steps ("zero-init"); that has no counterpart for ε.

    scale: guidance scale w, or a function of the noise level `State.sigma`; 1 is conditional and costs nothing

    Raises ValueError if the network is not conditioned on labels, or if the scale is not finite.
    """

    scale: Scale = 2.0

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def uses_uncond(self, state: State) -> bool:
        return scale_at(self.scale, state.sigma) != 1

    def modify_prediction(self, state: State) -> Prediction:
        check_conditional(state)
        scale = scale_at(self.scale, state.sigma)
        if scale == 1:
            return state.pred
        cond, uncond = state.both()
        return away_from(state, scaled_uncond(cond, uncond), scale)


def scaled_uncond(cond: Prediction, uncond: Prediction) -> Prediction:
    """Return the unconditional prediction with s* ε(x) for ε(x), and the x0 that belongs to it.

    As ε(x, y) - ε(x) = -sqrt(ᾱ/(1 - ᾱ)) Δ with Δ = x0(x, y) - x0(x), that x0 is x0(x) + <Δ, ε(x)>/||ε(x)||² ε(x), for
    ᾱ = 0 too.
    """
    eps = projection(cond.eps, uncond.eps) * uncond.eps
    return replace(uncond, eps=eps, x0=uncond.x0 + projection(cond.x0 - uncond.x0, uncond.eps) * uncond.eps)
