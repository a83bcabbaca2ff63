"""What every sampler does before its own step: count down, predict, ask for guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images, Prediction
from admg.guidance import DiffusionModel, Guide, State, changed, compares, sigma_at

NoiseSampler = Callable[[Images, int], Images]
"""(x, index) -> standard normal noise of the shape of x, for the step from x at `index`."""


@dataclass(frozen=True)
class Step:
    """The state after a step.

    x: x_{t-1}; x0: the prediction of x_0 that led there; t: the timestep that the network was told;
    index: of t in the schedule, from len(schedule) - 1 down to 0
    """

    x: Images
    x0: Images
    t: int | float
    index: int


def gaussian_noise(x: Images, index: int) -> Images:
    """The default noise sampler: torch's global random numbers."""
    return torch.randn_like(x)


@dataclass(frozen=True)
class GuidedModel:
    """One pass through a model's schedule, from noise to image, asking the model and the guide at each step.

    y: labels (N,) that the guide wants; network_y: those that the network is told, or None for an unconditional one
    takes_both: the sampler takes x0 and eps of a prediction apart, see guidance.Split
    """

    model: DiffusionModel
    y: Tensor | None
    network_y: Tensor | None
    guide: Guide | None
    clip: bool
    takes_both: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)

    def indices(self) -> range:
        return range(len(self.model.diffusion) - 1, -1, -1)

    def predict(self, x: Images, index: int) -> tuple[Prediction, Float[Tensor, "n c h w"] | None]:
        """The prediction at x, as the guide changes it, and the score that the guide adds."""
        with torch.no_grad():
            if self.guide is None:
                return self.model.predict(x, index, self.network_y, clip=self.clip), None
            (raw, unlabelled), diffusion = self._raw(x, index), self.model.diffusion
            state = State(
                x=x,
                t=diffusion.timestep(index, x.device),
                index=index,
                y=self.y,
                told=self.network_y,
                raw=raw,
                diffusion=diffusion,
                model=self.model,
                clip=self.clip,
                memory=self.memory,
                takes_both=self.takes_both,
                unlabelled=unlabelled,
            )
            state = replace(state, raw=changed(self.guide, state))
            return state.prediction, self.guide(state)

    def _raw(self, x: Images, index: int) -> tuple[Prediction, Prediction | None]:
        """What the network says at x; and what it says without a label, if the guide will ask for that."""
        predict_both: Any = getattr(self.model, "predict_both", None)
        if self.network_y is not None and compares(self.guide, sigma_at(self.model.diffusion, index)) and predict_both:
            return predict_both(x, index, self.network_y)
        return self.model.predict(x, index, self.network_y, clip=False), None

    def guided(self, x: Images, index: int) -> Prediction:
        """The prediction with the guide's score in it: ε̂ = ε - sqrt(1 - ᾱ) g, and x0 from ε̂ (Algorithm 2)."""
        p, g = self.predict(x, index)
        return p if g is None else self.model.diffusion.shift_eps(p, x, index, g)

    def step(self, x: Images, x0: Images, index: int) -> Step:
        return Step(x, x0, self.model.diffusion.schedule.timesteps[index].item(), index)


def guided_model(
    model: DiffusionModel,
    x_T: Images,
    y: Tensor | None,
    guide: Guide | None,
    clip: bool,
    unconditional: bool,
    takes_both: bool = False,
) -> GuidedModel:
    """The labels steer the guide; a network that takes labels is told them too, unless `unconditional`.

    ValueError: y is not one label for each image.
    """
    if y is not None and y.shape != (len(x_T),):
        raise ValueError(f"y must be one label for each of {len(x_T)} images, not of shape {tuple(y.shape)}")
    told = y if getattr(model, "conditional", False) and not unconditional else None
    return GuidedModel(model, y, told, guide, clip, takes_both)


Sampler = Callable[..., Iterator[Step]]
