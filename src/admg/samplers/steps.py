"""What every sampler does before its own step: count down, predict, ask for guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion import Diffusion, Images, Index, Prediction
from ..guidance import Guide, State

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


class DiffusionModel(Protocol):
    """What a sampler needs of a model; admg.Model is one."""

    @property
    def diffusion(self) -> Diffusion: ...

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction: ...


def gaussian_noise(x: Images, index: int) -> Images:
    """The default noise sampler: torch's global random numbers."""
    return torch.randn_like(x)


@dataclass(frozen=True)
class Walk:
    """One pass through a model's schedule, from noise to image, asking the model and the guide at each step.

    y: labels (N,) that the guide wants; network_y: those that the network is told, or None for an unconditional one
    """

    model: DiffusionModel
    y: Tensor | None
    network_y: Tensor | None
    guide: Guide | None
    clip: bool

    def indices(self) -> range:
        return range(len(self.model.diffusion) - 1, -1, -1)

    def predict(self, x: Images, index: int) -> tuple[Prediction, Float[Tensor, "n c h w"] | None]:
        """The unguided prediction at x, and the score that the guide adds."""
        with torch.no_grad():
            p = self.model.predict(x, index, self.network_y, clip=self.clip)
            if self.guide is None:
                return p, None
            diffusion = self.model.diffusion
            return p, self.guide(State(x, diffusion.timestep(index, x.device), index, self.y, p, diffusion))

    def step(self, x: Images, x0: Images, index: int) -> Step:
        return Step(x, x0, self.model.diffusion.schedule.timesteps[index].item(), index)


def walk(
    model: DiffusionModel, x_T: Images, y: Tensor | None, guide: Guide | None, clip: bool, drop_label: bool
) -> Walk:
    """The labels steer the guide; a network that takes labels is told them too, unless `drop_label`.

    ValueError: y is not one label for each image.
    """
    if y is not None and y.shape != (len(x_T),):
        raise ValueError(f"y must be one label for each of {len(x_T)} images, not of shape {tuple(y.shape)}")
    told = y if getattr(model, "conditional", False) and not drop_label else None
    return Walk(model, y, told, guide, clip)


Sampler = Callable[..., Iterator[Step]]
