"""Figures for a handful of samples, beside those of admg.evaluation: a distance of balanced sets, diversity."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from admg.evaluation.metrics import precision_recall, wilson

__all__ = ["Distance", "balanced_kid", "precision_recall", "wilson", "within_class_distance"]


class Distance(NamedTuple):
    """value, and its standard error."""

    value: float
    error: float


def balanced_kid(samples: np.ndarray, reference: np.ndarray, classes: int) -> Distance:
    """KID (Bińkowski et al. 2018) of features (N, D) to (M, D), where item i of either is of class i % classes.

    Sets with equally many of each class are no independent draws, and KID's usual estimate of them is too low. Here
    each pair of classes has its own mean of the kernel, without an item's pair with itself: unbiased, and about 0 for
    real images. Error: the jackknife over the rounds of one sample a class.
    ValueError: fewer than 2 of a class, or not equally many.
    """
    for name, points in (("samples", samples), ("reference images", reference)):
        if len(points) % classes or len(points) < 2 * classes:
            raise ValueError(f"{len(points)} {name}: a multiple of {classes} is needed, of 2 or more each")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Summed over pairs of classes: (rounds of a, rounds of b), without pairs of an item with itself if a is b."""
        k = (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3
        own = np.diagonal(k).reshape(-1, classes).sum(1) if a is b else None
        k = k.reshape(len(a) // classes, classes, len(b) // classes, classes).sum((1, 3))
        return k - np.diag(own) if own is not None else k

    def within(k: np.ndarray, same: np.ndarray) -> float:
        """same: the part of pairs of one class, of which each item has one fewer."""
        n = len(k)
        return float((k.sum() - same.sum()) / n**2 + same.sum() / (n * (n - 1))) / classes**2

    def of_one_class(a: np.ndarray) -> np.ndarray:
        parts = [a[c::classes].astype(np.float64) for c in range(classes)]
        k = sum((part @ part.T / a.shape[1] + 1) ** 3 for part in parts)
        return k - np.diag(np.diagonal(k))

    inside, same, across = kernel(samples, samples), of_one_class(samples), kernel(samples, reference)
    fixed = within(kernel(reference, reference), of_one_class(reference))

    def value(kept: np.ndarray) -> float:
        block = np.ix_(kept, kept)
        return within(inside[block], same[block]) - 2 * float(across[kept].mean()) / classes**2 + fixed

    rounds = np.arange(len(inside))
    if len(rounds) < 3:
        return Distance(value(rounds), math.nan)
    without = np.array([value(np.delete(rounds, i)) for i in rounds])
    return Distance(value(rounds), math.sqrt((len(rounds) - 1) * without.var()))


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
