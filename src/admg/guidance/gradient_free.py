"""Gradient-free classifier guidance (Shenoy et al. 2024): a classifier chooses the label to guide away from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from admg.diffusion.gaussian import Prediction, working_dtype

from .classifier_free import away_from
from .gradient import At, check_at
from .logits import OfClassifier, check_arguments_at, checked_logits
from .numbers import Scale, check_scale, scale_at
from .state import State, check_conditional

Reference = Literal["label", "null"]


@dataclass(frozen=True, eq=False)
class GradientFreeGuidance(OfClassifier):
    """ε̂ = ε(x, r) + w (ε(x, y) - ε(x, r)), where a classifier sets r and w at each step and is never differentiated.

    r is the likeliest label other than y. w = 1 + (scale - 1)(1 - p(y | x)), so an image is left alone once the
    classifier is sure of it. (The paper lets w fall with the confidence; the straight line is our choice.)

    classifier: function (x_t, timesteps) -> logits (N, K) of the network's labels; with at="x0", x_0 -> logits
    scale: largest w, or a function of the noise level State.sigma; 1 costs nothing
    reference: "label" guides away from r as above, "null" away from the unconditional prediction
    at: "x0" evaluates a classifier of clean images at the predicted x_0

    Raises ValueError if the network is not conditioned on labels, the scale is not finite, or K is less than 2.
    """

    classifier: Callable[..., Tensor]
    scale: Scale = 2.0
    reference: Reference = "label"
    at: At = "x"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_at(self.at)
        check_arguments_at(self.classifier, self.at)
        if self.reference not in get_args(Reference):
            raise ValueError(f"reference must be 'label' or 'null', got {self.reference!r}")

    def uses_uncond(self, state: State) -> bool:
        return self.reference == "null" and scale_at(self.scale, state.sigma) != 1

    def modify_prediction(self, state: State) -> Prediction:
        y = check_conditional(state)
        scale = scale_at(self.scale, state.sigma)
        if scale == 1:
            return state.pred
        if self.uses_uncond(state):
            state.both()
        with torch.no_grad():
            images = [state.unguided.x0] if self.at == "x0" else [state.x, state.t]
            logits = checked_logits(self, state, *images)
        p = logits.to(working_dtype(logits)).softmax(-1)
        if p.shape[1] < 2:
            raise ValueError("gradient-free guidance needs a classifier with at least two labels")
        labelled, own = y >= 0, y.clamp(min=0)[:, None]
        doubt = 1 - p.gather(1, own)[:, 0]
        if self.reference == "null":
            weak = state.uncond
        else:
            rival = p.scatter(1, own, -1.0).argmax(1)
            weak = state.predict(torch.where(labelled, rival, -1))  # without a label, the same prediction again
        return away_from(state, weak, 1 + (scale - 1) * doubt.view(-1, 1, 1, 1))
