"""How often each image is used: all equally often, or classes with other shares than their numbers of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from admg.config import did_you_mean

from .dataset import ImageDataset
from .errors import DataError, listed
from .split import known_labels

Sampling = Literal["uniform", "balanced", "weighted"]

ORDER = 0
"""Stream of random numbers of a seed that decides the order of the images."""


@dataclass(frozen=True)
class ClassSampling:
    """Shares of the classes among the images that are drawn; images without a label are a class of their own.

    power: the share of a class is proportional to its number of images to this power: 1 uses all images equally often,
        0 all classes
    weights: shares of the classes relative to each other, by name; 1 for classes that are not named. They take the
        place of `power`.
    """

    power: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    def order_of(self, dataset: ImageDataset, seed: int) -> UniformOrder | WeightedOrder:
        """Return the order of the images in each epoch. Raises DataError if it needs labels that are not known."""
        if self.power == 1 and not self.weights:
            return UniformOrder(seed, len(dataset))
        labels = known_labels(dataset)
        if not dataset.label_names:
            raise DataError("sampling can only balance or weight classes if the images have labels")
        if labels is None:
            raise DataError(
                f"the labels of a {type(dataset).__name__} are known only when its images are read: use "
                f'sampling="uniform", a data set of admg.data.open or from_arrays, or one whose targets are its labels'
            )
        return WeightedOrder(seed, labels, self.shares(labels, dataset.label_names))

    def shares(self, labels: Int64[np.ndarray, " n"], names: Sequence[str]) -> Float64[np.ndarray, " n"]:
        """Return the share of each image; the sum is 1. Raises DataError if a weight has no class, or all are 0."""
        counts = np.bincount(labels + 1, minlength=len(names) + 1)  # the first is that of images without a label
        if self.weights:
            for name in self.weights:
                if name not in names:
                    hint = did_you_mean(name, names) or f"the classes are {listed(names)}"
                    raise DataError(f"class_weight names a class {name!r} that the images do not have: {hint}")
            weights = np.array([1.0, *(self.weights.get(name, 1.0) for name in names)])
        else:
            weights = np.maximum(counts, 1) ** float(self.power)
        each = (weights / np.maximum(counts, 1))[labels + 1]
        if not each.any():
            raise DataError("class_weight leaves out all images: a class that has images needs a weight above 0")
        return np.asarray(each / each.sum())


@dataclass(frozen=True)
class UniformOrder:
    """Epochs that contain every image once."""

    seed: int
    count: int

    def __call__(self, epoch: int) -> Int64[np.ndarray, " count"]:
        """Return the indices of the images of an epoch."""
        return _permutation(self.seed, epoch, self.count)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)


@dataclass(frozen=True, eq=False)
class WeightedOrder:
    """Epochs of as many images as the data set has, in which images have other shares than 1/N.

    An epoch has each image, and each class, as often as its share of the epoch says, rounded up or down at random, so
    that the mean is exact (systematic sampling along the images sorted by class, in random order within each).
    """

    seed: int
    labels: Int64[np.ndarray, " n"]
    shares: Float64[np.ndarray, " n"]

    def __call__(self, epoch: int) -> Int64[np.ndarray, " n"]:
        """Return the indices of the images of an epoch."""
        return _systematic(self, epoch)


@lru_cache(maxsize=2)
def _systematic(order: WeightedOrder, epoch: int) -> Int64[np.ndarray, " n"]:
    rng, count = np.random.default_rng((order.seed, ORDER, epoch)), len(order.labels)
    images = np.lexsort((rng.random(count), order.labels))
    images = images[order.shares[images] > 0]
    ends = np.cumsum(order.shares[images])
    points = (np.arange(count) + rng.random()) / count * ends[-1]
    drawn = images[np.searchsorted(ends, points, side="right").clip(max=len(images) - 1)]
    return rng.permutation(drawn)


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Return the weights of "CLASS=WEIGHT". Raises ValueError for other texts, or if a class occurs twice."""
    weights: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or not name or not 0 <= weight < math.inf:
            raise ValueError(f"class_weight must be CLASS=WEIGHT with a weight of at least 0, got {text!r}")
        if name in weights:
            raise ValueError(f"class_weight names {name!r} twice")
        weights[name] = weight
    return weights
