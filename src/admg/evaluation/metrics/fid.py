"""FID and sFID: the Fréchet distance of Gaussians (Heusel et al. 2017, equation 6), here of any network's features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from admg.evaluation.features.base import FeatureNetwork

from .base import Inputs, Metric, Needs
from .intervals import GROUPS, Estimate, draw_groups, jackknife
from .statistics import Features, Gaussian, Moments, check_features, check_same_dim

MIN_SAMPLES = 5000  # smallest number of samples that FID is extrapolated from


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^(1/2)).

    Raises ValueError if the dimensions differ or the values are not finite.

    >>> a = Gaussian(np.zeros(2), np.eye(2))
    >>> b = Gaussian(np.ones(2), 4 * np.eye(2))
    >>> round(frechet_distance(a, b), 6)  # 1 + 1, and (2 - 1)² for each dimension
    4.0
    """
    return Target(b).distance(a)


class Target:
    """A Gaussian for repeated comparisons; the root of its covariance is computed once."""

    def __init__(self, gaussian: Gaussian):
        check_gaussian(gaussian)
        self.gaussian = gaussian
        values, vectors = torch.linalg.eigh(symmetric(gaussian.cov))
        kept = values > noise(values)  # zeros of a singular covariance, which rounding makes about 1e-16
        self.root = vectors[:, kept] * values[kept].sqrt()  # Σ = root rootᵀ, (D, rank)

    def distance(self, other: Gaussian) -> float:
        check_gaussian(other)
        check_same_dim(other.mean, self.gaussian.mean)
        shift = other.mean - self.gaussian.mean
        traces = np.trace(other.cov) + np.trace(self.gaussian.cov)
        return float(shift @ shift + traces - 2 * self._trace_of_root(other))

    def _trace_of_root(self, other: Gaussian) -> float:
        """Return tr (Σ_a Σ_b)^(1/2). Σ_a Σ_b has the eigenvalues of rootᵀ Σ_a root, which is symmetric, and zeros."""
        if not self.root.shape[1]:
            return 0.0
        product = self.root.T @ symmetric(other.cov) @ self.root
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        return float(values[values > noise(values)].sqrt().sum())


def frechet_estimate(parts: Sequence[Moments], reference: Gaussian) -> Estimate:
    """Return the FID of all samples to a reference, and its interval by the delete-a-group jackknife.

    The interval is that of FID with N samples, whose bias is about proportional to 1/N (see `frechet_infinite`).

    parts: moments of groups of samples, from `group_moments`
    Raises ValueError if there are fewer than 2 samples or the dimensions differ.
    """
    target, total = Target(reference), Moments.join(parts)
    value = target.distance(total.gaussian())
    if len(parts) < 2 or total.count - max(part.count for part in parts) < 2:
        return Estimate(value)
    return jackknife(value, [target.distance((total - part).gaussian()) for part in parts], least=0.0)


def frechet_infinite(parts: Sequence[Moments], reference: Gaussian, error: float = math.nan) -> Estimate:
    """Return the FID extrapolated to infinitely many samples (Chong & Forsyth 2020, section 3).

    It is the line through FID as a function of 1/n, at 1/n = 0. FID with n = N/b samples is the mean over b disjoint
    blocks, where b is 2 or a divisor of the number of groups with n >= 5,000; unlike random subsets, disjoint blocks
    contain each image exactly once: the choice of images adds no noise. The line is a good fit if n is well above D.
    The bias of a small reference remains.

    error: standard error of FID with N samples, from `frechet_estimate`, which is also the error here up to O(1/N)
    Raises ValueError if the number of groups is odd, there are fewer than 4 samples, or the dimensions differ.
    """
    target, count = Target(reference), sum(part.count for part in parts)
    if count < 4:
        raise ValueError(f"extrapolating FID needs at least 4 samples, got {count}")
    if len(parts) % 2:
        raise ValueError(f"extrapolating FID needs an even number of groups, got {len(parts)}")
    blocks = [b for b in range(1, len(parts)) if len(parts) % b == 0 and (b <= 2 or count / b >= MIN_SAMPLES)]
    means = [np.mean([target.distance(block) for block in block_gaussians(parts, b)]) for b in blocks]
    _, value = np.polyfit(np.array(blocks) / count, means, 1)  # a block has N/b samples
    return Estimate.spread(float(value), error)


def group_moments(features: Features, seed: int = 0, groups: int = GROUPS) -> list[Moments]:
    """Return the moments of features (N, D) in random groups, for the functions above.

    Raises ValueError if there are fewer than 2 samples or they are not finite.
    """
    check_features(features, "samples")
    group = draw_groups(len(features), seed, groups)
    return [Moments.of(features[group == g]) for g in range(int(group.max()) + 1)]


def block_gaussians(parts: Sequence[Moments], blocks: int) -> Iterator[Gaussian]:
    """Yield the Gaussians of equally large blocks of consecutive groups."""
    each = len(parts) // blocks
    return (Moments.join(parts[i : i + each]).gaussian() for i in range(0, len(parts), each))


def symmetric(cov: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(cov, np.float64))
    return (x + x.T) / 2


def noise(values: Tensor) -> float:
    """Return the bound below which an eigenvalue (they are in increasing order) is rounding error.

    Without it the roots of many such eigenvalues would add up.
    """
    return 16 * torch.finfo(values.dtype).eps * max(float(values[-1]), 0.0)


def check_gaussian(gaussian: Gaussian) -> None:
    """Raise ValueError if mean and covariance are not (D,) and (D, D), or not finite."""
    mean, cov = gaussian.mean, gaussian.cov
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"mean and covariance must have shapes (D,) and (D, D), got {mean.shape} and {cov.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError("mean and covariance must be finite")


# -- the metrics -----------------------------------------------------------------------------------------------------


def _distance(inputs: Inputs, spatial: bool) -> Estimate:
    reference, samples = inputs.once(_reference, spatial), inputs.samples.gaussian_or_features(spatial)
    if isinstance(samples, Gaussian):
        return Estimate(frechet_distance(samples, reference))
    parts = inputs.once(_parts, spatial)
    if inputs.interval:
        return frechet_estimate(parts, reference)
    return Estimate(frechet_distance(Moments.join(parts).gaussian(), reference))


def _extrapolated(inputs: Inputs, spatial: bool) -> Estimate:
    if isinstance(inputs.samples.gaussian_or_features(spatial), Gaussian):
        raise ValueError("FID of stored statistics cannot be extrapolated to infinitely many samples")
    error, parts = inputs.once(_distance, spatial).error, inputs.once(_parts, spatial)
    if len(parts) % 2:  # fewer samples than groups, one in each
        parts = [*parts[:-2], Moments.join(parts[-2:])]
    return frechet_infinite(parts, inputs.once(_reference, spatial), error)


def _reference(inputs: Inputs, spatial: bool) -> Gaussian:
    reference = inputs.reference.gaussian_or_features(spatial)
    return reference if isinstance(reference, Gaussian) else Gaussian.of(reference)


def _parts(inputs: Inputs, spatial: bool) -> list[Moments]:
    features = inputs.samples.gaussian_or_features(spatial)
    assert not isinstance(features, Gaussian)
    return group_moments(features, inputs.seed)


def _frechet(name: str, spatial: bool) -> tuple[Metric, Metric]:
    """Return the distance, and its extrapolation to infinitely many samples."""

    def title(network: FeatureNetwork) -> str:
        return "sFID" if spatial else network.distance

    def of_stored(inputs: Inputs) -> str:
        stored = isinstance(inputs.samples.gaussian_or_features(spatial), Gaussian)
        return "from stored statistics" if stored else ""

    needs: Needs = "spatial" if spatial else "features"
    plain = Metric(
        name, lambda inputs: inputs.once(_distance, spatial), title, of_stored, needs, lower_is_better=True, stored=True
    )
    infinite = dataclasses.replace(
        plain,
        name=f"{name}_infinite",
        compute=lambda inputs: _extrapolated(inputs, spatial),
        note=lambda inputs: "extrapolated to infinitely many samples",
        by_default=False,
    )
    return plain, infinite


FID, FID_INFINITE = _frechet("fid", spatial=False)
SFID, SFID_INFINITE = _frechet("sfid", spatial=True)
