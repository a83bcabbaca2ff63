"""Guidance that is computed at some steps and reused at the steps between them.

The idea is that of Dinh, Liu & Xu 2024, "Compress guidance in conditional diffusion sampling", who hold the gradient;
extrapolating it is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from admg.config import check_integer
from admg.diffusion.gaussian import Prediction

from .base import Guidance, Guide, Wrapper, begin, gradient_of, modified_prediction, uses_uncond
from .interval import Interval
from .state import State, check_consistent


@dataclass(frozen=True)
class Reused(Wrapper):
    """A guide that is evaluated at every n-th step only. Between them, its effect on eps is extrapolated.

    The effect of a guide on eps, -√(1-ᾱ) times its gradient, is nearly linear in log σ from step to step. It is
    extrapolated along the line through its last two values, by at most the distance between them. After the first
    evaluation, it is held constant. Where the noise level is below 55 % of that of the last evaluation, as at the first
    steps on a cosine schedule, or with few steps, the guide is evaluated again.

    guide: guide, whose modified predictions and gradients are both reused. If it is an Interval, the steps outside it
        are not counted; where another guide has no effect when it is evaluated, none is extrapolated
    every: n, the largest number of steps per evaluation; 1 evaluates the guide at each step

    Raises ValueError unless every >= 1.
    """

    every: int = 2

    def __post_init__(self) -> None:
        check_integer("every", self.every)

    def begin(self) -> Guidance:
        if self.every == 1:
            return super().begin()
        if isinstance(self.guide, Interval):  # nothing is carried beyond it
            return replace(self.guide, guide=replace(self, guide=self.guide.guide)).begin()
        return ReusedRun(begin(self.guide), self.every)


FARTHEST = 0.6
"""Distance in log σ up to which an effect is reused."""


@dataclass(eq=False)
class Line:
    """The effects on eps at the last two noise levels (log σ) at which a guide was evaluated."""

    points: list[tuple[float, Tensor]] = field(default_factory=list)

    def add(self, at: float, effect: Tensor | None) -> None:
        """Add the effect at a noise level. None, no effect, ends the line."""
        self.points = [] if effect is None else [*self.points[-1:], (at, effect)]

    def value(self, at: float) -> Tensor | None:
        """Return the effect at a noise level, or None if the guide has had none so far."""
        if not self.points:
            return None
        (before, first), (last, effect) = self.points[0], self.points[-1]
        if before == last:  # a single point, or two evaluations at the same level
            return effect
        ahead = max(-1.0, min(1.0, (at - last) / (last - before)))
        return effect + ahead * (effect - first)


@dataclass(eq=False)
class ReusedRun(Guidance):
    """Reused in one run of a sampler. Each evaluation of the model by the sampler counts as a step."""

    guide: Guide
    every: int
    gradients: Line = field(default_factory=Line)
    modifications: Line = field(default_factory=Line)
    last: float = math.inf
    """log σ of the last evaluation of the guide."""
    since: int = 0
    """Steps from it on, itself included."""

    def uses_uncond(self, state: State) -> bool:
        return self._is_due(state) and uses_uncond(self.guide, state)

    def modify_prediction(self, state: State) -> Prediction:
        if state.pure_noise:
            return modified_prediction(self.guide, state)
        if not self._is_due(state):
            effect = self.modifications.value(math.log(state.sigma))
            return state.pred if effect is None else state.with_eps(state.pred.eps + effect)
        modified = modified_prediction(self.guide, state)
        effect = None
        if modified is not state.pred:
            check_consistent(modified)
            effect = modified.eps - state.pred.eps
        self.modifications.add(math.log(state.sigma), effect)
        return modified

    def __call__(self, state: State) -> Tensor | None:
        if state.pure_noise:  # log σ is infinite
            return gradient_of(self.guide, state)
        due, factor = self._is_due(state), -state.sigma / math.hypot(1, state.sigma)  # -√(1-ᾱ)
        self.since += 1  # a sampler computes the gradient last in each step
        if not due:
            effect = self.gradients.value(math.log(state.sigma))
            return None if effect is None else effect / factor
        self.last, self.since = math.log(state.sigma), 1
        gradient = gradient_of(self.guide, state)
        self.gradients.add(math.log(state.sigma), None if gradient is None else factor * gradient)
        return gradient

    def _is_due(self, state: State) -> bool:
        """Return whether the guide is to be evaluated at this step."""
        if state.pure_noise:
            return True
        return self.since in (0, self.every) or abs(math.log(state.sigma) - self.last) > FARTHEST
