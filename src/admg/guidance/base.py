"""What a sampler asks of guidance at x_t: a change of the network's prediction, and a score to add to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Diffusion, Images, Index, Prediction


class DiffusionModel(Protocol):
    """What samplers and guides need of a model; admg.Model is one."""

    @property
    def diffusion(self) -> Diffusion: ...

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction: ...


@dataclass(frozen=True)
class Split(Prediction):
    """x0 and eps of different sources, of which eps alone makes the noise of the next step (CFG++).

    Neither follows from the other, so nothing may come after it that changes eps.
    """


@dataclass(frozen=True)
class State:
    """Where a sampler stands when it asks for guidance.

    x: x_t (N, C, H, W); t: the timestep as the network is told it, (1,); index: of t in `diffusion.schedule`
    y: the wanted labels (N,), or None; told: those of them that the network was told, or None
    raw: the network's prediction at x, as other guides have changed it; prediction: the same, its x0 clipped if `clip`
    model: to ask again, with other labels or at another x
    memory: what guides keep from step to step of one run, each under a key of its own
    unlabelled: the network's prediction at x without a label, if it was asked along with `raw`; not clipped
    takes_both: whether the sampler takes x0 and eps of a prediction apart, as DDIM's equation 12 does; see Split
    own: the network's prediction before any guide of a sum; None where raw is still that
    """

    x: Images
    t: Float[Tensor, " 1"]
    index: int
    y: Tensor | None
    told: Tensor | None
    raw: Prediction
    diffusion: Diffusion
    model: DiffusionModel
    clip: bool
    memory: dict[Any, Any] = field(default_factory=dict)
    takes_both: bool = False
    own: Prediction | None = None
    unlabelled: Prediction | None = None

    @cached_property
    def prediction(self) -> Prediction:
        if not self.clip:
            return self.raw
        clipped = self.diffusion.clipped(self.raw, self.x, self.index)
        return replace(clipped, eps=self.raw.eps) if isinstance(self.raw, Split) else clipped

    @property
    def unguided(self) -> Prediction:
        """The network's own prediction at x, of what it was told; not clipped."""
        return self.raw if self.own is None else self.own

    @property
    def sigma(self) -> float:
        """The noise level sqrt((1 - ᾱ) / ᾱ): the noise's deviation where the image keeps its scale (EDM's σ)."""
        return sigma_at(self.diffusion, self.index)

    def predict(self, y: Tensor | None = None) -> Prediction:
        """What the model says at x if it is told other labels, or none; not clipped."""
        if y is None and self.unlabelled is not None:
            return self.unlabelled
        return self.ask(self.model, y)

    def ask(self, model: DiffusionModel, y: Tensor | None = None) -> Prediction:
        """What this model, or another one of the same process, says at x; not clipped."""
        if model is not self.model:
            model = self.memory.setdefault(("asked", id(model)), at_steps_of(self.diffusion, model))
        return model.predict(self.x, self.index, y, clip=False)

    def with_eps(self, eps: Images) -> Prediction:
        """The prediction with another eps, and x0 and mean as they follow from it; the variance stays."""
        check_whole(self.raw)
        return self.diffusion.with_eps(self.raw, self.x, self.index, eps)

    def with_x0(self, x0: Images) -> Prediction:
        """The prediction with another x0, and eps and mean as they follow from it; the variance stays."""
        check_whole(self.raw)
        mean, _, _ = self.diffusion.posterior(x0, self.x, self.index)
        return replace(self.raw, x0=x0, eps=self.diffusion.eps_from_x0(self.x, self.index, x0), mean=mean)

    def differentiable(self) -> tuple[Images, Prediction]:
        """x as a leaf of a new graph, and what the model says there if it is told what it was told, not clipped.

        The network runs again, with gradients even within no_grad(). It is the network's own prediction, without what
        other guides have changed.
        """
        with torch.enable_grad():
            x = self.x.detach().requires_grad_(True)
            return x, self.model.predict(x, self.index, self.told, clip=False)


def sigma_at(diffusion: Diffusion, index: int) -> float:
    """State.sigma at this step."""
    alpha_bar = diffusion.at("alpha_bar", index)
    return ((1 - alpha_bar) / alpha_bar) ** 0.5 if alpha_bar else float("inf")


Guide = Callable[[State], Tensor | None]
"""Guidance: the score ∇ log of whatever is wanted, at state.x, (N, C, H, W) float32; None where it adds nothing."""


class Guidance:
    """A base for guides that compose: with `a + b`, the changes are made in this order, and the scores are added.

    Guides that compare two predictions, such as ClassifierFreeGuidance, add (w - 1) times the difference of the
    network's own one and the worse one to whatever is there: differences of scores add too, in any order.

    A guide need not inherit from it: a plain function of a State is a score.
    """

    def change(self, state: State) -> Prediction:
        """The prediction to sample from in place of state.raw; it is clipped afterwards, and scores are added last."""
        return state.raw

    def __call__(self, state: State) -> Tensor | None:
        """The score to add, (N, C, H, W) float32, or None."""
        return None

    def compares(self, sigma: float) -> bool:
        """Whether it will ask at this noise level what the network says without a label; it may be asked earlier."""
        return False

    def __add__(self, other: Guide) -> Sum:
        return Sum((self, other))

    def __radd__(self, other: Guide) -> Sum:
        return Sum((other, self))


@dataclass(frozen=True)
class Sum(Guidance):
    """Several guides: each changes what the one before it left; the scores are added, the gradient of a product."""

    guides: tuple[Guide, ...]

    def change(self, state: State) -> Prediction:
        state = replace(state, own=state.unguided)
        for guide in self.guides:
            state = replace(state, raw=changed(guide, state))
        return state.raw

    def __call__(self, state: State) -> Tensor | None:
        scores = [score for guide in self.guides if (score := guide(state)) is not None]
        if scores:
            check_whole(state.raw)
        return sum(scores[1:], start=scores[0]) if scores else None

    def compares(self, sigma: float) -> bool:
        return any(compares(guide, sigma) for guide in self.guides)

    @property
    def classifier(self) -> Any:
        """The first one's, if any has one: its labels may be asked for by name."""
        return next((c for guide in self.guides if (c := getattr(guide, "classifier", None)) is not None), None)


def at_steps_of(diffusion: Diffusion, model: Any) -> Any:
    """The model (a dataclass, such as admg.Model) at the steps of a respaced process.

    ValueError: it was trained on another process.
    """
    known = dict(zip(model.diffusion.schedule.timesteps.tolist(), model.diffusion.schedule.alphas_cumprod.tolist()))
    steps = zip(diffusion.schedule.timesteps.tolist(), diffusion.schedule.alphas_cumprod.tolist())
    if any(abs(known.get(t, -1.0) - alpha_bar) > 1e-9 for t, alpha_bar in steps):
        raise ValueError("the other model must have been trained on the same noise schedule")
    own = model.diffusion
    return replace(model, diffusion=Diffusion(diffusion.schedule, own.predicts, own.variance))


def check_whole(prediction: Prediction) -> None:
    """ValueError: it is Split."""
    if isinstance(prediction, Split):
        raise ValueError("CFG++ takes x0 and eps apart: no score can be added, and no guide can change its prediction")


def changed(guide: Guide, state: State) -> Prediction:
    """state.raw as the guide changes it; a plain function leaves it."""
    return guide.change(state) if isinstance(guide, Guidance) else state.raw


def compares(guide: Guide | None, sigma: float) -> bool:
    """Whether the guide will ask what the network says without a label; of a plain function it is not known."""
    return isinstance(guide, Guidance) and guide.compares(sigma)
