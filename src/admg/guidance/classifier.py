"""Classifier guidance (Dhariwal & Nichol 2021, section 4). Options of later papers are in classifier_options.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images, working_dtype

from .gradient import differentiate
from .logits import OfClassifier, check_arguments_at, check_logits, checked_logits
from .numbers import Scale, check_scale, scale_at
from .state import State

ClassifierFunction = Callable[[Images, Tensor], Tensor]
"""(x_t, timesteps) -> logits (N, K), differentiable in x_t."""


@dataclass(frozen=True, eq=False)
class ClassifierGuidance(OfClassifier):
    """The gradient s ∇ log p(y | x_t) of a classifier trained on noised images.

    classifier: function (x_t, timesteps) -> logits (N, K), differentiable in x_t
    scale: guidance scale s, or a function of the noise level `State.sigma`; 1 samples from p(x) p(y | x), larger values
        give samples that follow the label more closely and are less diverse, and 0 does not evaluate the classifier

    Raises ValueError if the scale is not finite, if the sampler is given no labels y, or if the classifier takes no
    timesteps or does not return logits of the target labels, or of all labels of the model. Warns of probabilities.
    """

    classifier: ClassifierFunction
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_arguments_at(self.classifier, "x")

    def __call__(self, state: State) -> Images | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0:
            return None
        if state.y is None:
            raise ValueError("classifier guidance needs labels: pass y to the sampler, one target label per image")

        def classifier(x: Tensor, t: Tensor) -> Tensor:
            return checked_logits(self, state, x, t)

        return scale * log_prob_gradient(classifier, state.x, state.t, state.y, state.highest_label)


def log_prob_gradient(
    classifier: ClassifierFunction, x: Images, t: Tensor, y: Tensor, highest_label: int | None = None
) -> Float[Tensor, "n c h w"]:
    """Return ∇_x log p(y | x_t), the gradient of the target label's log-softmax, in float32 (float64 for float64 x).

    y: labels (N,); the gradient is 0 for images with the label -1
    highest_label: the highest of these labels, if it is known

    Raises ValueError if the classifier does not return logits (N, K) of these labels.
    """
    dtype = working_dtype(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = classifier(x, t)
        check_logits(logits, y, highest_label)
        log_p = torch.log_softmax(logits.to(dtype), dim=-1)
        log_p_y = log_p.gather(1, y.clamp(min=0)[:, None])[:, 0] * (y >= 0)
        return differentiate(log_p_y, x, "the classifier").to(dtype)
