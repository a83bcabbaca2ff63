"""Parts of a data set: a subset by index, and a random split into training and validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from .dataset import Batch, Dataset, ImageDataset, Seed, View
from .errors import DataError

SPLIT = 2  # stream of random numbers of a seed, beside those of stream.py


def split(dataset: ImageDataset, fraction: float, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Return the data set without a share of its images, and these images, in their order.

    Each image has a random number that depends only on the seed and the index of the image. In each class, the images
    with the smallest numbers are split off: the same share of every class, up to rounding. If the labels are not known
    without reading every image, the share is taken of the whole. All frames of a file are in the same part, and at
    least one image of each class stays.

    Raises DataError if the share of the images is less than one of them, or if too few images would be left.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction must be above 0 and below 1, got {fraction}")
    files, first = np.unique(file_numbers(dataset), return_index=True)
    labels = known_labels(dataset)
    classes = np.zeros(len(files), np.int64) if labels is None else labels[first]
    off = np.isin(file_numbers(dataset), files[stratified_positions(classes, fraction, seed)])
    if len(np.unique(classes)) == len(classes):
        raise DataError("no image can be held out, since each class has only one")
    if not off.any():
        raise DataError(f"the fraction must be at least {1 / len(files):.2g} for {len(files)} images, got {fraction}")
    return subset(dataset, np.flatnonzero(~off)), subset(dataset, np.flatnonzero(off))


def stratified_positions(classes: Int64[np.ndarray, " n"], fraction: float, seed: int) -> Int64[np.ndarray, " k"]:
    """Return the positions of a random share of each class; the rounding error is carried over to the next class."""
    order = np.random.default_rng((seed, SPLIT)).random(len(classes))
    taken, owed = [], 0.0
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        owed += fraction * len(members)
        count = min(int(owed + 1e-9), len(members) - 1)
        owed = min(owed - count, 1.0)  # a class gives at most one image in place of others
        taken.append(members[np.argsort(order[members])[:count]])
    return np.concatenate(taken)


def file_numbers(dataset: ImageDataset) -> Int64[np.ndarray, " n"]:
    """Return a number for each image, which is the same for the frames of a file."""
    if isinstance(dataset, Dataset) and dataset.frames is not None:
        return np.cumsum(np.asarray(dataset.frames) == 0)  # the frames of a file are consecutive, from 0
    return np.arange(len(dataset))


def known_labels(dataset: ImageDataset) -> Int64[np.ndarray, " n"] | None:
    """Return the label of each image, or None if that is not known without reading every image."""
    labels = getattr(dataset, "labels", None)
    known = np.asarray(labels) if isinstance(labels, np.ndarray | torch.Tensor | list | tuple) else np.empty(0)
    fits = known.shape == (len(dataset),) and np.issubdtype(known.dtype, np.integer)
    return known.astype(np.int64) if fits else None


def subset(dataset: ImageDataset, indices: Sequence[int] | Int64[np.ndarray, " k"]) -> ImageDataset:
    """Return the data set of these images."""
    at = np.asarray(indices, np.int64)
    if not isinstance(dataset, Dataset):
        return Subset(dataset, at)
    images: Any = dataset.images
    images = images[at] if isinstance(images, np.ndarray) else tuple(images[i] for i in at)
    labels = None if dataset.labels is None else dataset.labels[at]
    frames = None if dataset.frames is None else tuple(dataset.frames[i] for i in at)
    return replace(dataset, images=images, labels=labels, frames=frames)


@dataclass(frozen=True, eq=False)
class Subset(View):
    """Some images of a data set, by index. `subset` returns one."""

    indices: Int64[np.ndarray, " k"]

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.dataset.label_names

    @property
    def labels(self) -> Int64[np.ndarray, " k"] | None:
        """The labels, if they are known without reading every image."""
        labels = self.known_labels
        return None if labels is None else labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int], seeds: Sequence[Seed] | None = None) -> Batch:
        """Return images (n, C, S, S) in [-1, 1] and labels (n,), -1 for none."""
        return self.dataset.batch([int(self.indices[i]) for i in indices], seeds)
