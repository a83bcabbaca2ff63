"""Divergence-regularised classifier guidance (Javid et al. 2025, "Enhancing diffusion model guidance through ...")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .numbers import finite

Kind = Literal["q||p", "p||q", "js"]


@dataclass(frozen=True)
class Divergence:
    """The term -λ D(p, q) with p = p(· | x) and q = (1 - ε) [k = y] + ε/K, added to the classifier's log-probability.

    Where the classifier is sure of y, ∇ log p(y | x) vanishes. The gradient of -KL(q || p) in the logits, q - p, does
    not: it reduces probabilities that exceed those of q, so the image keeps changing. (The paper names the divergences;
    the target q, a smoothed label, is our choice.)

    weight: weight λ
    kind: "q||p" covers all of q; "p||q" and "js" (Jensen-Shannon) are bounded, and their gradients vanish where p is
        sure of any label
    smoothing: label smoothing ε in [0, 1), above 0 for "p||q", which is infinite otherwise. With several target labels,
        q has their weights instead of [k = y]

    Raises ValueError if a number is out of range or if a label has a negative weight.
    """

    weight: float = 1.0
    kind: Kind = "q||p"
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        finite(self.weight, "the weight of the divergence")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not 0 <= self.smoothing < 1 or (self.kind == "p||q" and self.smoothing == 0):
            above = "above 0 and below 1 for p||q" if self.kind == "p||q" else "in [0, 1)"
            raise ValueError(f"smoothing must be {above}, got {self.smoothing}")

    def __call__(self, log_p: Float[Tensor, "n k"], weights: Tensor) -> Float[Tensor, " n"]:
        """Return -λ D of each image.

        weights: weights of the target labels, (N, K) or (K,); all 0 for an image without a target label
        """
        weights = weights.expand_as(log_p)
        if (weights < 0).any():
            raise ValueError("a divergence cannot avoid labels: no label may have a negative weight")
        total = weights.sum(-1, keepdim=True)
        q = (1 - self.smoothing) * weights / total.clamp(min=1e-12) + self.smoothing / log_p.shape[1]
        if self.kind == "js":
            log_m = torch.logaddexp(log_p, q.log()) - torch.log(q.new_tensor(2.0))
            d = (_kl_to_q(log_m, q) + (log_p.exp() * (log_p - log_m)).sum(-1)) / 2
        else:
            d = _kl_to_q(log_p, q) if self.kind == "q||p" else (log_p.exp() * (log_p - q.log())).sum(-1)
        return -self.weight * d * (total[:, 0] > 0)


def _kl_to_q(log_p: Tensor, q: Tensor) -> Float[Tensor, " n"]:
    """Return KL(q || p), with 0 for the terms in which q is 0."""
    return (torch.xlogy(q, q) - q * log_p).sum(-1)
