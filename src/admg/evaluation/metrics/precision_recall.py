"""Precision, recall, density and coverage: how well two sets of images cover each other, by nearest neighbours.

Each image of a set has a ball that reaches to its k-th nearest neighbour in the set. The union of the balls is the
set's manifold (Kynkäänniemi et al. 2019; Naeem et al. 2020). Points on the surface of a ball are inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import Inputs, Metric
from .intervals import GROUPS, HALVES, Estimate, draw_groups, draw_halves, jackknife
from .statistics import Features, check_features, check_same_dim

K, K_DENSITY = 3, 5  # of the papers
ENTRIES = 3 << 20  # distances per block, in float64: 24 MiB, which malloc reuses
SLACK = 1e-12  # added to squared radii, relative to the largest squared norm: well above the products' rounding
MARGIN = 1.2  # factor on the variance of recall, for differences of halves and the whole; see docs/results.md


class PrecisionRecall(NamedTuple):
    """Improved precision and recall.

    precision: fraction of the samples inside the reference's manifold
    recall: fraction of the reference images inside the samples' manifold
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage.

    density: mean number of the reference's balls that a sample lies in, divided by k
    coverage: fraction of the reference's balls that contain a sample
    """

    density: float
    coverage: float


@dataclass(frozen=True)
class Manifold:
    """All four metrics, each with an interval over the samples if there are enough of them."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(samples: Features, reference: Features, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2) of features (N, D) and (M, D).

    They depend on N and M: compare only sets of equal sizes. Raises ValueError as `prdc` does.

    >>> near = np.random.default_rng(0).normal(size=(50, 8))
    >>> precision_recall(near, np.concatenate([near, near + 1000]))  # samples cover half of the reference
    PrecisionRecall(precision=1.0, recall=0.5)
    """
    counts = prdc(samples, reference, k, k, groups=0)
    return PrecisionRecall(counts.precision.value, counts.recall.value)


def density_coverage(samples: Features, reference: Features, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al. 2020, equations 4 and 5) of features (N, D) and (M, D).

    Raises ValueError as `prdc` does.
    """
    counts = prdc(samples, reference, k, k, groups=0)
    return DensityCoverage(counts.density.value, counts.coverage.value)


def prdc(
    samples: Features,
    reference: Features,
    k: int = K,
    k_density: int = K_DENSITY,
    seed: int = 0,
    groups: int = GROUPS,
    device: torch.device | str = "cpu",
) -> Manifold:
    """Return precision and recall with k neighbours, and density and coverage with k_density, from one pass.

    Distances come from matrix products in float64, in blocks: memory grows only with N + M. Radii are enlarged by the
    rounding error of the products, which puts points on a surface inside and makes distances of equal images 0.

    Intervals: Wilson's for precision, that of a mean for density, from halves of both sets for recall (see `_Halves`),
    and by the delete-a-group jackknife, without most of its excess, for coverage (see `_jackknife`).

    seed, groups: random groups of samples for the jackknife; with groups=0 there are no intervals
    device: where to compute; it must support float64
    Raises ValueError if either set has fewer than k + 1 features, they are not finite, or the dimensions differ.
    """
    for name, features, least in (("samples", samples, k), ("reference images", reference, max(k, k_density))):
        check_features(features, name)
        if not 1 <= least < len(features):
            raise ValueError(f"{least} nearest neighbours need at least {least + 1} {name}, got {len(features)}")
    check_same_dim(samples, reference)
    group = draw_groups(len(samples), seed, groups) if groups else np.zeros(len(samples), np.int64)
    order = np.argsort(group, kind="stable")  # each block of rows belongs to one group
    centre = reference.mean(0, dtype=np.float64)  # centred features have less cancellation in their products
    x, y = (_Points(torch.from_numpy(points - centre).to(device)) for points in (samples[order], reference))
    halves = None
    if groups and len(x) // 2 > k:
        side, part = draw_halves(len(x), seed)[:, order], draw_halves(len(y), seed + 1)
        halves = _Halves(torch.from_numpy(side).to(device), torch.from_numpy(part).to(device), k)
    counts = _count(x, y, torch.from_numpy(group[order]).to(device), k, k_density, halves)
    return _estimates(counts, len(samples), k_density)


class _Points:
    """Points (N, D) in float64 with their squared norms (N,)."""

    def __init__(self, x: Tensor):
        self.x, self.norms = x, torch.linalg.vector_norm(x, dim=1).square()

    def __len__(self) -> int:
        return len(self.x)

    def squared_distances(self, rows: slice, others: _Points) -> Tensor:
        """Return |x_i - y_j|² of these rows, (n, M); rounding may make them negative."""
        return torch.addmm(others.norms, self.x[rows], others.x.T, alpha=-2).add_(self.norms[rows, None])


@dataclass(frozen=True)
class _Counts:
    """Counts for N samples in G groups and M reference images.

    inside: number of samples inside the reference's manifold
    balls: (N,), number of reference balls around each sample
    recalled: (M,), whether the reference image is in a ball of a sample
    covered: (G, M), whether a sample of this group is in the ball of the reference image
    covered_by: the samples that cover each reference image, see _Sets
    halves: recall of halves; None if there are too few samples for intervals
    """

    inside: int
    balls: Tensor
    recalled: Tensor
    covered: Tensor
    covered_by: _Sets
    halves: _Halves | None


class _Sets:
    """The set of samples that reach each of M reference images, by its size and the sum of random numbers of them."""

    def __init__(self, samples: int, reference: int, device: torch.device) -> None:
        self.numbers = torch.randint(1 << 62, (samples,), generator=torch.Generator().manual_seed(0)).to(device)
        self.sizes, self.sums = torch.zeros(2, reference, dtype=torch.int64, device=device)

    def add(self, rows: slice, reaches: Tensor) -> None:
        """Add the samples of these rows. reaches: (n, M)"""
        sample, image = reaches.nonzero(as_tuple=True)
        self.sizes.index_add_(0, image, torch.ones_like(image))
        self.sums.index_add_(0, image, self.numbers[rows][sample])

    def shares(self, size: int) -> Tensor:
        """Return the number of reference images of each set of this many samples."""
        shares: Tensor = torch.unique(self.sums[self.sizes == size], return_counts=True)[1]
        return shares.double()


class _Halves:
    """The reference images recalled by random halves of the samples, with balls up to neighbours in the same half.

    side, part: (HALVES, N) and (HALVES, M), half of each sample and of each reference image

    Recall depends only on neighbourhoods, which also have k points in halves of both sets, though they are larger: the
    variance of recall in a half is twice that in the whole, and the difference between two disjoint halves has twice
    the variance of either. This is only approximate where a few images dominate, hence MARGIN.
    """

    def __init__(self, side: Tensor, part: Tensor, k: int) -> None:
        self.side, self.part, self.k = side, part, k
        self.reached = torch.zeros(len(part), 2, part.shape[1], dtype=torch.bool, device=part.device)

    @property
    def neighbours(self) -> int:
        """Number of neighbours of a sample to consider: fewer than k are in its half with probability 1e-5."""
        return 2 * self.k + 18

    def begin(self, nearest: Tensor, index: Tensor) -> None:
        """Set the radii. nearest, index: squared distances and numbers (N, neighbours) of the nearest other samples"""
        radii = []
        for side in self.side:
            rank = (side[index] == side[:, None]).cumsum(1)
            at = (rank < self.k).sum(1).clamp_max(nearest.shape[1] - 1)
            radii.append(nearest.gather(1, at[:, None])[:, 0])
        self.radius = torch.stack(radii)

    def add(self, rows: slice, d: Tensor) -> None:
        """Add the samples of these rows. d: (n, M), squared distances to the reference images"""
        radius, side = self.radius[:, rows], self.side[:, rows].long()
        sample, image = (d <= radius.amax(0)[:, None]).nonzero(as_tuple=True)
        near = d[sample, image]
        for split in range(len(side)):
            hit = near <= radius[split, sample]
            self.reached[split, side[split, sample[hit]], image[hit]] = True

    def variance(self) -> float:
        """Return the variance of recall in the whole sets."""
        difference = self.reached[:, 0].double() - self.reached[:, 1].double()
        means = [(difference * part).sum(1) / part.sum(1) for part in (self.part.double(), 1 - self.part.double())]
        return MARGIN * float(torch.stack(means).square().mean()) / 4


def _count(x: _Points, y: _Points, group: Tensor, k: int, k_density: int, halves: _Halves | None) -> _Counts:
    sizes = torch.bincount(group)
    slack = SLACK * max(float(z.norms.max()) for z in (x, y))
    nearest, index = _radii(x, min(halves.neighbours, len(x) - 1) if halves else k, slack)
    radius, reference = nearest[:, k - 1], _radii(y, max(k, k_density), slack)[0]
    ball, ball_density = reference[:, k - 1], reference[:, k_density - 1]
    if halves:
        halves.begin(nearest, index)
    inside, balls = 0, []
    recalled = torch.zeros(len(y), dtype=torch.bool, device=group.device)
    covered = torch.zeros(len(sizes), len(y), dtype=torch.bool, device=group.device)
    covered_by = _Sets(len(x), len(y), group.device)
    for rows in _rows(sizes.tolist(), len(y)):
        d = x.squared_distances(rows, y)
        inside += int(_any(d <= ball, 1).sum())
        here = d <= ball_density
        balls.append(here.sum(1))
        covered[int(group[rows.start])] |= _any(here, 0)
        recalled |= _any(d <= radius[rows, None], 0)
        if halves:
            covered_by.add(rows, here)
            halves.add(rows, d)
    return _Counts(inside, torch.cat(balls), recalled, covered, covered_by, halves)


def _estimates(counts: _Counts, n: int, k_density: int) -> Manifold:
    density = counts.balls.double() / k_density
    value, spread = float(density.mean()), float(density.std()) / math.sqrt(n)
    recall, coverage = (float(c.double().mean()) for c in (counts.recalled, counts.covered.any(0)))
    if counts.halves is None:
        return Manifold(*(Estimate(v) for v in (counts.inside / n, recall, value, coverage)))
    return Manifold(
        precision=Estimate.share(counts.inside, n),
        recall=Estimate.spread(recall, math.sqrt(counts.halves.variance()), HALVES, 0.0, 1.0),
        density=Estimate.spread(value, spread, n - 1, least=0.0),
        coverage=_jackknife(coverage, counts.covered, counts.covered_by),
    )


def _jackknife(value: float, covered: Tensor, sets: _Sets) -> Estimate:
    """Return the jackknife's interval of the fraction of the reference that is covered, without most of its excess.

    With a Poisson number of samples and the balls of the reference, the variance of M times that fraction is the
    expectation of O_1 - O_2 + O_3 - ..., where O_c is the sum of m_S² over the sets S of c samples, with m_S the number
    of reference images whose balls have all of S and no other sample. (P(neither i nor j is covered) - P(i is not)
    P(j is not) has an unbiased estimate: ±1 where i and j are covered by the same samples, + for an odd number of them,
    else 0.) The jackknife's is O_1 alone, too large where most balls have several samples. The whole series is noisy
    and therefore summed as a geometric one, O_1/(1 + O_2/O_1).
    """
    times = covered.sum(0)
    without = [float((times > covered[g].int()).double().mean()) for g in range(len(covered))]
    first, second = (float(sets.shares(size).square().sum()) for size in (1, 2))
    return jackknife(value, without, 0.0, 1.0, share=1 / (1 + second / first) if first else 1.0)


def _any(inside: Tensor, dim: int) -> Tensor:
    return inside.view(torch.uint8).amax(dim).bool()  # many times faster than any() on a CPU


def _radii(x: _Points, count: int, slack: float) -> tuple[Tensor, Tensor]:
    """Return squared radii (N, count) to the nearest other points, with slack, increasing, and their indices."""
    distances, numbers = [], []
    for rows in _rows([len(x)], len(x)):
        d = x.squared_distances(rows, x)
        d[torch.arange(len(d)), torch.arange(rows.start, rows.stop)] = math.inf
        nearest, index = d.topk(count, dim=1, largest=False)
        distances.append(nearest + slack)
        numbers.append(index)
    return torch.cat(distances), torch.cat(numbers)


def _rows(sizes: list[int], m: int) -> Iterator[slice]:
    """Yield consecutive slices of rows of m distances, of at most ENTRIES distances, none across two groups.

    sizes: number of rows of each group
    """
    step, start = max(1, ENTRIES // m), 0
    for size in sizes:
        for i in range(start, start + size, step):
            yield slice(i, min(i + step, start + size))
        start += size


def _manifold(inputs: Inputs) -> Manifold:
    groups = GROUPS if inputs.interval else 0
    return prdc(inputs.samples.features, inputs.reference.features, seed=inputs.seed, groups=groups)


NEIGHBOURS = (K, K_DENSITY)  # all four metrics are computed in one pass
PRECISION = Metric("precision", lambda inputs: inputs.once(_manifold).precision, neighbours=NEIGHBOURS)
RECALL = Metric("recall", lambda inputs: inputs.once(_manifold).recall, neighbours=NEIGHBOURS)
DENSITY = Metric("density", lambda inputs: inputs.once(_manifold).density, neighbours=NEIGHBOURS)
COVERAGE = Metric("coverage", lambda inputs: inputs.once(_manifold).coverage, neighbours=NEIGHBOURS)
