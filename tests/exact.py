"""Data whose score and noisy classifier are known exactly at every noise level: labelled mixtures of Gaussians.

Component k of the data is N(m_k, diag(v_k)), so that of x_t is N(sqrt(ᾱ_t) m_k, diag(ᾱ_t v_k + 1 - ᾱ_t)), and every
expectation is a sum over components. All of it in float64, and none of it by the code under test: ᾱ is looked up by
the given timestep, in a table of the original process, so that a wrong timestep gives a wrong answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule

LINEAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
"""ᾱ_t of DDPM's process, its section 4."""

EVEN = 1 / (1 + np.exp(-np.linspace(10, -10, 1000)))
"""ᾱ_t with even steps of the log signal-to-noise ratio log(ᾱ/(1 - ᾱ)). For this data its 100 steps are as accurate as
1000 of DDPM's, most of which have next to no signal."""


def betas_of(alpha_bars: np.ndarray) -> np.ndarray:
    return 1 - alpha_bars / np.concatenate([[1.0], alpha_bars[:-1]])


@dataclass(frozen=True)
class Mixture:
    """p(x_0, y) = Σ_k w_k [y = y_k] N(x_0; m_k, diag(v_k)), and the process that noises it.

    weights, labels: (K,); means, variances: (K, C, H, W); alpha_bars: (T,), those of the original, unrespaced process
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    labels: Tensor
    alpha_bars: np.ndarray

    @classmethod
    def of(cls, shape, weights, means, stds, labels, alpha_bars=EVEN) -> Mixture:
        """From lists or arrays (K,) or (K, C, H, W), for images of shape (C, H, W)."""
        weights, means, stds = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, stds))
        means, stds = (a.reshape(len(weights), *(shape if a[0].numel() > 1 else [1, 1, 1])) for a in (means, stds))
        means, stds = (a.expand(-1, *shape) for a in (means, stds))
        return cls(weights / weights.sum(), means, stds**2, torch.as_tensor(labels), alpha_bars)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def given(self, label: int) -> Mixture:
        """p(x_0 | y)."""
        kept = self.labels == label
        weights = self.weights[kept] / self.weights[kept].sum()
        return Mixture(weights, self.means[kept], self.variances[kept], self.labels[kept], self.alpha_bars)

    def moments_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights, means, variances) as samples x have them, each sample counting for k by its share p(k | x).

        E_p[p(k | x) f(x)] = w_k E_k[f(x)] for any f, so they are the mixture's own however much its components overlap.
        """
        x = x.double().flatten(1)
        share = self._log_joint(x, 1.0).softmax(1)
        total = share.sum(0)[:, None]
        means = share.T @ x / total
        variances = share.T @ x**2 / total - means**2
        return total[:, 0] / len(x), means.view_as(self.means), variances.view_as(self.means)

    # -- the noised mixture, at the given timestep -----------------------------------------------

    def posterior_mean(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], or E[x_0 | x_t, y]; float64."""
        alpha_bar, x_t = self.alpha_bar(timesteps), x.double().flatten(1)
        log_joint = self._log_joint(x_t, alpha_bar)
        if y is not None:
            log_joint = log_joint.masked_fill(self.labels != y[:, None], -torch.inf)
        share = log_joint.softmax(1)
        means, variances = self.means.flatten(1), self.variances.flatten(1)
        gain = alpha_bar**0.5 * variances / (alpha_bar * variances + 1 - alpha_bar)
        return (share @ (means - gain * alpha_bar**0.5 * means) + share @ gain * x_t).view_as(x)

    def eps(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """E[ε | x_t], or E[ε | x_t, y]: -sqrt(1 - ᾱ) times the score; float64."""
        alpha_bar = self.alpha_bar(timesteps)
        return (x.double() - alpha_bar**0.5 * self.posterior_mean(x, timesteps, y)) / (1 - alpha_bar) ** 0.5

    def classifier(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Logits of p(y | x_t), (N, classes), differentiable in x; not normalised, as those of no network are."""
        x_t = x.double().flatten(1)
        log_joint = self._log_joint(x_t, self.alpha_bar(timesteps))
        by_label = [log_joint[:, self.labels == label].logsumexp(1) for label in range(self.classes)]
        return torch.stack(by_label, dim=1).log_softmax(1) + x_t.sum(1, keepdim=True)

    def alpha_bar(self, timesteps: Tensor) -> float:
        """ᾱ at the one timestep of the batch."""
        return float(self.alpha_bars[timesteps.unique().item()])  # an IndexError unless it is an integer, 0 .. T-1

    def _log_joint(self, x: Tensor, alpha_bar: float) -> Tensor:
        """log p(x_t, k) up to a constant, of x (N, D): (N, K). The square is multiplied out, to be a matrix product."""
        means, variances = alpha_bar**0.5 * self.means.flatten(1), alpha_bar * self.variances.flatten(1) + 1 - alpha_bar
        square = x**2 @ (1 / variances).T - 2 * x @ (means / variances).T
        return self.weights.log() - (square + (means**2 / variances + variances.log()).sum(1)) / 2


class Network(nn.Module):
    """The network that has learned a mixture perfectly: network(x, timesteps, y=None) -> (N, C or 2C, H, W).

    predict: eps, x0 or v; conditional: takes labels, so that a Model conditions it on them
    range_v: x_t -> the v of a learned range (Improved DDPM, equation 15); None for a network without this output
    timesteps: timestep of each call so far
    """

    def __init__(self, mixture: Mixture, predict: str = "eps", conditional: bool = False, range_v=None):
        super().__init__()
        self.mixture, self.predict, self.range_v = mixture, predict, range_v
        self.config = SimpleNamespace(num_classes=mixture.classes if conditional else 0)
        self.timesteps: list[int] = []

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        self.timesteps.append(timesteps.unique().item())
        alpha_bar, x0 = self.mixture.alpha_bar(timesteps), self.mixture.posterior_mean(x, timesteps, y)
        eps = (x.double() - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
        output = {"eps": eps, "x0": x0, "v": alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0}[self.predict]
        return output if self.range_v is None else torch.cat([output, self.range_v(x).to(output)], dim=1)


def model_of(
    mixture: Mixture, variance: str = "fixed_small", predict: str = "eps", range_v=None, conditional: bool = False
) -> Model:
    """Return a model whose network has learned the mixture perfectly, at all steps of the mixture's process."""
    diffusion = Diffusion(NoiseSchedule.from_betas(betas_of(mixture.alpha_bars)), predict, variance)
    network = Network(mixture, predict, conditional, range_v)
    return Model(network, diffusion, mixture.shape, Labels(mixture.classes))


def normal(n: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal noise (n, *shape) of a seed."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
