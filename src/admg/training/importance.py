"""Importance sampling of timesteps by the second moment of their losses (Improved DDPM, section 3.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .timesteps import Timesteps

HISTORY = 10
"""Number of losses of each timestep that are remembered."""
UNIFORM = 0.001
"""Share of timesteps that are drawn uniformly, which ensures that each occurs, as in guided-diffusion."""


class ImportanceSampler:
    """Draws t with p_t ∝ sqrt(E[L_t²]), which minimises the variance of the loss of an image.

    The expectation is the mean over the latest ten losses of each t. Until each t has ten, p is uniform.

    steps: number of timesteps, T
    """

    def __init__(self, steps: int) -> None:
        self.losses = np.zeros((steps, HISTORY))
        self.counts = np.zeros(steps, dtype=np.int64)

    def probabilities(self) -> np.ndarray:
        """Return p_t, float64 (T,)."""
        steps = len(self.counts)
        roots = np.sqrt((self.losses**2).mean(1))
        if self.counts.min() < HISTORY or not roots.any():
            return np.full(steps, 1 / steps)
        p: np.ndarray = (1 - UNIFORM) * roots / roots.sum() + UNIFORM / steps
        return p

    def choose(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return t (N,), and the weights 1/(T p_t) of the losses (N,), which make their expectation that of uniform t.

        u: uniform numbers in [0, 1), (N,)
        """
        p = self.probabilities()
        t = np.minimum(np.searchsorted(p.cumsum(), u.cpu().numpy(), side="right"), len(p) - 1)
        return torch.from_numpy(t).to(u.device), torch.from_numpy(1 / (len(p) * p[t])).to(u.device)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Add the losses (N,) of timesteps (N,), without their weights; losses that are not finite are ignored."""
        for step, loss in zip(t.tolist(), losses.tolist()):
            if np.isfinite(loss):
                self.losses[step, self.counts[step] % HISTORY] = loss
                self.counts[step] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the history."""
        return {"losses": torch.tensor(self.losses), "counts": torch.tensor(self.counts)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the history that `state_dict` returned."""
        self.losses, self.counts = (state[name].numpy().copy() for name in ("losses", "counts"))


def importance_sampler_for(task: Any) -> ImportanceSampler | None:
    """Return a new sampler for a task that draws its timesteps by their losses, and None for any other."""
    timesteps = getattr(task, "timesteps", None)
    if not isinstance(timesteps, Timesteps) or timesteps.kind != "loss-second-moment":
        return None
    return ImportanceSampler(len(task.model.diffusion))
