"""Precision, recall, density and coverage: which images of one set lie among those of the other, by nearest neighbours.

Each image of a set has a ball that reaches to its k-th nearest neighbour in the set; the balls together are its
manifold (Kynkäänniemi et al. 2019; Naeem et al. 2020). On the ball's surface is inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .intervals import GROUPS, Estimate, draw_groups, jackknife
from .statistics import Features, check_features, check_same_dim

ENTRIES = 3 << 20  # of a block of distances in float64: 24 MiB, which malloc reuses
SLACK = 1e-12  # of squared radii, relative to the largest squared norm: well above the rounding of the products
SPARE = 9  # neighbours kept beyond the k-th, for radii without a group of the samples


class PrecisionRecall(NamedTuple):
    """precision: share of the samples inside the reference's manifold; recall: of the reference inside the samples'."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """density: mean number of the reference's balls around a sample, over k; coverage: share of them with a sample."""

    density: float
    coverage: float


@dataclass(frozen=True)
class Manifold:
    """All four, each with its interval over the samples, if there are enough of them."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(samples: Features, reference: Features, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2) of features (N, D) and (M, D).

    They fall with N and M: compare only sets of equal size. ValueError: see `prdc`.
    """
    found = prdc(samples, reference, k, k, groups=0)
    return PrecisionRecall(found.precision.value, found.recall.value)


def density_coverage(samples: Features, reference: Features, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, equations 4 and 5) of features (N, D) and (M, D).

    ValueError: see `prdc`.
    """
    found = prdc(samples, reference, k, k, groups=0)
    return DensityCoverage(found.density.value, found.coverage.value)


def prdc(
    samples: Features,
    reference: Features,
    k: int = 3,
    k_density: int = 5,
    seed: int = 0,
    groups: int = GROUPS,
    device: torch.device | str = "cpu",
) -> Manifold:
    """Precision and recall by the k-th neighbours, density and coverage by the k_density-th, all in one go.

    Distances come from products in float64, in blocks, so that memory grows with N + M only. Radii are given a slack
    of the products' rounding, so that what is on a surface is inside, and equal images are at distance 0.
    Intervals: precision's is Wilson's, density's that of a mean, recall's and coverage's the delete-a-group jackknife,
    in which the other samples' balls grow as their neighbours go.
    seed, groups: how the samples are divided for it; groups=0: no intervals
    device: where to compute; it must know float64
    ValueError: fewer than k + 1 in either set, not finite, or of other dimensions.
    """
    for name, features, least in (("samples", samples, k), ("reference images", reference, max(k, k_density))):
        check_features(features, name)
        if not 1 <= least < len(features):
            raise ValueError(f"{len(features)} {name}: neighbours number {least} need {least + 1} or more")
    check_same_dim(samples, reference)
    group = draw_groups(len(samples), seed, groups) if groups else np.zeros(len(samples), np.int64)
    order = np.argsort(group, kind="stable")  # a block of rows is of one group
    centre = reference.mean(0, dtype=np.float64)  # products of centred features cancel less
    x, y = (_Points(torch.from_numpy(points - centre).to(device)) for points in (samples[order], reference))
    counts = _count(x, y, torch.from_numpy(group[order]).to(device), k, k_density)
    return _estimates(counts, len(samples), k_density)


class _Points:
    """Points (N, D) in float64 with their squared norms (N,)."""

    def __init__(self, x: Tensor):
        self.x, self.norms = x, torch.linalg.vector_norm(x, dim=1).square()

    def __len__(self) -> int:
        return len(self.x)

    def squared_distances(self, rows: slice, others: _Points) -> Tensor:
        """|x_i - y_j|² of these rows, (n, M), but for rounding, which may make them negative."""
        return torch.addmm(others.norms, self.x[rows], others.x.T, alpha=-2).add_(self.norms[rows, None])


@dataclass(frozen=True)
class _Counts:
    """Of N samples in G groups against M reference images.

    inside: samples inside the reference's manifold; balls: (N,), reference balls around each
    recalled: (G, M), whether in a ball of the samples of this group
    grown: (G, M), whether in a ball of the samples of other groups that grows as this one goes
    covered: (G, M), whether a sample of this group is in the reference image's ball
    jackknifed: whether there are enough samples to leave out a group
    """

    inside: int
    balls: Tensor
    recalled: Tensor
    grown: Tensor
    covered: Tensor
    jackknifed: bool


def _count(x: _Points, y: _Points, group: Tensor, k: int, k_density: int) -> _Counts:
    sizes = torch.bincount(group)
    g, jackknifed = len(sizes), len(sizes) > 1 and len(x) - int(sizes.max()) > k
    slack = SLACK * max(float(z.norms.max()) for z in (x, y))
    radius, without = _radii_without(x, group, k, g if jackknifed else 0, slack)
    reference = _radii(y, max(k, k_density), slack)[0]
    ball, ball_density = reference[:, k - 1], reference[:, k_density - 1]
    inside, balls = 0, []
    recalled, grown, covered = torch.zeros(3, g, len(y), dtype=torch.bool, device=group.device)
    for rows in _rows(len(x), len(y), sizes.tolist()):
        d = x.squared_distances(rows, y)
        own = int(group[rows.start])
        inside += int(_any(d <= ball, 1).sum())
        here = d <= ball_density
        balls.append(here.sum(1))
        covered[own] |= _any(here, 0)
        recalled[own] |= _any(d <= radius[rows, None], 0)
        for other in range(g if jackknifed else 0):
            wider = without[rows, other] > radius[rows]  # they lose a neighbour: about k / G of them
            if other != own and wider.any():
                grown[other] |= _any(d[wider] <= without[rows, other][wider][:, None], 0)
    return _Counts(inside, torch.cat(balls), recalled, grown, covered, jackknifed)


def _estimates(counts: _Counts, n: int, k_density: int) -> Manifold:
    density = counts.balls.double() / k_density
    value, spread = float(density.mean()), float(density.std()) / math.sqrt(n)
    recall, coverage = (float(c.any(0).double().mean()) for c in (counts.recalled, counts.covered))
    if not counts.jackknifed:
        return Manifold(*(Estimate(v) for v in (counts.inside / n, recall, value, coverage)))
    return Manifold(
        precision=Estimate.share(counts.inside, n),
        recall=jackknife(recall, _without(counts.recalled, counts.grown), 0.0, 1.0),
        density=Estimate.spread(value, spread, n - 1, least=0.0),
        coverage=jackknife(coverage, _without(counts.covered, torch.zeros_like(counts.covered)), 0.0, 1.0),
    )


def _without(reached: Tensor, grown: Tensor) -> list[float]:
    """Share of the reference that is reached without each group: by another one, or by balls that have grown."""
    times = reached.sum(0)
    return [float(((times > reached[g].int()) | grown[g]).double().mean()) for g in range(len(reached))]


def _any(inside: Tensor, dim: int) -> Tensor:
    return inside.view(torch.uint8).amax(dim).bool()  # tens of times as fast as any() on a CPU


def _radii_without(x: _Points, group: Tensor, k: int, groups: int, slack: float) -> tuple[Tensor, Tensor]:
    """Squared radii to the k-th neighbour, (N,), and to the k-th that is not of each group, (N, G).

    It is among the k + 9 nearest unless 10 of them are of one group, which drawn at random they are not; then the
    last of them is taken.
    """
    nearest, index = _radii(x, min(k + SPARE, len(x) - 1) if groups else k, slack)
    radius = nearest[:, k - 1]
    if not groups:
        return radius, radius[:, None]
    columns = []
    for g in range(groups):
        rank = (group[index] != g).cumsum(1)  # of the neighbours that stay
        at = (rank < k).sum(1).clamp_max(nearest.shape[1] - 1)
        columns.append(nearest.gather(1, at[:, None])[:, 0])
    return radius, torch.stack(columns, 1)


def _radii(x: _Points, count: int, slack: float) -> tuple[Tensor, Tensor]:
    """Squared radii (N, count) to the nearest other points, with slack, increasing, and the points' numbers."""
    distances, numbers = [], []
    for rows in _rows(len(x), len(x), [len(x)]):
        d = x.squared_distances(rows, x)
        d[torch.arange(len(d)), torch.arange(rows.start, rows.stop)] = math.inf
        nearest, index = d.topk(count, dim=1, largest=False)
        distances.append(nearest + slack)
        numbers.append(index)
    return torch.cat(distances), torch.cat(numbers)


def _rows(n: int, m: int, sizes: list[int]) -> Iterator[slice]:
    """Consecutive slices of n rows of m distances, of at most ENTRIES each, none of which crosses a group's border."""
    step, start = max(1, ENTRIES // m), 0
    for size in sizes:
        for i in range(start, start + size, step):
            yield slice(i, min(i + step, start + size))
        start += size
