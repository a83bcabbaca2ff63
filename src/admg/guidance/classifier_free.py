"""Classifier-free guidance (Ho & Salimans 2022), and what compares a prediction with a worse one in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from admg.diffusion.gaussian import Images, Prediction

from .base import DiffusionModel, Guidance, State
from .gradient import finite


@dataclass(frozen=True)
class ClassifierFreeGuidance(Guidance):
    """ε̂ = ε(x) + w (ε(x, y) - ε(x)): one network, trained with label dropout, told the label and not told it.

    scale: w; 0 is unconditional, 1 conditional (and costs nothing), larger is surer of the label and less diverse.
        Ho & Salimans write 1 + w for it
    ValueError: the network was not told labels.
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
        return away_from(state, state.predict(None).eps, self.scale)


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """ε̂ = ε_bad + w (ε - ε_bad): away from what a worse version of the model says (Karras et al. 2024).

    bad: a model of the same process that knows less, such as an earlier checkpoint; told the same labels
    scale: w; 1 costs nothing
    """

    bad: DiffusionModel
    scale: float = 2.0

    def __post_init__(self):
        finite(self.scale, "the guidance scale")

    def change(self, state: State) -> Prediction:
        if self.scale == 1:
            return state.raw
        return away_from(state, state.ask(self.bad, state.told).eps, self.scale)


def away_from(state: State, weak: Images, scale: float | Images) -> Prediction:
    """ε̂ = ε_weak + w (ε - ε_weak), ε the network's own; what other guides have added to ε is kept."""
    return state.with_eps(state.raw.eps + (scale - 1) * (state.unguided.eps - weak))


def check_told(state: State) -> Tensor:
    """The labels. ValueError: the network was told none, so that there is nothing to be free of."""
    if state.told is None:
        raise ValueError("classifier-free guidance needs a conditional model that is told labels")
    return state.told
