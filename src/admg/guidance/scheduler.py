"""Guides in the loop of a scheduler of diffusers, for networks with the call signature of diffusers.

Nothing of diffusers is imported: a scheduler has `alphas_cumprod`, `timesteps` and `config.prediction_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images, Index, Predict, Prediction
from admg.diffusion.schedule import NoiseSchedule
from admg.diffusion.unlabelled import Rows, called_apart

from .base import Guide, begin, gradient_of, modified_prediction
from .bounded import Bounded
from .state import NetworkPredictions, State, check_consistent

PREDICTS: dict[str, Predict] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What a network predicts, by its name in diffusers."""
Denoiser = Callable[[Images, Tensor, Tensor | None], Tensor]
"""(x, timestep, labels or None) -> output of a network, (N, C or 2C, H, W)."""


class SchedulerGuidance:
    """A guided network of diffusers, for the loop of a scheduler with variance-preserving noise.

        guided = SchedulerGuidance(guide, scheduler, unet, y=labels)
        for t in scheduler.timesteps:
            output = guided(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(output, t, x).prev_sample

    The gradient g is subtracted as sqrt(1 - ᾱ) g from eps (Algorithm 2), whatever the scheduler. For DDPMScheduler this
    adds β/sqrt(1 - β) g to the mean, where Algorithm 1 adds Σ g.

    guide: guide; guides of classifiers of x_t must have been trained on this process
    scheduler: scheduler of diffusers, after set_timesteps
    network: a UNet2DModel, or a function (x, t, y) -> output
    y: target labels (N,)
    conditional: whether the network is conditioned on y, too; None: if it is a UNet2DModel with class embeddings
    clip: whether the predicted x0 is clipped to [-1, 1] before the gradient is added, as the samplers of admg do. A
        scheduler may clip again after it: turn that off by clip_sample=False, or leave this off
    bound: whether gradients are limited to the range possible for images in [-1, 1], if x0 is clipped; see Bounded

    Raises ValueError if the scheduler has another kind of process.
    """

    def __init__(
        self,
        guide: Guide,
        scheduler: Any,
        network: Any,
        *,
        y: Tensor | None = None,
        conditional: bool | None = None,
        clip: bool = False,
        bound: bool = True,
    ) -> None:
        self.guide = Bounded(guide) if bound else guide
        self.scheduler, self.y, self.clip = scheduler, y, clip
        self.predicts = predicts(scheduler)
        config = getattr(network, "config", None)
        if conditional is None:
            conditional = bool(getattr(config, "num_class_embeds", None))
        self.conditional = conditional
        self.network: Denoiser = unlabelled_apart(called(network) if config is not None else network)
        self.running: Guide = self.guide
        self.last: tuple[float, torch.Size] | None = None
        """Timestep and shape of x of the last call."""

    def __call__(self, x: Images, t: Tensor | float) -> Tensor:
        """Return the output to pass to `scheduler.step`, in the form of the network's own.

        x: input of the network, (N, C, H, W): x_t, for some schedulers after scale_model_input
        t: timestep, one of `scheduler.timesteps`
        """
        steps = tuple(sorted({float(step) for step in self.scheduler.timesteps}))
        if float(t) not in steps:
            raise ValueError(f"timestep {float(t):g} is not in scheduler.timesteps: call set_timesteps first")
        index = steps.index(float(t))
        if not self._continues(float(t), x.shape):
            self.begin()
        self.last = float(t), x.shape
        y = None if self.y is None else self.y.to(x.device)
        labels = y if self.conditional else None
        with torch.no_grad():
            output = self.network(x, torch.as_tensor(t, device=x.device), labels)
        learned = output.shape[1] == 2 * x.shape[1]
        curve = schedule(tuple(self.scheduler.alphas_cumprod.tolist()), steps)
        diffusion = Diffusion(curve, self.predicts, "learned_range" if learned else "fixed_small")
        return followed(self.running, _Model(diffusion, self.network, self.conditional), x, index, y, output, self.clip)

    def begin(self) -> None:
        """Begin a run: guides with a memory, such as APG and Reused, forget the steps so far.

        A call begins one by itself unless its timestep follows the last one in `scheduler.timesteps`. Call this after a
        loop that was stopped early.
        """
        self.running, self.last = begin(self.guide), None

    def _continues(self, t: float, shape: torch.Size) -> bool:
        """Return whether a call belongs to the run of the last one."""
        if self.last is None or self.last[1] != shape:
            return False
        order = [float(step) for step in self.scheduler.timesteps]
        return (self.last[0], t) in pairwise(order)


class _Model:
    """The DiffusionModel that guides see."""

    def __init__(self, diffusion: Diffusion, network: Denoiser, conditional: bool):
        self.diffusion, self.network, self.conditional = diffusion, network, conditional

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction:
        timestep = torch.as_tensor(self.diffusion.schedule.timesteps[torch.as_tensor(t).cpu()], device=x.device)
        integer = timestep.round().long() if bool((timestep == timestep.round()).all()) else timestep.float()
        return self.diffusion.predict(self.network(x, integer, y), x, t, clip=clip)


def unlabelled_apart(network: Denoiser) -> Denoiser:
    """Return the network with calls of their own, without labels, for images whose label is -1."""

    def call(x: Images, t: Tensor, y: Tensor | None) -> Tensor:
        def of(rows: Rows, labels: Tensor | None) -> Tensor:
            return network(x[rows], t[rows] if t.ndim and len(t) == len(x) else t, labels)

        return called_apart(y, of)

    return call


@torch.no_grad()
def followed(
    guide: Guide, model: _Model, x: Images, index: int, y: Tensor | None, output: Tensor, clip: bool
) -> Tensor:
    """Return the network's output, modified by the guide.

    output: output of the network at x, (N, C or 2C, H, W); channels of a variance are unchanged
    """
    diffusion, alpha_bar = model.diffusion, model.diffusion.schedule.alpha_bar[index].item()
    known = NetworkPredictions(unguided=diffusion.predict(output, x, index, clip=False))
    state = State(x.detach(), index, y, y if model.conditional else None, model, clip, computed=known)
    state = state.with_pred(modified_prediction(guide, state))
    p, g = state.prediction, gradient_of(guide, state)
    check_consistent(p)
    eps, x0 = p.eps, p.x0
    if g is not None and not state.pure_noise:
        eps = p.eps - math.sqrt(1 - alpha_bar) * g  # Algorithm 2
        x0 = diffusion.x0_from_eps(x, index, eps)
    if diffusion.predicts == "eps":
        guided = eps
    elif diffusion.predicts == "x0":
        guided = x0
    else:
        guided = math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * x0
    return torch.cat([guided.to(output), output[:, x.shape[1] :]], dim=1)


def predicts(scheduler: Any) -> Predict:
    """Return what a network predicts for a scheduler. Raises ValueError if its process has no counterpart here."""
    prediction = getattr(scheduler.config, "prediction_type", "epsilon")
    if getattr(scheduler, "alphas_cumprod", None) is None or prediction not in PREDICTS:
        raise ValueError(
            f"{type(scheduler).__name__} with prediction_type {prediction}: guides need variance-preserving noise "
            f"(alphas_cumprod) and one of {', '.join(PREDICTS)}"
        )
    return PREDICTS[prediction]


@lru_cache(maxsize=4)
def schedule(alphas_cumprod: tuple[float, ...], steps: tuple[float, ...]) -> NoiseSchedule:
    """Return the noise schedule at increasing timesteps.

    Between two integer timesteps, as some schedulers have them, the noise level σ is interpolated linearly.
    """
    curve = np.array(alphas_cumprod, dtype=np.float64)
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt((1 - curve) / curve)
    whole = [int(step) if step == int(step) else None for step in steps]
    between = 1 / (1 + np.interp(steps, np.arange(len(curve)), sigmas) ** 2)
    alpha_bar = torch.tensor([curve[n] if n is not None else value for n, value in zip(whole, between)])
    return NoiseSchedule.from_alpha_bar(alpha_bar, torch.tensor(steps, dtype=torch.float64))


def called(unet: Any) -> Denoiser:
    """Return a function (x, t, y) -> output that calls a UNet2DModel."""

    def call(x: Images, t: Tensor, y: Tensor | None) -> Tensor:
        labels = {} if y is None else {"class_labels": y}
        output: Tensor = unet(x, t, return_dict=False, **labels)[0]
        return output

    return call
