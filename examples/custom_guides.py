"""Two guides of your own, for custom_guidance.py and for `admg sample --guide examples/custom_guides.py:symmetric`."""

import torch

from admg import guidance


@guidance.guide
def darker(state: guidance.State) -> torch.Tensor:
    """Return the gradient of log p = -20 · mean of x_t."""
    return -20.0 * torch.ones_like(state.x) / state.x[0].numel()


def asymmetry(x0: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each image from its mirror image."""
    return (x0 - x0.flip(-1)).square().flatten(1).sum(1)


symmetric = guidance.LossGuidance(asymmetry, scale=0.3)  # follows -0.3 ∇ asymmetry at the predicted x_0
