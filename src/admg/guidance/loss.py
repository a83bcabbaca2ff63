"""Guidance by any differentiable loss (Bansal et al. 2023, "Universal guidance"; Yu et al. 2023, "FreeDoM")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Guidance
from .bounded import clamp_gradient
from .gradient import At, check_at, gradient
from .numbers import Scale, check_scale, scale_at
from .state import State


@dataclass(frozen=True)
class LossGuidance(Guidance):
    """The gradient -s ∇_x E(x0-hat(x_t)), or -s ∇_x E(x_t), so that samples follow p(x) exp(-s E(x)).

    With at="x" this is exact if E is the energy of x_t, -log E[exp(-E(x_0)) | x_t]. With at="x0" it is an approximation
    that uses the predicted x_0 for x_0. If the sampler clips x0, the entries of this gradient are limited, so that it
    does not diverge near pure noise; see bounded.clamp_gradient.

    energy: loss of images, a differentiable function (N, C, H, W) -> (N,). With at="x0" the images are the network's
        own prediction, approximately in [-1, 1], not clipped
    scale: guidance scale s, or a function of the noise level State.sigma; 0 costs nothing
    at: "x0" evaluates the loss at the predicted x_0, "x" at x_t

    Raises ValueError if the scale is not finite, or if the loss has another shape or does not depend on the image.
    """

    energy: Callable[[Images], Float[Tensor, " n"]]
    scale: Scale = 1.0
    at: At = "x0"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_at(self.at)

    @property
    def reads_labels(self) -> bool:
        return False

    def __call__(self, state: State) -> Tensor | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0:
            return None
        g = -scale * gradient(self.energy, state, self.at, "the loss")
        return clamp_gradient(g, state) if self.at == "x0" else g
