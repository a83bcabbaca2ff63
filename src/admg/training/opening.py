"""The training images: opened from a path or options, or a wrapped data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from admg.data import DataConfig, Dataset, ImageDataset, from_dataset
from admg.data import open as open_dataset
from admg.data.listing import is_hidden_folder

Named = str | Path | DataConfig
Data = Named | torch.utils.data.Dataset[Any]
"""A path, a DataConfig, a data set of `admg.data`, or any other map-style data set of (image, label)."""


def open_data(data: Data, unlabelled: bool = False) -> ImageDataset:
    """Open a path or a DataConfig, or wrap a data set. Raises DataError, which is a ValueError.

    unlabelled: ignore labels in files; a data set keeps its labels
    """
    if isinstance(data, str | Path):
        return open_dataset(data, labels="none" if unlabelled else "auto")
    if not isinstance(data, DataConfig):
        return from_dataset(data)
    if unlabelled and data.labels not in ("auto", "none"):
        raise ValueError(f"unlabelled ignores labels, and cannot be combined with labels {data.labels}")
    return (dataclasses.replace(data, labels="none") if unlabelled else data).open()


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


def image_fields(dataset: ImageDataset) -> dict[str, int]:
    return {"image_size": dataset.image_size, "image_channels": dataset.channels}


def size_of(dataset: ImageDataset) -> str:
    """Return '64x64 pixels with 3 channels'."""
    channels = f"{dataset.channels} channel{'s' if dataset.channels > 1 else ''}"
    return f"{dataset.image_size}x{dataset.image_size} pixels with {channels}"
