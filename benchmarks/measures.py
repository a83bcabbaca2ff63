"""Figures for a handful of samples: accuracy with its interval, diversity, and improved precision and recall."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch


class PrecisionRecall(NamedTuple):
    """precision: share of the samples that look like a reference image; recall: share of the reference covered."""

    precision: float
    recall: float


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features (N, D) against reference features (M, D).

    A point belongs to the manifold of a set if it is no farther from one of its members than that member's k-th
    nearest neighbour in the set. Few samples have wide balls: compare only sets of equal size.
    ValueError: k + 1 points are needed in each set.
    """
    for name, points in (("samples", samples), ("reference", reference)):
        if len(points) <= k:
            raise ValueError(f"{len(points)} {name}: precision and recall with k={k} need {k + 1} or more")
    between = distances(samples, reference)  # (N, M)
    return PrecisionRecall(
        precision=float((between <= radii(reference, k)[None, :]).any(1).mean()),
        recall=float((between <= radii(samples, k)[:, None]).any(0).mean()),
    )


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point (N, D) to its k-th nearest neighbour among the others, (N,)."""
    return np.partition(distances(points, points), k, axis=1)[:, k]  # the nearest of all, number 0, is the point itself


def within_class_distance(points: np.ndarray, classes: np.ndarray) -> float:
    """Mean Euclidean distance of pairs of different points (N, D) of the same class (N,): of each class, then of all.

    Classes with fewer than two points count for nothing; NaN if all are such.
    """
    means = []
    for label in np.unique(classes):
        members = points[classes == label]
        if (n := len(members)) > 1:
            means.append(distances(members, members).sum() / (n * (n - 1)))
    return float(np.mean(means)) if means else math.nan


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, M) of points (N, D) and (M, D), in float64 and exactly 0 for equal points."""
    a, b = (torch.from_numpy(np.asarray(points, np.float64)) for points in (a, b))
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval (95 %) for a share of which `right` of `count` were seen."""
    p, z2 = right / count, z * z / count
    middle, half = p + z2 / 2, z * math.sqrt(p * (1 - p) / count + z2 / (4 * count))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))
