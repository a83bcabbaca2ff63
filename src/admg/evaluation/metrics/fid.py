"""The Fréchet distance of Gaussians (Heusel et al. 2017, equation 6), which is FID, sFID and every FD-<network>."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .intervals import GROUPS, Estimate, draw_groups, jackknife
from .statistics import Features, Gaussian, Moments, check_features, check_same_dim

LEAST = 5000  # samples from which FID is extrapolated


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^(1/2)). ValueError: other dimensions, or not finite."""
    return Target(b).distance(a)


class Target:
    """A Gaussian to which many are compared: its square root is found once."""

    def __init__(self, gaussian: Gaussian):
        check_gaussian(gaussian)
        self.gaussian = gaussian
        values, vectors = torch.linalg.eigh(symmetric(gaussian.cov))
        kept = values > noise(values)  # those of a singular covariance are left out, not 1e-16
        self.root = vectors[:, kept] * values[kept].sqrt()  # Σ = root rootᵀ, (D, rank)

    def distance(self, other: Gaussian) -> float:
        check_gaussian(other)
        check_same_dim(other.mean, self.gaussian.mean)
        shift = other.mean - self.gaussian.mean
        traces = np.trace(other.cov) + np.trace(self.gaussian.cov)
        return float(shift @ shift + traces - 2 * self._trace_of_root(other))

    def _trace_of_root(self, other: Gaussian) -> float:
        """tr (Σ_a Σ_b)^(1/2), as Σ_a Σ_b has the eigenvalues of rootᵀ Σ_a root and more zeros: real and symmetric."""
        if not self.root.shape[1]:
            return 0.0
        product = self.root.T @ symmetric(other.cov) @ self.root
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        return float(values[values > noise(values)].sqrt().sum())


def frechet_estimate(parts: Sequence[Moments], reference: Gaussian) -> Estimate:
    """FID of all samples to a reference, and its interval by the delete-a-group jackknife.

    The interval is of FID at N samples, which is higher than at more by about a constant / N (see `frechet_infinite`).
    parts: of the groups of samples, as `group_moments` gives them
    ValueError: fewer than 2 samples, or of another dimension.
    """
    target, total = Target(reference), Moments.join(parts)
    value = target.distance(total.gaussian())
    if len(parts) < 2 or total.count - max(part.count for part in parts) < 2:
        return Estimate(value)
    return jackknife(value, [target.distance((total - part).gaussian()) for part in parts], least=0.0)


def frechet_infinite(parts: Sequence[Moments], reference: Gaussian, error: float = math.nan) -> Estimate:
    """FID at infinitely many samples: the line through FID over 1/n, at 1/n = 0 (Chong & Forsyth 2020, section 3).

    FID at n = N/b is the mean over b disjoint blocks, b a divisor of the number of groups with n >= 5,000, or b = 2:
    the chance of which images a block has then cancels, which it does not in the random subsets used there. A line
    asks for n well above D. The bias of a reference of few images stays.
    error: standard error of FID at N samples, had of `frechet_estimate`, which is this one's too but for O(1/N)
    ValueError: an odd number of groups, fewer than 4 samples, or of another dimension.
    """
    target, count = Target(reference), sum(part.count for part in parts)
    if len(parts) % 2 or count < 4:
        raise ValueError(f"{count} samples in {len(parts)} groups: FID at infinity needs 4 or more, in even groups")
    blocks = [b for b in range(1, len(parts)) if len(parts) % b == 0 and (b <= 2 or count / b >= LEAST)]
    means = [np.mean([target.distance(block) for block in united(parts, b)]) for b in blocks]
    _, value = np.polyfit(np.array(blocks) / count, means, 1)  # a block has N/b samples
    return Estimate.spread(float(value), error)


def group_moments(features: Features, seed: int = 0, groups: int = GROUPS) -> list[Moments]:
    """Moments of features (N, D) in groups drawn by the seed, for the functions above.

    ValueError: fewer than 2 samples, or not finite.
    """
    check_features(features, "samples")
    group = draw_groups(len(features), seed, groups)
    return [Moments.of(features[group == g]) for g in range(int(group.max()) + 1)]


def united(parts: Sequence[Moments], blocks: int) -> Iterator[Gaussian]:
    """Of as many blocks of equally many consecutive groups."""
    each = len(parts) // blocks
    return (Moments.join(parts[i : i + each]).gaussian() for i in range(0, len(parts), each))


def symmetric(cov: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(cov, np.float64))
    return (x + x.T) / 2


def noise(values: Tensor) -> float:
    """Below it an eigenvalue (of all, increasing) is rounding alone: half of them are, and their roots add up."""
    return 16 * torch.finfo(values.dtype).eps * max(float(values[-1]), 0.0)


def check_gaussian(gaussian: Gaussian) -> None:
    """ValueError: mean and covariance are not (D,) and (D, D), or not finite."""
    mean, cov = gaussian.mean, gaussian.cov
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"mean and covariance of shapes {mean.shape} and {cov.shape}: allowed are (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError("mean and covariance must be finite")
