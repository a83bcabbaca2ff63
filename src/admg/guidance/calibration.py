"""Temperatures that calibrate a classifier (Guo et al. 2017, "On calibration of modern neural networks")."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from admg.config import check_integer
from admg.diffusion.gaussian import Diffusion, Images, working_dtype
from admg.diffusion.signed import check_signed
from admg.models.modes import evaluating

LIMITS = (0.01, 100.0)
"""Range of fitted temperatures. Without it, a perfect classifier would get 0, and one worse than chance infinity."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A classifier (x_t, timesteps) -> logits whose logits are divided by a temperature that depends on the timestep.

    classifier: the classifier
    timesteps: increasing timesteps, as they are given to the classifier
    temperatures: temperature at each of these timesteps; interpolated linearly, and constant outside
    """

    classifier: Callable[[Images, Tensor], Tensor]
    timesteps: tuple[float, ...]
    temperatures: tuple[float, ...]

    def __call__(self, x: Images, timesteps: Tensor) -> Tensor:
        at, logits = [self.temperature(t) for t in timesteps.tolist()], self.classifier(x, timesteps)
        return logits / torch.tensor(at, dtype=working_dtype(logits), device=x.device)[:, None]

    def temperature(self, t: float) -> float:
        """Return the temperature at a timestep."""
        k = bisect(self.timesteps, t)
        if k in (0, len(self.timesteps)):
            return self.temperatures[max(k - 1, 0)]
        (a, b), (low, high) = self.timesteps[k - 1 : k + 1], self.temperatures[k - 1 : k + 1]
        return low + (high - low) * (t - a) / (b - a)

    @property
    def labels(self) -> Any:
        """The labels of the classifier, or None."""
        return getattr(self.classifier, "labels", None)


def calibrated(
    classifier: Callable[[Images, Tensor], Tensor],
    diffusion: Diffusion,
    images: Images,
    labels: Int64[Tensor, " n"],
    *,
    levels: int = 10,
    shared: bool = False,
    seed: int = 0,
    batch_size: int = 64,
) -> Calibrated:
    """Return the noisy classifier with temperatures fitted to images that it was not trained on.

    For a classifier of clean images use fit_temperature(classifier(images), labels) instead.

    diffusion: diffusion process that the classifier was trained on
    images: images (N, C, H, W) in [-1, 1]
    labels: label of each image, (N,)
    levels: number of noise levels at which a temperature is fitted, spread evenly from the lowest to the highest
    shared: whether a single temperature is fitted to all these levels together
    seed: seed of the noise
    batch_size: number of images at a time

    Raises ValueError if the labels do not fit the images, if these are not in [-1, 1], or if `levels` is out of range.
    """
    if len(images) != len(labels) or len(labels) == 0:
        raise ValueError(f"calibration needs one label per image, got {len(images)} images and {len(labels)} labels")
    check_signed(images)
    if not 1 <= levels <= len(diffusion) or batch_size < 1:
        raise ValueError(
            f"levels must be from 1 to {len(diffusion)}, and batch_size at least 1, got {levels} and {batch_size}"
        )
    indices = torch.linspace(0, len(diffusion) - 1, levels).round().long().tolist()
    timesteps = tuple(float(diffusion.timestep(index).item()) for index in indices)
    generator = torch.Generator().manual_seed(seed)
    network = getattr(classifier, "network", classifier)
    with evaluating(*([network] if isinstance(network, nn.Module) else [])):
        logits = [torch.cat([*_noisy_logits(classifier, diffusion, images, i, generator, batch_size)]) for i in indices]
    if shared:
        return Calibrated(classifier, timesteps[:1], (fit_temperature(torch.cat(logits), labels.repeat(levels)),))
    return Calibrated(classifier, timesteps, tuple(fit_temperature(z, labels) for z in logits))


def _noisy_logits(
    classifier: Callable[[Images, Tensor], Tensor],
    diffusion: Diffusion,
    images: Images,
    index: int,
    generator: torch.Generator,
    batch_size: int,
) -> Iterator[Tensor]:
    for x0 in torch.split(images, batch_size):
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        with torch.no_grad():
            x = diffusion.q_sample(x0, index, noise)
            yield classifier(x, diffusion.timestep(index, x.device, x.dtype))


def fit_temperature(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> float:
    """Return the temperature T within LIMITS that minimises the cross-entropy -Σ log softmax(z/T)_y.

    The cross-entropy is convex in 1/T, so its derivative is bisected.

    Raises ValueError if the labels do not fit the logits.
    """
    _check(logits, labels)
    z = logits.double()
    at_y = z.gather(1, labels.to(z.device)[:, None])[:, 0]

    def slope(beta: float) -> float:  # Σ E_p[z] - z_y, which increases with β = 1/T
        return ((beta * z).softmax(1) * z).sum(1).sub(at_y).mean().item()

    low, high = (1 / limit for limit in reversed(LIMITS))
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def expected_calibration_error(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"], bins: int = 15) -> float:
    """Return Σ_b n_b/n |accuracy_b - confidence_b| over equal bins of the confidence max_k p_k (the paper's eq. 3).

    Raises ValueError if the labels do not fit the logits or if there are no bins.
    """
    _check(logits, labels)
    check_integer("bins", bins)
    confidence, guess = logits.double().softmax(1).max(1)
    excess = confidence - (guess == labels.to(guess.device)).double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b is (b/bins, (b + 1)/bins]
    return float(excess.new_zeros(bins).index_add(0, which, excess).abs().sum() / len(labels))


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != (len(logits),) or len(labels) == 0:
        raise ValueError(f"expected logits (N, K) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if not (int(labels.min()) >= 0 and int(labels.max()) < logits.shape[1]):
        raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}, the classifier's labels")
