"""Guidance by any differentiable loss (Bansal et al. 2023, "Universal guidance"; Yu et al. 2023, "FreeDoM")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Guidance
from .bounded import clamp_gradient
from .gradient import At, check_at, gradient
from .logits import accepts
from .numbers import Scale, check_scale, scale_at
from .rows import batch_text
from .state import State


@dataclass(frozen=True)
class LossGuidance(Guidance):
    """The gradient -s ∇_x E(x0-hat(x_t)), or -s ∇_x E(x_t), so that samples follow p(x) exp(-s E(x)).

    With at="x" this is exact if E is the energy of x_t, -log E[exp(-E(x_0)) | x_t]. With at="x0" it is an approximation
    that uses the predicted x_0 for x_0. If the sampler clips x0, the entries of this gradient are limited, so that it
    does not diverge near pure noise; see bounded.clamp_gradient.

    energy: loss of images, a differentiable function (N, C, H, W) -> (N,). With at="x0" the images are the network's
        own prediction, approximately in [-1, 1], not clipped. A function that requires a second argument is given the
        State: `lambda x0, state: (x0 - references[state.rows]).square().sum((1, 2, 3))` for a reference per image
    scale: guidance scale s, or a function of the noise level State.sigma; 0 costs nothing
    at: "x0" evaluates the loss at the predicted x_0, "x" at x_t

    Raises ValueError if the scale is not finite, or if the loss takes other arguments, has another shape, does not
    depend on the image, or contains sizes that do not match.
    """

    energy: Callable[..., Float[Tensor, " n"]]
    scale: Scale = 1.0
    at: At = "x0"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_at(self.at)
        if not accepts(self.energy, "x0") and not takes_state(self.energy):
            raise ValueError("the loss must be a function of images, or of images and the State")

    @property
    def reads_labels(self) -> bool:
        return takes_state(self.energy)

    def __call__(self, state: State) -> Tensor | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0:
            return None
        g = -scale * gradient(lambda images: self.loss(images, state), state, self.at, "the loss")
        return clamp_gradient(g, state) if self.at == "x0" else g

    def loss(self, images: Images, state: State) -> Any:
        """Return the loss of the images of a batch. Raises ValueError, with the cause, if sizes in it do not match."""
        try:
            return self.energy(images, state) if takes_state(self.energy) else self.energy(images)
        except (RuntimeError, ValueError) as error:
            text = str(error)
            if "numpy()" in text:
                raise ValueError(f"the loss must be computed by torch, not by numpy: {text}") from error
            if "size" not in text or "match" not in text:
                raise
            part = batch_text(len(images))
            advice = "a loss of (x0, state) selects their rows of other tensors by [state.rows]"
            raise ValueError(
                f"sizes in the loss do not match, for {part or 'images'} of shape {tuple(images.shape)}: {text}"
                + (f"; {advice}" if part else "")
            ) from error


def takes_state(energy: Callable[..., Any]) -> bool:
    """Whether a loss requires a second argument, the State."""
    return not accepts(energy, "x0") and accepts(energy, "x0", "state")
