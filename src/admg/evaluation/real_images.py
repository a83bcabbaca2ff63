"""Real images for measuring a model: opened at the model's size, with the model's label numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admg.checkpoints.labels import Labels, file_name
from admg.config import check_integer
from admg.data import Dataset, from_dataset
from admg.data.arrays import Split
from admg.data.classes import as_numbers
from admg.data.dataset import Fit, ImageDataset
from admg.data.errors import listed
from admg.data.labelling import LabelSource
from admg.data.members import ImagePath, open_image
from admg.data.spread import spread_indices
from admg.data.value_range import ValueRange
from admg.generation.starts import TrainedReading, open_in_channels
from admg.warn import warn


@dataclass(frozen=True)
class RealImages:
    """Some images of a data set, fitted to the size of a model.

    dataset: the data set
    numbers: indices of the images in the data set
    labels: label numbers of the model (N,), or None
    """

    dataset: ImageDataset
    numbers: list[int]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, chosen: slice) -> tuple[Tensor, Tensor | None]:
        """Return the images x (n, C, S, S) in [-1, 1] of a slice, and their labels (n,) or None."""
        x, _ = self.dataset.batch(self.numbers[chosen])
        return x, None if self.labels is None else self.labels[chosen]


def open_real_images(
    data: Path | str | torch.utils.data.Dataset[Any],
    shape: Sequence[int],
    labels: Labels | None = None,
    *,
    num: int | None = None,
    fit: Fit | None = None,
    split: Split = "test",
    value_range: ValueRange | None = None,
    trained: TrainedReading | None = None,
) -> RealImages:
    """Open images for a model of this shape, (C, S, S).

    data: a folder of images or IDX files, an .npz, or a data set in the size of the model, of `admg.data` or any torch
        data set of (image, label)
    labels: labels of the model; None leaves the labels of the data out
    num: number of images, spread over the data set; None: all
    fit: fitting of images smaller than the model's: "resize" enlarges them, "pad" adds a border
    split: "train" or "test", of data that have both
    value_range: values of black and white; by default as `admg.data.open` finds them, or as in training
    trained: how the images of the model's training were read
    Grey and colour images of files are converted for a model of the other kind, with a warning.
    Raises ValueError if there are no images, if their channels do not fit the model, if they are smaller than the
    model's and no fit is given, or if the model does not have their labels.
    """
    if num is not None:
        check_integer("num", num)
    channels, size = shape[0], shape[1]
    dataset: ImageDataset
    if not isinstance(data, str | Path):
        dataset, path = from_dataset(data), "the data set"
        if (dataset.channels, dataset.image_size) != (channels, size):
            have = f"{dataset.channels}x{dataset.image_size}x{dataset.image_size}"
            raise ValueError(f"images must be {channels}x{size}x{size} for this model, but {path} has {have}")
    else:
        path = str(data)
        trained = trained or TrainedReading()
        source: LabelSource = "none" if labels is None else "auto"
        dataset = opened = open_in_channels(
            path,
            size,
            channels,
            labels=source,
            fit=fit or "resize",
            split=split,
            **trained.options(value_range),
        )
    total = len(dataset)
    numbers = list(range(total) if num is None else spread_indices(total, num))
    if isinstance(data, str | Path):
        check_images(path, opened, numbers, fit)
    if labels is None or not dataset.label_names:
        return RealImages(dataset, numbers, None)
    found, numbered = labels_of(dataset, numbers), bool(getattr(dataset, "numbered", False))
    if numbered and labels.names and len(dataset.label_names) <= labels.count:
        used = np.unique(found[found >= 0]).tolist()
        known = torch.tensor(as_numbers(len(dataset.label_names), used, labels.names, f"images of {path}"))
    else:
        known = torch.tensor(label_numbers(labels, dataset.label_names, numbered))
    return RealImages(dataset, numbers, torch.where(found >= 0, known[found], -1))


def labels_of(dataset: ImageDataset, numbers: Sequence[int]) -> Tensor:
    """Return the labels (n,) of some images of a data set, -1 for none; a torch data set has to read the images."""
    if isinstance(dataset, Dataset):
        return torch.full((len(numbers),), -1) if dataset.labels is None else torch.from_numpy(dataset.labels[numbers])
    return torch.cat([dataset.batch([number])[1] for number in numbers])


def check_images(path: Path | str, dataset: Dataset, numbers: Sequence[int], fit: Fit | None) -> None:
    """Raise ValueError if an image is smaller than the model's, and no fit is given."""
    side = dataset.image_size
    for width, height in (header(dataset.images[number]) for number in numbers):
        if fit is None and min(width, height) < side:
            raise ValueError(
                f"{path} has images of {width}x{height}, smaller than the model's {side}x{side}: choose --fit pad (a "
                f"border) or --fit resize (enlarge), as the model was trained"
            )


def header(image: ImagePath | np.ndarray) -> tuple[int, int]:
    """Return the width and height of an image; for a file, only its header is read."""
    if not isinstance(image, np.ndarray):
        with open_image(image) as file:
            return file.size
    return image.shape[1], image.shape[0]


def label_numbers(labels: Labels, names: Sequence[str], numbered: bool = False) -> list[int]:
    """Return the model's number of each label name of the data; names may be spelt as in file names.

    numbered: whether the data have numbers without names, which are the model's numbers
    If no name is one of the model's but there are equally many, they are matched in order, with a warning; if they are
    numbers from 0 on, and the model's labels have names, each is the number of a label.
    Raises ValueError if the model does not have one of the labels.
    """
    other = f"the data's {len(names)} labels are not the model's {labels.count}"
    if numbered and len(names) > labels.count:
        raise ValueError(f"{other}: there is a label {len(names) - 1}; --unconditional leaves labels out")
    if numbered:
        return list(range(len(names)))
    by_file = [file_name(name).lower() for name in labels.names]
    if len(names) == labels.count and not any(file_name(name).lower() in by_file for name in names):
        with suppress(ValueError):
            if labels.aliases:
                return [labels.number(name) for name in names]
        return _numbers_without_names(labels, names)
    try:
        return [_label_number(labels, by_file, name) for name in names]
    except ValueError as error:
        raise ValueError(f"{other}: {error}; --unconditional leaves labels out") from None


def _numbers_without_names(labels: Labels, names: Sequence[str]) -> list[int]:
    """Return the numbers of as many labels as the model has, none of whose names is one of the model's."""
    in_order = list(range(labels.count))
    numbers = [int(name) for name in names if name.isdecimal()]
    are_numbers = sorted(numbers) == in_order
    chosen, how = in_order, "equally many, so they are matched in order"
    if are_numbers and labels.names:
        chosen, how = numbers, "the numbers from 0 on, so each is taken for the number of a label"
    elif are_numbers and numbers != in_order:
        how += f", which is that of texts: {names[2]!r} is label 2"
    elif not labels.names:
        return in_order
    ours, theirs = listed(names, 3), f" ({listed(labels.names, 3)})" if labels.names else ", which have no names"
    text = f"the names of the data's labels ({ours}) are not the model's{theirs}: there are {how}"
    warn(text)
    return chosen


def _label_number(labels: Labels, by_file: Sequence[str], name: str) -> int:
    """Raise ValueError if no label, or several, have this name."""
    try:
        return labels.parse(name)
    except ValueError:
        if by_file.count(file_name(name).lower()) != 1:
            raise
        return by_file.index(file_name(name).lower())
