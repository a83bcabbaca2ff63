"""Metrics for small sets of samples that admg.evaluation does not have: KID of balanced sets, and diversity."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from admg.evaluation.metrics import precision_recall, wilson

__all__ = ["Distance", "balanced_kid", "precision_recall", "wilson", "within_class_distance"]


class Distance(NamedTuple):
    """A distance and its standard error."""

    value: float
    error: float


def balanced_kid(samples: np.ndarray, reference: np.ndarray, classes: int) -> Distance:
    """Return the KID (Bińkowski et al. 2018) between features (N, D) and (M, D) of class-balanced sets.

    In both sets, item i must belong to class i % classes. The items of a balanced set are not independent, so the usual
    estimate of KID is too low. This one averages the kernel separately over each pair of classes and excludes pairs of
    an item with itself, which makes it unbiased: it is about 0 for real images. The standard error is that of a
    jackknife over rounds of one sample per class; it is NaN if there are only two rounds.
    Raises ValueError if a class has fewer than two items or the classes have different numbers of items.
    """
    for name, points in (("samples", samples), ("reference images", reference)):
        if len(points) % classes or len(points) < 2 * classes:
            raise ValueError(
                f"the number of {name} must be a multiple of {classes} and at least {2 * classes}, got {len(points)}"
            )

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the kernel summed over pairs of classes (rounds of a, rounds of b), without self-pairs if a is b."""
        k = (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3
        own = np.diagonal(k).reshape(-1, classes).sum(1) if a is b else None
        k = k.reshape(len(a) // classes, classes, len(b) // classes, classes).sum((1, 3))
        return k - np.diag(own) if own is not None else k

    def within(k: np.ndarray, same: np.ndarray) -> float:
        """Return the mean over pairs of items. same: the part of k from pairs within one class."""
        n = len(k)
        return float((k.sum() - same.sum()) / n**2 + same.sum() / (n * (n - 1))) / classes**2

    def within_classes(a: np.ndarray) -> np.ndarray:
        """Return the kernel summed over the classes, for pairs of items of one class, without self-pairs."""
        parts = [a[c::classes].astype(np.float64) for c in range(classes)]
        k = sum((part @ part.T / a.shape[1] + 1) ** 3 for part in parts)
        return k - np.diag(np.diagonal(k))

    inside, same, across = kernel(samples, samples), within_classes(samples), kernel(samples, reference)
    fixed = within(kernel(reference, reference), within_classes(reference))

    def value(kept: np.ndarray) -> float:
        block = np.ix_(kept, kept)
        return within(inside[block], same[block]) - 2 * float(across[kept].mean()) / classes**2 + fixed

    rounds = np.arange(len(inside))
    if len(rounds) < 3:
        return Distance(value(rounds), math.nan)
    without = np.array([value(np.delete(rounds, i)) for i in rounds])
    return Distance(value(rounds), math.sqrt((len(rounds) - 1) * without.var()))


def within_class_distance(points: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean Euclidean distance between different points (N, D) of the same class (N,).

    The mean is taken over the pairs of each class, then over the classes. Classes with fewer than two points are
    ignored; the result is NaN if no class is left.
    """
    means = []
    for label in np.unique(classes):
        members = points[classes == label]
        if (n := len(members)) > 1:
            means.append(distances(members, members).sum() / (n * (n - 1)))
    return float(np.mean(means)) if means else math.nan


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances (N, M) of points (N, D) and (M, D), in float64, exactly 0 for equal points."""
    a, b = (torch.from_numpy(np.asarray(points, np.float64)) for points in (a, b))
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").numpy()
