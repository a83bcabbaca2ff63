"""Guides, and how they add up.

A guide is a function of a `State` that returns a gradient to add to the score, or None. A `Guidance` may also modify
the network's prediction before that, as classifier-free guidance does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from admg.config import with_fields
from admg.diffusion.gaussian import Prediction

from .numbers import finite
from .state import State, check_consistent

Guide = Callable[[State], Tensor | None]
"""A function from the sampler's state to the gradient (N, C, H, W) of the log-density to follow at state.x, or None.

It may call torch.autograd.grad: samplers compute without gradients, but enable them in a user's own guide.
"""


class Guidance:
    """Base class of guides that can be added and scaled: `a + b`, `sum([a, b])`, `2 * a`.

    Override `__call__`, `modify_prediction` or both. `guide` turns a plain function into a Guidance.
    """

    __array_ufunc__ = None  # so that numpy's numbers leave the multiplication to __rmul__

    def modify_prediction(self, state: State) -> Prediction:
        """Return the prediction to use instead of `state.pred`. It is clipped later, and gradients are added last."""
        return state.pred

    def __call__(self, state: State) -> Tensor | None:
        """Return the gradient to add to the score, (N, C, H, W), or None.

        Raises ValueError for a guide that only modifies the prediction, which a function around it would not do.
        """
        if type(self).modify_prediction is not Guidance.modify_prediction:
            raise ValueError(f"{type(self).__name__} modifies the prediction and has no gradient: use it as the guide "
                             f"itself, not inside a function")  # fmt: skip
        return None

    def begin(self) -> Guidance:
        """Return the guide for one run of a sampler. Override it if the guide keeps state between steps."""
        return self

    def uses_uncond(self, state: State) -> bool:
        """Whether `modify_prediction` will use `state.uncond`."""
        return False

    @property
    def reads_labels(self) -> bool:
        """Whether the guide itself uses the target labels `state.y`. Labels that nothing uses are refused."""
        return True

    def __add__(self, other: Guide) -> Guidance:
        return Sum((self, other))

    def __radd__(self, other: Guide | Literal[0]) -> Guidance:
        return self if other == 0 else Sum((other, self))  # sum() starts from 0

    def __mul__(self, factor: float) -> Guidance:
        return Scaled(self, float(factor))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Guidance):
    """The sum of guides. Each modifies the prediction of the one before it, and their gradients are added.

    guides: guides, which may be plain functions
    """

    guides: tuple[Guide, ...]

    def begin(self) -> Guidance:
        return Sum(tuple(begin(guide) for guide in self.guides))

    def modify_prediction(self, state: State) -> Prediction:
        if self.uses_uncond(state):
            state.both()  # before anything else evaluates the network
        for guide in self.guides:
            state = state.with_pred(modified_prediction(guide, state))
        return state.pred

    def __call__(self, state: State) -> Tensor | None:
        gradients = [gradient for guide in self.guides if (gradient := gradient_of(guide, state)) is not None]
        if not gradients:
            return None
        check_consistent(state.pred)
        return sum(gradients[1:], start=gradients[0])

    def uses_uncond(self, state: State) -> bool:
        return any(uses_uncond(guide, state) for guide in self.guides)

    @property
    def reads_labels(self) -> bool:
        return any(map(reads_labels, self.guides))

    @property
    def classifier(self) -> Any:
        """The first classifier among the guides, or None. Its labels can be used by name."""
        return next((c for guide in self.guides if (c := getattr(guide, "classifier", None)) is not None), None)


@dataclass(frozen=True)
class Wrapper(Guidance):
    """A guide that delegates everything to another guide. Subclasses override what they change.

    guide: guide, which may be a plain function
    """

    guide: Guide

    def begin(self) -> Guidance:
        return with_fields(self, guide=begin(self.guide))

    def modify_prediction(self, state: State) -> Prediction:
        return modified_prediction(self.guide, state)

    def __call__(self, state: State) -> Tensor | None:
        return gradient_of(self.guide, state)

    def uses_uncond(self, state: State) -> bool:
        return uses_uncond(self.guide, state)

    @property
    def reads_labels(self) -> bool:
        return reads_labels(self.guide)

    @property
    def classifier(self) -> Any:
        """The classifier of the guide, or None. Its labels can be used by name."""
        return getattr(self.guide, "classifier", None)


@dataclass(frozen=True)
class Scaled(Wrapper):
    """A guide whose effect is multiplied by a number: its gradient, and what it adds to eps.

    guide: guide, which may be a plain function
    factor: finite number; 0 does not evaluate the guide
    """

    factor: float

    def __post_init__(self) -> None:
        finite(self.factor, "the factor of a guide")

    def modify_prediction(self, state: State) -> Prediction:
        if self.factor == 0:
            return state.pred
        modified = modified_prediction(self.guide, state)
        if self.factor == 1 or modified is state.pred:
            return modified
        check_consistent(modified)
        return state.moved(self.factor, modified, state.pred)

    def __call__(self, state: State) -> Tensor | None:
        gradient = None if self.factor == 0 else gradient_of(self.guide, state)
        return None if gradient is None else self.factor * gradient

    def uses_uncond(self, state: State) -> bool:
        return self.factor != 0 and super().uses_uncond(state)


def guide(function: Guide) -> Guidance:
    """Turn a function of a State into a Guidance, so that it can be added to others and scaled. Usable as decorator."""
    return function if isinstance(function, Guidance) else Wrapper(function)


# -- guides that may be plain functions ------------------------------------------------------------------------------


def gradient_of(guide: Guide, state: State) -> Tensor | None:
    """Return the guide's gradient, or None without one. Raises ValueError if its shape is not that of state.x."""
    return checked_gradient(raw_gradient(guide, state), state, getattr(guide, "__name__", type(guide).__name__))


def raw_gradient(guide: Guide, state: State) -> Any:
    """Return what the guide returns, detached; None if it only modifies the prediction.

    Autograd is enabled in functions and in a user's own classes. The guides of admg enable it where they need it.
    """
    if isinstance(guide, Guidance) and type(guide).__call__ is Guidance.__call__:
        return None
    ours = isinstance(guide, Guidance) and type(guide).__module__.partition(".")[0] == "admg"
    with torch.set_grad_enabled(not ours):
        found = guide(state)
    return found.detach() if isinstance(found, Tensor) else found


def checked_gradient(found: Any, state: State, name: str) -> Tensor | None:
    """Return a gradient after checking it. Raises ValueError, with the name of the guide, as `gradient_of` does."""
    if found is None or (isinstance(found, Tensor) and found.shape == state.x.shape):
        return found
    what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
    raise ValueError(f"{name} must return a gradient like x, {tuple(state.x.shape)}, got {what}")


def modified_prediction(guide: Guide, state: State) -> Prediction:
    """Return `state.pred` as the guide modifies it. A plain function leaves it unchanged."""
    return guide.modify_prediction(state) if isinstance(guide, Guidance) else state.pred


def uses_uncond(guide: Guide, state: State) -> bool:
    """Whether the guide uses `state.uncond` to modify the prediction."""
    return isinstance(guide, Guidance) and guide.uses_uncond(state)


def reads_labels(guide: Guide) -> bool:
    """Whether the guide uses the target labels, apart from the network's own conditioning. A function may."""
    return guide.reads_labels if isinstance(guide, Guidance) else True


@overload
def begin(guide: Guide) -> Guide: ...
@overload
def begin(guide: None) -> None: ...
def begin(guide: Guide | None) -> Guide | None:
    """Return the guide for one run of a sampler."""
    return guide.begin() if isinstance(guide, Guidance) else guide
