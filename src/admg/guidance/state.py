"""The information available to a guide at a step of a sampler."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images, Index, Prediction

from .rows import batch_rows


class DiffusionModel(Protocol):
    """The part of a model that samplers and guides use. admg.Model implements it.

    A model may also have `predict_both(x, t, y)`, which returns the predictions with and without labels, not clipped.
    """

    @property
    def diffusion(self) -> Diffusion: ...

    @property
    def conditional(self) -> bool:
        """Whether the network can be conditioned on labels."""
        ...

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction: ...


@dataclass
class NetworkPredictions:
    """The network's predictions at one step, if they have been computed."""

    unguided: Prediction | None = None
    uncond: Prediction | None = None


@dataclass(frozen=True)
class State:
    """The state of a sampler at one step, from which a guide computes its gradient.

    x: x_t, (N, C, H, W)
    index: index of the step in `diffusion.schedule`
    y: target labels (N,), or None
    model_y: labels (N,) that the network is conditioned on, or None
    model: the model, which a guide may evaluate again
    clip: whether the sampler clips predicted images to [-1, 1]
    modified: the network's prediction as earlier guides have modified it; None if they have not
    computed: predictions of the network, shared by all states of the step
    highest_label: the highest number in y, if it is known without waiting for a GPU
    """

    x: Images
    index: int
    y: Tensor | None
    model_y: Tensor | None
    model: DiffusionModel
    clip: bool = True
    modified: Prediction | None = None
    computed: NetworkPredictions = field(default_factory=NetworkPredictions, repr=False, compare=False)
    highest_label: int | None = None

    @property
    def diffusion(self) -> Diffusion:
        """The diffusion process at the sampler's steps."""
        return self.model.diffusion

    @property
    def t(self) -> Tensor:
        """The timestep given to networks and classifiers, (1,). `model.predict` takes `index` instead."""
        return self.diffusion.timestep(self.index, self.x.device, self.x.dtype)

    @property
    def rows(self) -> slice:
        """The images of this batch among all images of the call: `references[state.rows]` has a row for each of x."""
        return batch_rows(len(self.x))

    @property
    def sigma(self) -> float:
        """The noise level σ = sqrt((1 - ᾱ) / ᾱ)."""
        return self.diffusion.schedule.sigma(self.index)

    @property
    def pure_noise(self) -> bool:
        """Whether ᾱ = 0: x is noise alone, every x0 has the same eps, and the gradient of any log p(y | x_t) is 0."""
        return self.diffusion.schedule.is_pure_noise(self.index)

    # -- predictions at x, computed when they are first needed ---------------------------------------------------

    @property
    def pred(self) -> Prediction:
        """The prediction as guides have modified it so far, not clipped."""
        return self.unguided if self.modified is None else self.modified

    @cached_property
    @torch.no_grad()
    def prediction(self) -> Prediction:
        """The prediction to sample from: `pred`, with x0 clipped to [-1, 1] if the sampler clips."""
        if not self.clip or not self.pred.consistent:
            return self.pred
        return self.diffusion.clip_x0(self.pred, self.x, self.index)

    @property
    def unguided(self) -> Prediction:
        """The network's own prediction given `model_y`, not clipped."""
        if self.computed.unguided is None:
            self.computed.unguided = self.predict(self.model_y)
        return self.computed.unguided

    @property
    def uncond(self) -> Prediction:
        """The network's unconditional prediction, not clipped."""
        if self.computed.uncond is None:
            self.computed.uncond = self.predict(None)
        return self.computed.uncond

    @torch.no_grad()
    def both(self) -> tuple[Prediction, Prediction]:
        """Return `unguided` and `uncond`, computed in one call of the network where that is faster.

        Raises ValueError if the network is not conditioned on labels.
        """
        check_conditional(self)
        predict_both: Any = getattr(self.model, "predict_both", None)
        if predict_both is not None and self.computed == NetworkPredictions():
            self.computed.unguided, self.computed.uncond = predict_both(self.x, self.index, self.model_y)
        return self.unguided, self.uncond

    @torch.no_grad()
    def predict(self, y: Tensor | None) -> Prediction:
        """Return the network's prediction at x for other labels y (N,), or for None without labels; not clipped."""
        return self.model.predict(self.x, self.index, y, clip=False)

    @torch.enable_grad()
    def differentiable(self) -> tuple[Images, Prediction]:
        """Return x as a leaf of a new autograd graph, and the network's own prediction there, not clipped.

        This evaluates the network again, with gradients. In a guide,

            x, prediction = state.differentiable()
            return torch.autograd.grad(log_p(prediction.x0).sum(), x)[0]

        is the gradient of log_p(x0-hat(x_t)), where log_p is a function of images that returns (N,).
        """
        x = self.x.detach().requires_grad_(True)
        return x, self.model.predict(x, self.index, self.model_y, clip=False)

    # -- modified predictions ------------------------------------------------------------------------------------

    def with_pred(self, prediction: Prediction) -> State:
        """Return the state after a guide has modified the prediction."""
        return replace(self, modified=prediction)

    def moved(self, weight: float | Images, towards: Prediction, away: Prediction) -> Prediction:
        """Return `pred` with weight · (towards - away) added to eps.

        At pure noise, where x0 does not follow from eps, it is added to x0. This is the same, since at every other
        level eps and x0 of a prediction are linear in one another.
        """
        if self.pure_noise:
            return self.with_x0(self.pred.x0 + weight * (towards.x0 - away.x0))
        return self.with_eps(self.pred.eps + weight * (towards.eps - away.eps))

    def with_eps(self, eps: Images) -> Prediction:
        """Return `pred` with another eps, from which x0 and the mean follow. Raises ValueError at pure noise."""
        check_consistent(self.pred)
        return self.diffusion.with_eps(self.pred, self.x, self.index, eps)

    def with_x0(self, x0: Images) -> Prediction:
        """Return `pred` with another x0, from which eps and the mean follow."""
        check_consistent(self.pred)
        return self.diffusion.with_x0(self.pred, self.x, self.index, x0)


def check_conditional(state: State) -> Tensor:
    """Return the labels that the network is conditioned on. Raises ValueError if there are none."""
    if state.model_y is None:
        if state.y is not None and getattr(state.model, "conditional", False):
            raise ValueError("this guidance needs conditional predictions: it cannot be used with unconditional=True")
        raise ValueError("this guidance needs a conditional model that is given labels y")
    return state.model_y


def check_consistent(prediction: Prediction) -> None:
    """Raise ValueError if x0 and eps of the prediction come from different sources, as those of CFG++ do."""
    if not prediction.consistent:
        raise ValueError(
            "CFG++ needs a sampler that combines x0 and eps itself, such as ddim, and no other guide after it: "
            "its x0 and eps come from different predictions, so no gradient can be added to them"
        )
