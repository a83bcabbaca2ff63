"""A guide that records whether a sampler evaluates it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .base import Wrapper, gradient_of
from .state import State


@dataclass(frozen=True)
class Recorded(Wrapper):
    """A guide that records the steps at which a sampler evaluates it.

    guide: guide, which may be a plain function
    steps: index of each step so far
    with_gradient: index of each step at which the guide returned a gradient
    """

    steps: list[int] = field(default_factory=list)
    with_gradient: list[int] = field(default_factory=list)

    @property
    def evaluated(self) -> bool:
        """Whether a sampler has evaluated the guide."""
        return bool(self.steps)

    def __call__(self, state: State) -> Tensor | None:
        self.steps.append(state.index)
        gradient = gradient_of(self.guide, state)
        if gradient is not None:
            self.with_gradient.append(state.index)
        return gradient
