"""Validation images, on which a network is not trained: separate data, or a share of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg.config import check, setting
from admg.data import DataConfig, Dataset, ImageDataset
from admg.data.classes import empty_classes, with_classes
from admg.data.errors import listed
from admg.data.layouts import in_channels
from admg.data.split import split
from admg.warn import warn

from .opening import Data, data_name, decoding_of, image_fields, open_data, size_of


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation.

    val_data: validation images, in the layout of --data (default: the test split of IDX files, else none)
    val_fraction: share of the training images of each class that is held out for validation instead
    val_images: number of validation images, spread over all
    """

    val_data: str | None = setting(None, metavar="PATH")
    val_fraction: float | None = setting(None, above=0, below=1)
    val_images: int = setting(200, min=1)

    def __post_init__(self) -> None:
        check(self)
        if self.val_data and self.val_fraction is not None:
            raise ValueError(
                "val_data cannot be combined with val_fraction: validation images are separate data, or a share of "
                "the training images"
            )

    def chosen(self, images: DataConfig) -> DataConfig | float | None:
        """Return the argument `validation` of `train_diffusion` and others: images, a share of `images`, or None.

        images: the training images
        Raises ValueError if a number of validation images is given, but no validation images.
        """
        chosen = images.held_out(self.val_data) if self.val_fraction is None else self.val_fraction
        if chosen is None and self.val_images != type(self).val_images:
            raise ValueError("val_images needs val_data or val_fraction")
        return chosen


@dataclass(frozen=True, kw_only=True)
class ClassifierValidationConfig(ValidationConfig):
    """Validation of a classifier, whose accuracy needs more images.

    See ValidationConfig.
    """

    val_images: int = setting(1000, min=1)


@dataclass(frozen=True)
class Parts:
    """The images of a run.

    training: images for training
    held_out: images for validation, or None
    record: entries about them for the provenance of the model
    """

    training: ImageDataset
    held_out: ImageDataset | None
    record: dict[str, Any]


def divide(
    data: Data,
    dataset: ImageDataset,
    validation: Data | float | None,
    *,
    seed: int,
    resumed: Mapping[str, Any],
    unlabelled: bool = False,
) -> Parts:
    """Return the images to train on and those to validate on.

    data, dataset: the training images, as they were given and opened
    validation: other images, the share of the training images that is held out, or None
    seed: seed of the run, which determines the held-out images of a new run
    resumed: how the resumed run was trained; {} for a new run
    unlabelled: whether labels are ignored

    Raises ValueError if the images do not fit together, or if other images were held out before the run was resumed.
    """
    known = resumed.get("validation") or {}
    fraction = float(validation) if isinstance(validation, int | float) else None
    if resumed and fraction != known.get("fraction"):
        before = f"with val_fraction {known['fraction']:g}" if "fraction" in known else "without val_fraction"
        raise ValueError(
            f"the run was started {before}, which determines its training images: resume it in the same way, or "
            "choose another run directory"
        )
    if fraction is None:
        if validation is None or isinstance(validation, int | float):
            return Parts(dataset, None, {})
        held_out = open_validation(validation, dataset, data_name(data), unlabelled)
        name = Path(data_name(validation)).name
        return Parts(dataset, held_out, {"validation": {"data": name, "images": len(held_out)}})
    seed = int(known.get("seed", seed))
    training, held_out = split(dataset, fraction, seed)
    if known.get("images", len(held_out)) != len(held_out):
        warn(
            f"{data_name(data)} has changed since the run was started: some held-out images may now be used "
            "for training"
        )
    return Parts(training, held_out, {"validation": {"fraction": fraction, "seed": seed, "images": len(held_out)}})


def open_validation(data: Data, training: ImageDataset, name: str, unlabelled: bool = False) -> ImageDataset:
    """Open validation images, with labels numbered and files decoded as those of training.

    The values of black and white and the background are those of the training images, unless a DataConfig states
    others; a data set keeps its own. Warns of classes without an image.

    name: name of the training images, for messages
    unlabelled: whether labels are ignored

    Raises ValueError if an image is of another class, or if the images have another size or other channels.
    """
    held_out = with_channels(open_data(data, unlabelled, decoding_of(training)), training.channels)
    if training.label_names and not unlabelled:
        held_out = with_classes(held_out, training.label_names, "validation images", name)
        if empty := empty_classes(held_out):
            warn(f"no validation images of the class{'es' if len(empty) > 1 else ''} {listed(empty)}")
    if image_fields(held_out) != image_fields(training):
        raise ValueError(f"the validation images are {size_of(held_out)}, and the training images {size_of(training)}")
    return held_out


def with_channels(dataset: ImageDataset, channels: int) -> ImageDataset:
    """Return grey images in colour, or colour ones in grey, with a note, if that gives this number of channels."""
    if not isinstance(dataset, Dataset) or {dataset.channels, channels} != {1, 3}:
        return dataset
    made = "grey, like the training images" if channels == 1 else "colour, with three equal channels"
    warn(f"converting the validation images to {made}")
    return in_channels(dataset, channels)
