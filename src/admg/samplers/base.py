"""The common part of all samplers: predict with the model and evaluate the guide.

A sampler is a generator function `sampler(model, x_T, *, y, guide, noise_sampler, clip, unconditional)` that yields a
`Step` for each step. To write one, build a `GuidedModel` with `guided_model` and call its `predict` (Algorithm 1,
Algorithm 2) or `predict_guided` (ODE solvers); see docs/guidance.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admg.diffusion.gaussian import Images, Prediction
from admg.guidance.base import Guide, begin, gradient_of, modified_prediction, reads_labels
from admg.guidance.mistakes import check_is_guide
from admg.guidance.state import DiffusionModel, State, check_consistent

NoiseSampler = Callable[[Images, int], Images]
"""(x, index) -> standard normal noise with the shape of x, for the step from x at `index`."""


@dataclass(frozen=True)
class Step:
    """The result of a step of a sampler.

    x: x_{t-1}, (N, C, H, W)
    x0: the image predicted in this step, (N, C, H, W)
    t: timestep given to the network
    index: index of t in the schedule, from len(schedule) - 1 down to 0
    """

    x: Images
    x0: Images
    t: int | float
    index: int


Sampler = Callable[..., Iterator[Step]]


def gaussian_noise(x: Images, index: int) -> Images:
    """Return standard normal noise with the shape of x from torch's global random number generator."""
    return torch.randn_like(x)


@dataclass(frozen=True)
class GuidedModel:
    """A model together with the guide that steers it, for one run of a sampler.

    model: diffusion model
    y: target labels (N,) of the guide, or None
    model_y: labels (N,) that the network is conditioned on, or None
    guide: guide, or None
    clip: whether predicted images are clipped to [-1, 1] before guidance
    highest_label: the highest number in y, which guides compare with the classes of a classifier
    """

    model: DiffusionModel
    y: Tensor | None
    model_y: Tensor | None
    guide: Guide | None
    clip: bool = True
    highest_label: int | None = None

    def indices(self) -> range:
        """Return the indices of the schedule from the noisiest step to the last."""
        return range(len(self.model.diffusion) - 1, -1, -1)

    @torch.no_grad()
    def predict(self, x: Images, index: int) -> tuple[Prediction, Images | None]:
        """Return the model's prediction at x_t = x and the guide's gradient g = s ∇ log p(y | x_t), or None.

        At pure noise, ᾱ = 0, there is no gradient: x_t says nothing about x_0, so that log p(y | x_t) is constant.
        """
        if self.guide is None:
            return self.model.predict(x, index, self.model_y, clip=self.clip), None
        state, version = self.state(x, index), _version(x)
        state = state.with_pred(modified_prediction(self.guide, state))  # for example classifier-free guidance
        g = gradient_of(self.guide, state)
        if _version(x) != version:
            raise ValueError("the guide has changed state.x in place, which the sampler continues from: use a copy")
        return state.prediction, None if state.pure_noise else g

    def predict_guided(self, x: Images, index: int) -> Prediction:
        """Return the prediction with the guide's gradient added to its score, for samplers that follow eps or x0."""
        p, g = self.predict(x, index)
        check_consistent(p)
        if g is None:
            return p
        diffusion = self.model.diffusion
        eps = p.eps - math.sqrt(1 - diffusion.schedule.alpha_bar[index]) * g  # Algorithm 2
        return diffusion.with_eps(p, x, index, eps)

    def state(self, x: Images, index: int) -> State:
        """Return the state that the guide is evaluated with."""
        return State(x.detach(), index, self.y, self.model_y, self.model, self.clip, highest_label=self.highest_label)

    def step(self, x: Images, x0: Images, index: int) -> Step:
        """Return the Step to yield after the step at `index`."""
        return Step(x, x0, self.model.diffusion.schedule.timesteps[index].item(), index)


def _version(x: Tensor) -> int | None:
    """Return the number of changes of a tensor in place; None in inference mode, which does not count them."""
    return None if x.is_inference() else x._version


def guided_model(
    model: DiffusionModel, x_T: Images, y: Any, guide: Guide | None, clip: bool, unconditional: bool
) -> GuidedModel:
    """Return the GuidedModel of a run. The arguments are those of a sampler; see samplers.ddpm.

    The labels y steer the guide. A conditional network is conditioned on them too, unless `unconditional`.

    Raises ValueError for what is not a guide, and if y is not one label per image or has no effect.
    """
    check_is_guide(guide)
    if y is None:
        return GuidedModel(model, None, None, begin(guide), clip)
    y = label_tensor(y, x_T)
    model_y = y if getattr(model, "conditional", False) and not unconditional else None
    if y.is_meta or not len(y):
        return GuidedModel(model, y, model_y, begin(guide), clip)
    lowest, highest = (int(end) for end in y.aminmax())  # once per run, since it waits for a GPU
    if lowest < -1:
        raise ValueError(f"labels must be at least 0, or -1 for images without a label, got {lowest}")
    if highest >= 0 and model_y is None and not unconditional and (guide is None or not reads_labels(guide)):
        raise ValueError("y would have no effect: the network is not conditioned on labels, and no guide uses them")
    return GuidedModel(model, y, model_y, begin(guide), clip, highest)


def label_tensor(y: Any, x: Images) -> Tensor:
    """Return labels as int64 (N,) on the device of x. Raises ValueError if they are not a whole number per image."""
    try:
        labels = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"y must hold a whole number per image, got {y!r}") from None
    if labels.shape != (len(x),):
        raise ValueError(f"y must have shape ({len(x)},), one label per image, got {tuple(labels.shape)}")
    if len(x) and (labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex()):
        raise ValueError(f"y must hold a whole number per image, got {labels.dtype}")
    return labels.to(x.device, torch.int64)
