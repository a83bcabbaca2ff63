"""Classifier guidance (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..diffusion import Images
from .base import Guidance, State


@dataclass(frozen=True)
class Classifier(Guidance):
    """s ∇_x log p(y | x_t, t), by a classifier of noised images.

    classifier: any function (x_t, timesteps) -> logits (N, K) that is differentiable in x_t
    scale: s; 1 samples from p(x)·p(y | x), larger is surer of the label and less diverse, 0 costs nothing
    """

    classifier: Callable[[Images, Tensor], Tensor]
    scale: float = 1.0

    def __post_init__(self):
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale must be a finite number, got {self.scale}")

    def __call__(self, state: State) -> Tensor | None:
        if self.scale == 0:
            return None
        if state.y is None:
            raise ValueError("classifier guidance needs labels: give the sampler y, one wanted label per image")
        return self.scale * log_prob_gradient(self.classifier, state.x, state.t, state.y)


def log_prob_gradient(
    classifier: Callable[[Images, Tensor], Tensor], x: Images, t: Tensor, y: Tensor
) -> Float[Tensor, "n c h w"]:
    """∇_x log p(y | x, t) of each image, in float32: of log-softmax at the wanted label, summed over the batch.

    y: (N,) labels; -1 where none is wanted, which gives a gradient of 0
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        log_p = torch.log_softmax(classifier(x, t).float(), dim=-1)
        wanted = log_p.gather(1, y.clamp(min=0)[:, None])[:, 0] * (y >= 0)
        return torch.autograd.grad(wanted.sum(), x)[0].float()
