"""Guides of one's own, for examples/own_guide.py and `admg sample --guide examples/my_guide.py:symmetric`."""

import torch

from admg import guidance


def darker(state: guidance.State) -> torch.Tensor:
    """log p = -20 · mean of x_t: a score is its gradient."""
    return -20.0 * torch.ones_like(state.x) / state.x[0].numel()


def unlike_its_mirror(x0: torch.Tensor) -> torch.Tensor:
    """Of each image: the squared distance from its mirror image."""
    return (x0 - x0.flip(-1)).square().flatten(1).sum(1)


symmetric = guidance.LossGuidance(unlike_its_mirror, scale=0.3)  # follows -0.3 ∇ of that at the predicted x_0
