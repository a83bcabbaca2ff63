"""Guidance by any differentiable energy of the user's own (Bansal et al. 2023, Yu et al. 2023 "FreeDoM")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Guidance, State
from .gradient import At, Scale, bounded, check_at, check_scale, gradient, scale_at


@dataclass(frozen=True)
class LossGuidance(Guidance):
    """-s ∇_x E(x0-hat(x_t)), or -s ∇_x E(x_t): samples tend to p(x) exp(-s E(x)).

    With at="x" that holds if E is the energy of x_t, -log E[exp(-E(x_0)) | x_t]; with at="x0" it is an approximation,
    which takes the predicted x_0 for x_0; unless the sampler has clip=False, no entry of it exceeds what an exact score
    can be (gradient.bounded), so that it does not diverge near pure noise.

    energy: images (N, C, H, W) -> (N,), low where the image is as wanted. At x0 the images are the network's own
        prediction, in about [-1, 1], not clipped
    scale: s; 0 costs nothing; or a function of the noise level State.sigma
    ValueError: a scale that is not finite; an energy of another shape, or that does not depend on the image.
    """

    energy: Callable[[Images], Float[Tensor, " n"]]
    scale: Scale = 1.0
    at: At = "x0"

    def __post_init__(self):
        check_scale(self.scale)
        check_at(self.at)

    def __call__(self, state: State) -> Tensor | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0:
            return None
        score = -scale * gradient(self.energy, state, self.at, "the energy")
        return bounded(score, state) if self.at == "x0" else score
