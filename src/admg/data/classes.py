"""The classes of a data set: how many images each has, and their numbers in another data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from admg.warn import warn

from .dataset import Batch, ImageDataset, Seed, View
from .errors import DataError, listed

ALL_SHOWN = 20
"""Largest number of classes that are all listed."""


def class_counts(dataset: ImageDataset) -> Int64[np.ndarray, " k"] | None:
    """Return the number of images of each class, or None if that is not known without reading every image."""
    labels = getattr(dataset, "labels", None)
    if not isinstance(labels, np.ndarray):
        return None
    return np.bincount(labels[labels >= 0], minlength=len(dataset.label_names))


def describe_classes(dataset: ImageDataset) -> str:
    """Return the classes and their sizes, 'cat (120), dog (98)'; if there are many, some of them and the range."""
    counts = class_counts(dataset)
    names = [name if name.isprintable() else ascii(name) for name in dataset.label_names]
    shown = names if counts is None else [f"{name} ({count})" for name, count in zip(names, counts)]
    if len(names) <= ALL_SHOWN:
        return ", ".join(shown)
    some = f"{', '.join(shown[:3])}, ..., {shown[-1]}"
    if counts is None:
        return some
    low, high = int(counts.min()), int(counts.max())
    return f"{some}; {f'{low} images' if low == high else f'{low} to {high} images'} each"


def empty_classes(dataset: ImageDataset) -> list[str]:
    """Return the names of the classes that are known to have no image."""
    counts = class_counts(dataset)
    return [] if counts is None else [name for name, count in zip(dataset.label_names, counts) if not count]


def with_classes(
    dataset: ImageDataset, names: Sequence[str], what: str = "images", other: str = "the model"
) -> ImageDataset:
    """Return the data set with its labels numbered as in `names`, matched by their names.

    what, other: descriptions, for messages, of the images and of the source of `names`
    Labels that are only numbers keep them, unless they are among the names; see `as_numbers`. Raises DataError if there
    are no labels, or if one is not in `names`.
    """
    own = dataset.label_names
    if not own:
        raise DataError(f"the {what} have no labels, but need those of {other}: {listed(names)}")
    if own == tuple(names):
        return dataset
    differ = f"the labels of the {what} differ from those of {other}"
    if getattr(dataset, "numbered", False):
        counts = class_counts(dataset)
        used = [number for number in range(len(own)) if counts is None or counts[number]]
        if len(own) > len(names) and not _are_names(used, names):
            raise DataError(f"{differ}: {len(own) - 1} is not among 0 to {len(names) - 1}, {listed(names)}")
        return Renumbered(dataset, as_numbers(len(own), used, names, what), tuple(names))
    empty = empty_classes(dataset)
    if unknown := [name for name in own if name not in names and name not in empty]:
        raise DataError(f"{differ}: {listed(unknown)} is not among {listed(names)}")
    at = {name: number for number, name in enumerate(names)}
    return Renumbered(dataset, tuple(at.get(name, -1) for name in own), tuple(names))


def as_numbers(count: int, used: Sequence[int], names: Sequence[str], what: str) -> tuple[int, ...]:
    """Return the index in `names` of each of the labels 0 .. count-1, which are numbers without names.

    Class folders may have numbers for names, which are sorted as text: 0, 1, 10, 2. Therefore labels that are all among
    the names are taken for these names, with a warning if that changes a number. Otherwise a number is the index.

    used: the labels that occur among the images
    what: the images, for the warning
    """
    at = {name: number for number, name in enumerate(names)}
    if not all(name.isdecimal() for name in names) or all(at.get(str(number)) == number for number in used):
        return tuple(range(count))
    matched = _are_names(used, names)
    example = next(number for number in used if at.get(str(number)) != number)
    way = f"class {str(example)!r}" if matched else f"class number {example}, {names[example]!r}"
    warn(
        f"the labels of the {what} are numbers, and the classes have numbers for names ({listed(names, 5)}): label "
        f"{example} is taken for {way}"
    )
    return tuple(at.get(str(number), -1) if matched else number for number in range(count))


def _are_names(numbers: Sequence[int], names: Sequence[str]) -> bool:
    """Whether all names are numbers, and these are among them."""
    return all(name.isdecimal() for name in names) and {str(number) for number in numbers} <= set(names)


@dataclass(frozen=True)
class Renumbered(View):
    """A data set whose labels have other numbers. `with_classes` returns one.

    numbers: new number of each label
    label_names: names of the labels, in the order of the new numbers
    """

    numbers: tuple[int, ...]
    label_names: tuple[str, ...]

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """The labels (N,), if they are known without reading every image."""
        labels = self.known_labels
        return None if labels is None else np.array((*self.numbers, -1), np.int64)[labels]

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int], seeds: Sequence[Seed] | None = None) -> Batch:
        """Return images (n, C, S, S) in [-1, 1] and labels (n,), -1 for none."""
        x, y = self.dataset.batch(indices, seeds)
        return x, self._renumbered(y)

    def _renumbered(self, y: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return torch.tensor((*self.numbers, -1))[y]  # -1 stays: it is the last
