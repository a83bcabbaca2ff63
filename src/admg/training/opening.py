"""The training images: opened from a path or options, or a wrapped data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import unwrapped
from admg.data import DataConfig, DataError, Dataset, ImageDataset, from_dataset
from admg.data import open as open_dataset
from admg.data.dataset import View
from admg.data.decoding import Decoding
from admg.data.errors import listed
from admg.data.labelling import LabelSource
from admg.data.listing import is_hidden_folder
from admg.data.value_range import ValueRange
from admg.models import ClassifierConfig

from .tasks import part_of

Named = str | Path | DataConfig
Data = Named | torch.utils.data.Dataset[Any]
"""A path, a DataConfig, a data set of `admg.data`, or any other map-style data set of (image, label)."""


def open_data(data: Data, unlabelled: bool = False, like: Decoding | None = None) -> ImageDataset:
    """Open a path or a DataConfig, or wrap a data set. Raises DataError, which is a ValueError.

    unlabelled: ignore labels in files; a data set keeps its labels
    like: how the files of training images become pixels, which applies where the DataConfig states nothing else
    """
    if isinstance(data, str | Path):
        labels: LabelSource = "none" if unlabelled else "auto"
        return open_dataset(data, labels=labels) if like is None else open_like(like, data, labels=labels)
    if not isinstance(data, DataConfig):
        return from_dataset(data)
    if unlabelled and data.labels not in ("auto", "none"):
        raise ValueError(f"unlabelled ignores labels, and cannot be combined with labels {data.labels}")
    data = dataclasses.replace(data, labels="none") if unlabelled else data
    return data.open() if like is None else open_like(like, data.data, **data.options)


def open_like(
    like: Decoding,
    path: str | Path,
    *,
    value_range: ValueRange | None = None,
    background: int | None = None,
    **options: Any,
) -> Dataset:
    """Open a path with the values of black and white and the background of training images, unless they are given.

    options: further ones of `admg.data.open`
    """
    background = like.background if background is None else background
    options |= {"value_range": value_range or like.value_range, "wide_range": like.wide_range}
    try:  # with a background, since transparent images would otherwise change the border
        opened = open_dataset(path, background=255 if background is None else background, **options)
    except DataError as error:
        found = like.value_range or like.wide_range
        if value_range or not found:
            raise
        raise DataError(f"{error} (black and white are {found[0]:g} and {found[1]:g} in the training images)") from None
    return dataclasses.replace(opened, decoding=dataclasses.replace(opened.decoding, background=background))


def decoding_of(dataset: ImageDataset) -> Decoding | None:
    """Return how the files of a data set become pixels, or None if it is not one of `admg.data`."""
    if isinstance(dataset, View):
        return decoding_of(dataset.dataset)
    return dataset.decoding if isinstance(dataset, Dataset) else None


def data_name(data: Data) -> str:
    """Return a name of the data for messages."""
    if isinstance(data, DataConfig):
        return data.data
    return str(data) if isinstance(data, str | Path) else f"the {type(data).__name__}"


def check_outside(out: Path | str, data: Data, dataset: ImageDataset) -> None:
    """Raise ValueError if the run directory lies among the training images: its pictures would become part of them."""
    if not isinstance(dataset, Dataset) or isinstance(dataset.images, np.ndarray) or not isinstance(data, Named):
        return
    folder, run = Path(data_name(data)).expanduser().resolve(), Path(out).expanduser().resolve()
    if (run / "run.json").is_file():  # an existing run is left out of the images
        return
    if folder.is_dir() and run.is_relative_to(folder) and not any(map(is_hidden_folder, run.relative_to(folder).parts)):
        raise ValueError(f"the run directory {out} lies in the folder of the training images, {folder}: choose another")


def check_fits(task: Any, dataset: ImageDataset) -> None:
    """Raise ValueError if a data set has other images or labels than the model or classifier of a task."""
    part = part_of(task)
    config = getattr(unwrapped(task.network), "config", None)
    shape = (dataset.channels, dataset.image_size, dataset.image_size)
    own = part.shape if isinstance(part, Model) else shape
    if isinstance(part, Classifier) and isinstance(config, ClassifierConfig):
        own = (config.image_channels, config.image_size, config.image_size)
    if shape != tuple(own):
        raise ValueError(
            f"the images of the data set must be {_text(own)}, as those of the network, got {_text(shape)}"
        )
    if isinstance(part, Classifier) or (isinstance(part, Model) and part.conditional):
        _check_labels(part.labels, dataset.label_names)


def _check_labels(labels: Labels, names: tuple[str, ...]) -> None:
    numbers = names == tuple(map(str, range(len(names))))
    if names and labels.count and len(names) > labels.count:
        raise ValueError(f"the data set has {len(names)} labels, more than the {labels.count} of the network")
    if names and labels.names and not numbers and names != labels.names:
        raise ValueError(
            f"the labels of the data set must be those of the network, in their order, {listed(labels.names)}; "
            f"got {listed(names)}"
        )


def _text(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def image_fields(dataset: ImageDataset) -> dict[str, int]:
    return {"image_size": dataset.image_size, "image_channels": dataset.channels}


def size_of(dataset: ImageDataset) -> str:
    """Return '64x64 pixels with 3 channels'."""
    channels = f"{dataset.channels} channel{'s' if dataset.channels > 1 else ''}"
    return f"{dataset.image_size}x{dataset.image_size} pixels with {channels}"
