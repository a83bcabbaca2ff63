"""KID: the squared maximum mean discrepancy under k(x, y) = (x·y / D + 1)³ (Bińkowski et al. 2018, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .intervals import Estimate
from .statistics import Features, check_features, check_same_dim

BLOCK = 1024  # rows and columns of a block of the kernel's matrix


def kid(samples: Features, reference: Features, device: torch.device | str = "cpu") -> Estimate:
    """The unbiased estimate from all pairs (equation 4), in blocks; it may be below 0.

    Its error is the delete-one jackknife's over the samples, exact from the sums of the kernel's rows; the reference
    is taken as given. Float64: MPS devices cannot.
    ValueError: fewer than 2 of either, not finite, or other dimensions.
    """
    x, y = _both(samples, reference, device)
    n, m = len(x), len(y)
    within, between = _row_sums(x, x, same=True), _row_sums(x, y)
    among = float(_row_sums(y, y, same=True).sum() / (m * (m - 1)))
    own, cross = within.sum(), between.sum()
    value = float(own / (n * (n - 1)) - 2 * cross / (n * m)) + among
    if n < 3:
        return Estimate(value)
    # without sample i its row and its column go, 2 within[i], and its row of the products with the reference
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
    """As published: the mean over 100 pairs of subsets of 1,000, each drawn without replacement.

    Its error is the subsets' deviation / sqrt(subsets), as is usual; it is too small where the subsets overlap, that
    is with fewer than subsets * size images, for which `kid` gives an honest one.
    ValueError: as kid, or fewer images than a subset has.
    """
    if subsets < 2 or size < 2:
        raise ValueError(f"{subsets} subsets of {size}: 2 or more of 2 or more are needed")
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) < size:
            raise ValueError(f"{len(features)} {name}: KID in subsets of {size} needs {size} or more")
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
    """Σ_j k(x_i, y_j), (N,); without j = i if y is x."""
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
    return k * k * k  # sooner done than a power


def _blocks(x: Tensor) -> Iterator[Tensor]:
    return (x[i : i + BLOCK].double() for i in range(0, len(x), BLOCK))


def _both(samples: Features, reference: Features, device: torch.device | str) -> list[Tensor]:
    check_features(samples, "samples")
    check_features(reference, "reference images")
    check_same_dim(samples, reference)
    return [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (samples, reference)]
