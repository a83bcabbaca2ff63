"""Gradient-free classifier guidance (Shenoy et al. 2024): a classifier's word alone, on what to guide away from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from admg.diffusion.gaussian import Prediction

from .base import Guidance, State
from .classifier_free import away_from, check_told
from .gradient import At, Scale, check_at, check_scale, scale_at

Reference = Literal["label", "null"]


@dataclass(frozen=True, eq=False)
class GradientFreeGuidance(Guidance):
    """ε̂ = ε(x, r) + w (ε(x, y) - ε(x, r)): classifier-free guidance whose r and w a classifier sets at each step.

    r is the likeliest label beside y, which the image is most taken for; w = 1 + (scale - 1)(1 - p(y | x)), so that an
    image is left alone once the classifier is sure of it. The classifier is never differentiated. (That w falls with
    the confidence is the source's; the line from scale to 1 is the plainest one that does.)

    classifier: (x_t, timesteps) -> logits (N, K) of the network's own labels
    scale: the largest w; 1 costs nothing; or a function of the noise level State.sigma
    reference: "label": r as above; "null": no label, as ClassifierFreeGuidance has it, with w by the classifier
    at: "x0": the classifier knows clean images alone, and is called as classifier(x0) at the predicted x_0
    ValueError: the network was told no labels; a scale that is not finite; fewer than two labels to tell apart.
    """

    classifier: Callable[..., Tensor]
    scale: Scale = 2.0
    reference: Reference = "label"
    at: At = "x"

    def __post_init__(self):
        check_scale(self.scale)
        check_at(self.at)
        if self.reference not in get_args(Reference):
            raise ValueError(f"the reference is a 'label' or 'null', not {self.reference!r}")

    def compares(self, sigma: float) -> bool:
        return self.reference == "null" and scale_at(self.scale, sigma) != 1

    def change(self, state: State) -> Prediction:
        told = check_told(state)
        scale = scale_at(self.scale, state.sigma)
        if scale == 1:
            return state.raw
        with torch.no_grad():
            images = [state.unguided.x0] if self.at == "x0" else [state.x, state.t]
            p = self.classifier(*images).float().softmax(-1)
        if p.shape[1] < 2:
            raise ValueError("gradient-free guidance needs a classifier of two labels or more")
        own, labelled = told.clamp(min=0)[:, None], told >= 0
        doubt = 1 - p.gather(1, own)[:, 0]
        other = p.scatter(1, own, -1.0).argmax(1) if self.reference == "label" else None
        ask = None if other is None else torch.where(labelled, other, -1)  # with no label: its own prediction
        return away_from(state, state.predict(ask).eps, 1 + (scale - 1) * doubt.view(-1, 1, 1, 1))
