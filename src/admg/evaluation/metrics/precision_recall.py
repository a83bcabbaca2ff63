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
from .intervals import GROUPS, Estimate, draw_groups, jackknife
from .statistics import Features, check_features, check_same_dim

ENTRIES = 3 << 20  # distances per block, in float64: 24 MiB, which malloc reuses
SLACK = 1e-12  # added to squared radii, relative to the largest squared norm: well above the products' rounding
SPARE = 9  # neighbours beyond the k-th that are kept, for radii without a group of the samples


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
    found = prdc(samples, reference, k, k, groups=0)
    return PrecisionRecall(found.precision.value, found.recall.value)


def density_coverage(samples: Features, reference: Features, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al. 2020, equations 4 and 5) of features (N, D) and (M, D).

    Raises ValueError as `prdc` does.
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
    """Return precision and recall with k neighbours, and density and coverage with k_density, from one pass.

    Distances come from matrix products in float64, in blocks, so that memory grows only with N + M. Radii are enlarged
    by the rounding error of the products, so that points on a surface are inside and equal images have distance 0.

    Precision has Wilson's interval, density that of a mean, and recall and coverage that of the delete-a-group
    jackknife, in which the balls of the remaining samples grow as their neighbours are left out, corrected for
    its excess; see `_jackknife`.

    seed, groups: random groups of samples for the jackknife; with groups=0 there are no intervals
    device: where to compute; it must support float64
    Raises ValueError if either set has fewer than k + 1 features, they are not finite, or the dimensions differ.
    """
    for name, features, least in (("samples", samples, k), ("reference images", reference, max(k, k_density))):
        check_features(features, name)
        if not 1 <= least < len(features):
            raise ValueError(f"{len(features)} {name}: {least} nearest neighbours need at least {least + 1}")
    check_same_dim(samples, reference)
    group = draw_groups(len(samples), seed, groups) if groups else np.zeros(len(samples), np.int64)
    order = np.argsort(group, kind="stable")  # so that a block of rows is of one group
    centre = reference.mean(0, dtype=np.float64)  # centred features have less cancellation in their products
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
        """Return |x_i - y_j|² of these rows, (n, M); rounding may make them negative."""
        return torch.addmm(others.norms, self.x[rows], others.x.T, alpha=-2).add_(self.norms[rows, None])


@dataclass(frozen=True)
class _Counts:
    """Counts for N samples in G groups and M reference images.

    inside: number of samples inside the reference's manifold
    balls: (N,), number of reference balls around each sample
    recalled: (G, M), whether the reference image is in a ball of a sample of this group
    grown: (G, M), whether it is in a ball of another group's sample that grows if this group is left out
    covered: (G, M), whether a sample of this group is in the ball of the reference image
    recalled_by, covered_by: which samples do so, see _Sets
    jackknifed: whether there are enough samples to leave out a group
    """

    inside: int
    balls: Tensor
    recalled: Tensor
    grown: Tensor
    covered: Tensor
    recalled_by: _Sets
    covered_by: _Sets
    jackknifed: bool


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


def _count(x: _Points, y: _Points, group: Tensor, k: int, k_density: int) -> _Counts:
    sizes = torch.bincount(group)
    g, jackknifed = len(sizes), len(sizes) > 1 and len(x) - int(sizes.max()) > k
    slack = SLACK * max(float(z.norms.max()) for z in (x, y))
    radius, without = _radii_without(x, group, k, g if jackknifed else 0, slack)
    reference = _radii(y, max(k, k_density), slack)[0]
    ball, ball_density = reference[:, k - 1], reference[:, k_density - 1]
    inside, balls = 0, []
    recalled, grown, covered = torch.zeros(3, g, len(y), dtype=torch.bool, device=group.device)
    recalled_by, covered_by = (_Sets(len(x), len(y), group.device) for _ in range(2))
    for rows in _rows(len(x), len(y), sizes.tolist()):
        d = x.squared_distances(rows, y)
        own = int(group[rows.start])
        inside += int(_any(d <= ball, 1).sum())
        here, reached = d <= ball_density, d <= radius[rows, None]
        balls.append(here.sum(1))
        covered[own] |= _any(here, 0)
        recalled[own] |= _any(reached, 0)
        if jackknifed:
            covered_by.add(rows, here)
            recalled_by.add(rows, reached)
        for other in range(g if jackknifed else 0):
            wider = without[rows, other] > radius[rows]  # rows that lose a neighbour: about k / G of them
            if other != own and wider.any():
                grown[other] |= _any(d[wider] <= without[rows, other][wider][:, None], 0)
    return _Counts(inside, torch.cat(balls), recalled, grown, covered, recalled_by, covered_by, jackknifed)


def _estimates(counts: _Counts, n: int, k_density: int) -> Manifold:
    density = counts.balls.double() / k_density
    value, spread = float(density.mean()), float(density.std()) / math.sqrt(n)
    recall, coverage = (float(c.any(0).double().mean()) for c in (counts.recalled, counts.covered))
    if not counts.jackknifed:
        return Manifold(*(Estimate(v) for v in (counts.inside / n, recall, value, coverage)))
    return Manifold(
        precision=Estimate.share(counts.inside, n),
        recall=_jackknife(recall, counts.recalled, counts.grown, counts.recalled_by, few=40),
        density=Estimate.spread(value, spread, n - 1, least=0.0),
        coverage=_jackknife(coverage, counts.covered, torch.zeros_like(counts.covered), counts.covered_by),
    )


def _jackknife(value: float, reached: Tensor, grown: Tensor, sets: _Sets, few: float = 0.0) -> Estimate:
    """Return the jackknife's interval of the fraction of the reference that is reached, without most of its excess.

    With a Poisson number of samples and balls of fixed sizes, the variance of M times that fraction is the expectation
    of O_1 - O_2 + O_3 - ..., where O_c is the sum of m_S² over the sets S of c samples, with m_S the number of
    reference images that all of S and no other sample reaches. (P(neither i nor j is reached) - P(i is not) P(j is not)
    has an unbiased estimate: ±1 where i and j are reached by the same samples, + for an odd number of them, else 0.)
    The jackknife's is O_1 alone, too large where most images are reached several times. The whole series is noisy, so
    that it is summed as a geometric one, O_1/(1 + O_2/O_1).

    few: number of sets in O_1 for which half of the excess is taken off: for recall, whose balls change too, a few sets
        do not tell the excess
    """
    without = _without(reached, grown)
    first, second = (sets.shares(size).square() for size in (1, 2))
    if not len(first):
        return jackknife(value, without, 0.0, 1.0)
    excess = 1 - 1 / (1 + float(second.sum() / first.sum()))
    count = float(first.sum().square() / first.square().sum())  # of the sets, if all were of equal size
    return jackknife(value, without, 0.0, 1.0, share=1 - excess * count**2 / (count**2 + few**2))


def _without(reached: Tensor, grown: Tensor) -> list[float]:
    """Return the fraction of the reference that is reached without each group, by another one or by balls that grew."""
    times = reached.sum(0)
    return [float(((times > reached[g].int()) | grown[g]).double().mean()) for g in range(len(reached))]


def _any(inside: Tensor, dim: int) -> Tensor:
    return inside.view(torch.uint8).amax(dim).bool()  # many times faster than any() on a CPU


def _radii_without(x: _Points, group: Tensor, k: int, groups: int, slack: float) -> tuple[Tensor, Tensor]:
    """Return squared radii to the k-th neighbour, (N,), and to the k-th one outside of each group, (N, G).

    The latter is among the k + 9 nearest unless 10 of them are of one random group, which is very unlikely; then the
    last of them is used.
    """
    nearest, index = _radii(x, min(k + SPARE, len(x) - 1) if groups else k, slack)
    radius = nearest[:, k - 1]
    if not groups:
        return radius, radius[:, None]
    columns = []
    for g in range(groups):
        rank = (group[index] != g).cumsum(1)  # rank among the neighbours that remain
        at = (rank < k).sum(1).clamp_max(nearest.shape[1] - 1)
        columns.append(nearest.gather(1, at[:, None])[:, 0])
    return radius, torch.stack(columns, 1)


def _radii(x: _Points, count: int, slack: float) -> tuple[Tensor, Tensor]:
    """Return squared radii (N, count) to the nearest other points, with slack, increasing, and their indices."""
    distances, numbers = [], []
    for rows in _rows(len(x), len(x), [len(x)]):
        d = x.squared_distances(rows, x)
        d[torch.arange(len(d)), torch.arange(rows.start, rows.stop)] = math.inf
        nearest, index = d.topk(count, dim=1, largest=False)
        distances.append(nearest + slack)
        numbers.append(index)
    return torch.cat(distances), torch.cat(numbers)


def _rows(n: int, m: int, sizes: list[int]) -> Iterator[slice]:
    """Yield consecutive slices of n rows of m distances, of at most ENTRIES distances, none across two groups."""
    step, start = max(1, ENTRIES // m), 0
    for size in sizes:
        for i in range(start, start + size, step):
            yield slice(i, min(i + step, start + size))
        start += size


def _manifold(inputs: Inputs) -> Manifold:
    groups = GROUPS if inputs.interval else 0
    return prdc(inputs.samples.features, inputs.reference.features, seed=inputs.seed, groups=groups)


PRECISION = Metric("precision", lambda inputs: inputs.once(_manifold).precision)
RECALL = Metric("recall", lambda inputs: inputs.once(_manifold).recall)
DENSITY = Metric("density", lambda inputs: inputs.once(_manifold).density)
COVERAGE = Metric("coverage", lambda inputs: inputs.once(_manifold).coverage)
