"""Mean and covariance of features in float64, accumulated batch by batch, and the files that they are stored in.

Features are NumPy arrays (N, D) of any floating-point type, here and in all metrics; sums and products are computed in
float64. The files are those of the published reference batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from admg.data.arrays import read_arrays
from admg.data.errors import listed
from admg.files import atomic

Features = Float[np.ndarray, "n d"]

STORED = ("mu", "sigma", "mu_s", "sigma_s")
"""Names of the arrays in a file of statistics."""
ROWS = 4096  # features at a time, so that their copy in float64 stays small


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    mean: (D,)
    cov: (D, D), the unbiased estimate, as np.cov returns it
    count: number of features that they were computed from, 0 if unknown
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    count: int = 0

    @classmethod
    def of(cls, features: Features) -> Gaussian:
        """Return the Gaussian of features (N, D). Raises ValueError if they are fewer than 2 or not finite."""
        return Moments.of(features).gaussian()

    @property
    def dim(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class StoredStatistics:
    """Statistics of the 2015 Inception network that a file holds.

    features: of pool_3, for FID
    spatial: of mixed_6/conv, for sFID, or None
    """

    features: Gaussian
    spatial: Gaussian | None = None


@dataclass(frozen=True)
class Moments:
    """Sums that determine a Gaussian; a + b are the sums of both sets of features together.

    count: N
    mean: (D,)
    scatter: (D, D), Σ (x - mean)(x - mean)ᵀ
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Return the moments of features (N, D), N >= 1. Raises ValueError for another shape or values not finite."""
        check_features(features, "features", least=1)
        return cls.join(cls._of(features[i : i + ROWS]) for i in range(0, len(features), ROWS))

    @classmethod
    def _of(cls, features: Features) -> Moments:
        x = features.astype(np.float64)
        mean = x.mean(0)
        x -= mean
        return cls(len(x), mean, x.T @ x)

    @classmethod
    def join(cls, parts: Iterable[Moments]) -> Moments:
        """Return the moments of several batches or processes, added in order. Raises ValueError if there are none."""
        total: Moments | None = None
        for part in parts:
            total = part if total is None else total + part
        if total is None:
            raise ValueError("no features")
        return total

    def __add__(self, other: Moments) -> Moments:
        """Add by Chan, Golub & LeVeque 1983, equation 2.1b. Raises ValueError if the dimensions differ."""
        check_same_dim(self.mean, other.mean)
        n = self.count + other.count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(shift, shift * (self.count * other.count / n))
        return Moments(n, self.mean + shift * (other.count / n), scatter)

    def __sub__(self, other: Moments) -> Moments:
        """Remove a part of the features: (a + b) - b is a, up to rounding."""
        check_same_dim(self.mean, other.mean)
        if (n := self.count - other.count) < 1:
            raise ValueError(f"at least 1 feature must remain, but {other.count} of {self.count} would be removed")
        shift = other.mean - self.mean
        scatter = self.scatter - other.scatter
        scatter -= np.outer(shift, shift * (self.count * other.count / n))
        return Moments(n, self.mean - shift * (other.count / n), scatter)

    def gaussian(self) -> Gaussian:
        """Return mean and covariance. Raises ValueError if there are fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def save_statistics(path: Path | str, features: Gaussian, spatial: Gaussian | None = None) -> None:
    """Write an .npz with mu and sigma and, for sFID, mu_s and sigma_s, as the published evaluator reads them."""
    arrays = {"mu": features.mean, "sigma": features.cov}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}
    with atomic(Path(path).expanduser()) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_statistics(path: Path | str) -> tuple[Gaussian, Gaussian | None]:
    """Return the statistics of pooled and of spatial features (None if absent) from an .npz.

    Raises ValueError if it has no mu and sigma, or if they are not finite arrays (D,) and (D, D).
    """
    return statistics_of(path, *read_arrays(Path(path).expanduser(), STORED))


def statistics_of(
    path: Path | str, names: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> tuple[Gaussian, Gaussian | None]:
    """Return the result of `load_statistics` from arrays already read. names: names of all arrays in the file"""
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f"{path} has no mu and sigma: it has {listed(names) or 'nothing'}")
    features = as_gaussian(arrays["mu"], arrays["sigma"], f"{path}: mu and sigma")
    if not {"mu_s", "sigma_s"} <= arrays.keys():
        return features, None
    return features, as_gaussian(arrays["mu_s"], arrays["sigma_s"], f"{path}: mu_s and sigma_s")


def as_gaussian(mean: np.ndarray, cov: np.ndarray, name: str) -> Gaussian:
    """Return stored arrays in float64. Raises ValueError if they are not float (D,) and (D, D), or not finite."""
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or {mean.dtype.kind, cov.dtype.kind} != {"f"}:
        raise ValueError(f"{name} must be float (D,) and (D, D), got shapes {mean.shape} and {cov.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{name} are not finite")
    return Gaussian(mean.astype(np.float64), cov.astype(np.float64))


def check_features(features: Features, name: str, least: int = 2) -> None:
    """Raise ValueError if the features are not float (N, D), are fewer than `least`, or are not finite."""
    if features.ndim != 2 or features.dtype.kind != "f" or features.shape[1] == 0:
        raise ValueError(f"{name} must be float (N, D), got {features.dtype} {features.shape}")
    if (n := len(features)) < least:
        raise ValueError(f"at least {least} {name} are needed, got {n}")
    for start in range(0, n, ROWS):
        finite = np.isfinite(features[start : start + ROWS]).all(1)
        if not finite.all():
            raise ValueError(f"{name}: number {start + int(np.argmin(finite))} is not finite")


def check_same_dim(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ValueError if the last dimensions differ."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"features must have the same dimension, got {a.shape[-1]} and {b.shape[-1]}")
