"""What a sampler asks of guidance: a score to add at x_t. Any function of a State is guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..diffusion import Diffusion, Images, Prediction


@dataclass(frozen=True)
class State:
    """Where a sampler stands when it asks for guidance.

    x: x_t (N, C, H, W); t: the timestep as the network is told it, (1,); index: of t in `diffusion.schedule`
    y: the wanted labels (N,), or None; prediction: the network's, unguided, at x
    """

    x: Images
    t: Float[Tensor, " 1"]
    index: int
    y: Tensor | None
    prediction: Prediction
    diffusion: Diffusion


Guide = Callable[[State], Tensor | None]
"""Guidance: the score ∇ log of whatever is wanted, at state.x, (N, C, H, W) float32; None where it adds nothing."""


class Guidance:
    """A base for guides that compose: `a + b` adds their scores. A guide need not inherit from it."""

    def __call__(self, state: State) -> Tensor | None:
        raise NotImplementedError

    def __add__(self, other: Guide) -> Sum:
        return Sum((self, other))

    def __radd__(self, other: Guide) -> Sum:
        return Sum((other, self))


@dataclass(frozen=True)
class Sum(Guidance):
    """The sum of several guides' scores: the gradient of the product of what they want."""

    guides: tuple[Guide, ...]

    def __call__(self, state: State) -> Tensor | None:
        scores = [score for guide in self.guides if (score := guide(state)) is not None]
        return sum(scores[1:], start=scores[0]) if scores else None
