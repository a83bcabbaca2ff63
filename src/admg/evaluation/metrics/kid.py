"""KID: the squared maximum mean discrepancy under k(x, y) = (x·y / D + 1)³ (Bińkowski et al. 2018, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .base import Inputs, Metric
from .intervals import Estimate
from .statistics import Features, check_features, check_same_dim

BLOCK = 1024  # rows and columns of a block of the kernel matrix


def kid(samples: Features, reference: Features, device: torch.device | str = "cpu") -> Estimate:
    """Return the unbiased estimate from all pairs (equation 4), computed in blocks; it may be negative.

    The error is the delete-one jackknife's over the samples, exact from the row sums of the kernel matrix.

    samples, reference: features (N, D) and (M, D)
    device: where to compute; it must support float64, which MPS does not
    Raises ValueError if either has fewer than 2 features, they are not finite, or the dimensions differ.

    >>> x = np.random.default_rng(0).normal(size=(100, 4))
    >>> kid(x, x + 1).value > kid(x, x + 0.5).value > 0
    True
    """
    x, y = _both(samples, reference, device)
    n, m = len(x), len(y)
    within, between = _row_sums(x, x, same=True), _row_sums(x, y)
    among = float(_row_sums(y, y, same=True).sum() / (m * (m - 1)))
    own, cross = within.sum(), between.sum()
    value = float(own / (n * (n - 1)) - 2 * cross / (n * m)) + among
    if n < 3:
        return Estimate(value)
    # leaving out sample i removes its row and its column, 2 within[i], and its row of products with the reference
    without = (own - 2 * within) / ((n - 1) * (n - 2)) - 2 * (cross - between) / ((n - 1) * m)
    return Estimate.spread(value, math.sqrt((n - 1) * float(without.var(correction=0))), n - 1)


def kid_subsets(
    samples: Features,
    reference: Features,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Estimate:
    """Return the mean over pairs of subsets drawn without replacement, by default 100 of 1,000, as in the paper.

    The error is the usual standard deviation / sqrt(subsets). It is too small if subsets overlap, which they do with
    fewer than subsets * size images; use `kid` for a correct one.

    Raises ValueError as `kid` does, and if there are fewer images than `size`.
    """
    if subsets < 2 or size < 2:
        raise ValueError(f"subsets and size must be at least 2, got {subsets} and {size}")
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) < size:
            raise ValueError(f"KID with subsets of {size} needs at least {size} {name}, got {len(features)}")
    x, y = _both(samples, reference, device)
    rng = np.random.default_rng(seed)
    values = [_mmd2(*(z[_drawn(rng, len(z), size).to(z.device)] for z in (x, y))) for _ in range(subsets)]
    return Estimate.spread(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(subsets), subsets - 1)


def _drawn(rng: np.random.Generator, count: int, size: int) -> Tensor:
    return torch.from_numpy(rng.choice(count, size, replace=False))


def _mmd2(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    within = _row_sums(x, x, same=True).sum() / (n * (n - 1)) + _row_sums(y, y, same=True).sum() / (m * (m - 1))
    return float(within - 2 * _row_sums(x, y).sum() / (n * m))


def _row_sums(x: Tensor, y: Tensor, same: bool = False) -> Tensor:
    """Return Σ_j k(x_i, y_j), (N,), without j = i if y is x."""
    sums = []
    for rows in _blocks(x):
        total = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
        for columns in _blocks(y):
            total += _kernel(rows @ columns.T, x.shape[1]).sum(1)
        if same:
            total -= _kernel(rows.square().sum(1), x.shape[1])
        sums.append(total)
    return torch.cat(sums)


def _kernel(products: Tensor, dim: int) -> Tensor:
    k = products / dim + 1
    return k * k * k  # faster than a power


def _blocks(x: Tensor) -> Iterator[Tensor]:
    return (x[i : i + BLOCK].double() for i in range(0, len(x), BLOCK))


def _both(samples: Features, reference: Features, device: torch.device | str) -> list[Tensor]:
    check_features(samples, "samples")
    check_features(reference, "reference images")
    check_same_dim(samples, reference)
    return [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (samples, reference)]


def _kid(inputs: Inputs) -> Estimate:
    return kid(inputs.samples.features, inputs.reference.features)


KID = Metric(
    "kid",
    _kid,
    lambda network: "KID" if network.is_inception else network.titled("KD"),
    lower_is_better=True,
)
