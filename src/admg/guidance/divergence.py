"""Divergence-regularised classifier guidance (Javid et al. 2025, "Enhancing diffusion model guidance through ...")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .gradient import finite

Kind = Literal["q||p", "p||q", "js"]


@dataclass(frozen=True)
class Divergence:
    """-λ D of p = p(· | x) and q = (1 - ε) [k = y] + ε/K, which Classifier adds to its log-probability.

    Where the classifier is sure of y, ∇ log p(y | x) vanishes. The gradient of -KL(q || p) in the logits, q - p, does
    not: it leads back from a certainty above q's, so that the image goes on changing. (The source names the
    divergences; the target q, a smoothed label, is as defined here.)

    weight: λ
    kind: "q||p" covers all of q; "p||q" and "js" (Jensen-Shannon, the mean of both to their mixture) are bounded, and
        their gradients vanish where p is sure, of whatever label
    smoothing: ε in [0, 1); above 0 for "p||q", which is infinite otherwise. With several wanted labels, q has their
        weights in place of [k = y]
    ValueError: a number out of its range; labels to avoid, of negative weight.
    """

    weight: float = 1.0
    kind: Kind = "q||p"
    smoothing: float = 0.1

    def __post_init__(self):
        finite(self.weight, "the weight of the divergence")
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown divergence {self.kind!r}: {', '.join(get_args(Kind))}")
        if not 0 <= self.smoothing < 1 or (self.kind == "p||q" and self.smoothing == 0):
            above = "above 0 and below 1 for p||q" if self.kind == "p||q" else "in [0, 1)"
            raise ValueError(f"the smoothing of a label must be {above}, got {self.smoothing}")

    def __call__(self, log_p: Float[Tensor, "n k"], weights: Tensor) -> Float[Tensor, " n"]:
        """-λ D of each image; weights: of the wanted labels, (N, K) or (K,), 0 throughout where none is wanted."""
        weights = weights.expand_as(log_p)
        if (weights < 0).any():
            raise ValueError("a divergence is from labels to follow: none may have a negative weight")
        total = weights.sum(-1, keepdim=True)
        q = (1 - self.smoothing) * weights / total.clamp(min=1e-12) + self.smoothing / log_p.shape[1]
        if self.kind == "js":
            log_m = torch.logaddexp(log_p, q.log()) - torch.log(q.new_tensor(2.0))
            d = (_kl_to_q(log_m, q) + (log_p.exp() * (log_p - log_m)).sum(-1)) / 2
        else:
            d = _kl_to_q(log_p, q) if self.kind == "q||p" else (log_p.exp() * (log_p - q.log())).sum(-1)
        return -self.weight * d * (total[:, 0] > 0)


def _kl_to_q(log_p: Tensor, q: Tensor) -> Float[Tensor, " n"]:
    """KL(q || p); where q is 0, its term is."""
    return (torch.xlogy(q, q) - q * log_p).sum(-1)
