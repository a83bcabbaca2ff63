"""Mean and covariance of features, in float64, gathered batch by batch; stored as in the published reference batches.

Features are NumPy arrays (N, D) of any float type here and in all figures; sums and products are taken in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from admg.files import atomic

Features = Float[np.ndarray, "n d"]

ROWS = 4096  # features at a time, so that a copy of them in float64 stays small


@dataclass(frozen=True)
class Gaussian:
    """mean: (D,); cov: (D, D), unbiased, as np.cov has it; count: of the features that they are of, 0 if unknown"""

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    count: int = 0

    @classmethod
    def of(cls, features: Features) -> Gaussian:
        """That of features (N, D). ValueError: fewer than 2, or not finite."""
        return Moments.of(features).gaussian()

    @property
    def dim(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class Moments:
    """Sums from which a Gaussian follows: a + b is exactly that of both together, whoever gathered them.

    count: N; mean: (D,); scatter: (D, D), Σ (x - mean)(x - mean)ᵀ
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Features) -> Moments:
        """Those of features (N, D), N >= 1. ValueError: another shape, or not finite."""
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
        """Those of several batches or processes, added in their order. ValueError: there are none."""
        total: Moments | None = None
        for part in parts:
            total = part if total is None else total + part
        if total is None:
            raise ValueError("no features")
        return total

    def __add__(self, other: Moments) -> Moments:
        """Chan, Golub & LeVeque 1983, equation 2.1b. ValueError: another dimension."""
        check_same_dim(self.mean, other.mean)
        n = self.count + other.count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(shift, shift * (self.count * other.count / n))
        return Moments(n, self.mean + shift * (other.count / n), scatter)

    def __sub__(self, other: Moments) -> Moments:
        """What is left without `other`, which must be a part of it: (a + b) - b is a but for rounding."""
        check_same_dim(self.mean, other.mean)
        if (n := self.count - other.count) < 1:
            raise ValueError(f"nothing is left of {self.count} features without {other.count}")
        shift = other.mean - self.mean
        scatter = self.scatter - other.scatter
        scatter -= np.outer(shift, shift * (self.count * other.count / n))
        return Moments(n, self.mean - shift * (other.count / n), scatter)

    def gaussian(self) -> Gaussian:
        """ValueError: of fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"{self.count} image: a covariance needs 2 or more")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def save_statistics(path: Path | str, features: Gaussian, spatial: Gaussian | None = None) -> None:
    """Write an .npz of mu and sigma and, for sFID, mu_s and sigma_s, as the published evaluator reads them."""
    arrays = {"mu": features.mean, "sigma": features.cov}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_statistics(path: Path | str) -> tuple[Gaussian, Gaussian | None]:
    """Of pooled and of spatial features (None: not there). ValueError: no mu and sigma, or not finite (D,), (D, D)."""
    with np.load(path, allow_pickle=False) as file:
        return statistics_of(file, path)


def statistics_of(file: np.lib.npyio.NpzFile, path: Path | str) -> tuple[Gaussian, Gaussian | None]:
    """As load_statistics, of an open file; path: for messages."""
    if not {"mu", "sigma"} <= set(file.files):
        raise ValueError(f"{path} has no mu and sigma, but {', '.join(file.files) or 'nothing'}")
    features = as_gaussian(file["mu"], file["sigma"], f"{path}: mu and sigma")
    if not {"mu_s", "sigma_s"} <= set(file.files):
        return features, None
    return features, as_gaussian(file["mu_s"], file["sigma_s"], f"{path}: mu_s and sigma_s")


def as_gaussian(mean: np.ndarray, cov: np.ndarray, name: str) -> Gaussian:
    """Stored arrays, in float64. ValueError, about `name`: not float (D,) and (D, D), or not finite."""
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or {mean.dtype.kind, cov.dtype.kind} != {"f"}:
        raise ValueError(f"{name} of shapes {mean.shape} and {cov.shape}: allowed are float (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{name} are not finite")
    return Gaussian(mean.astype(np.float64), cov.astype(np.float64))


def check_features(features: Features, name: str, least: int = 2) -> None:
    """ValueError, about `name`: not float (N, D), fewer than `least`, or not finite."""
    if features.ndim != 2 or features.dtype.kind != "f" or features.shape[1] == 0:
        raise ValueError(f"{name} of shape {features.shape}, {features.dtype}: allowed are float (N, D)")
    if (n := len(features)) < least:
        raise ValueError(f"{n} {name}: {least} or more are needed")
    for start in range(0, n, ROWS):
        finite = np.isfinite(features[start : start + ROWS]).all(1)
        if not finite.all():
            raise ValueError(f"{name}: number {start + int(np.argmin(finite))} is not finite")


def check_same_dim(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"features of {a.shape[-1]} and {b.shape[-1]} dimensions cannot be compared")
