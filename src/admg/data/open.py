"""`open_dataset`: recognises how images are laid out on disk, and checks all that can be checked before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Int64
from PIL import Image

from .arrays import Split, find_idx, open_idx, open_npz
from .dataset import Crop, Dataset, Fit
from .errors import DataError, listed
from .folder import label_names_of, number_labels, open_folder
from .transforms import GREY_MODES, check_pad

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open_dataset(
    path: str | Path,
    image_size: int,
    *,
    channels: int | None = None,
    fit: Fit = "resize",
    crop: Crop = "center",
    flip: bool = False,
    labels: bool = True,
    label_names: Sequence[str] | None = None,
    split: Split = "train",
    strict: bool = False,
    verify: bool = True,
) -> Dataset:
    """Opens images of any of these layouts, which it recognises by itself.

    - A folder with a sub-folder for each class, named after it; sorted names get the numbers 0, 1, ...
    - A flat folder whose file names begin with the label and an underscore, as in guided-diffusion; sorted names get
      the numbers. If there is no underscore at all, there are no labels.
    - A folder of IDX files (MNIST family), of which `split` picks "train" or "test"; or one IDX file of images, with
      its labels file beside it.
    - An .npz with arr_0, uint8 (N, H, W[, C]), and maybe arr_1, integer labels (N,).

    channels: 1 or 3; None: 1 if every image of the source is grey, else 3.
    fit: "resize" scales the shorter side to `image_size`; "pad" puts smaller images on a black canvas.
    crop: "center", or "random" (with fit="resize" a random square, with fit="pad" a random place on the canvas).
    flip: mirror a random half of the images, left to right.
    labels: False leaves labels out.
    label_names: names of the labels, in the order of their numbers. For a folder this fixes the numbers, which helps
        if a part of the data lacks a class.
    strict: a file in a folder that is not an image is an error, rather than being named in `Dataset.skipped`.
    verify: decode every image of a folder now, rather than only read its header.

    Raises DataError, with one line that says what is wrong and what is allowed.
    """
    _check_options(image_size, channels, fit, crop, split)
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist: allowed is a folder of images or IDX files, an IDX file or an .npz")
    names = _checked_names(label_names)
    file = find_idx(path, split) if path.is_dir() else path
    if file is None:
        dataset = _open_folder(path, image_size, channels, fit, labels, names, strict=strict, verify=verify)
    else:
        dataset = _open_arrays(file, image_size, channels, fit, labels, names)
    return replace(dataset, fit=fit, crop=crop, flip=flip)


def _open_folder(
    root: Path,
    image_size: int,
    channels: int | None,
    fit: Fit,
    labels: bool,
    names: tuple[str, ...] | None,
    *,
    strict: bool,
    verify: bool,
) -> Dataset:
    images, skipped = open_folder(root, verify=verify, strict=strict)
    if fit == "pad":
        for image in images:
            check_pad(*image.size, image_size, image.path)
    paths = tuple(image.path for image in images)
    grey = all(image.mode in GREY_MODES for image in images)
    channels = channels if channels is not None else 1 if grey else 3
    found = label_names_of(root, paths) if labels else None
    if found is None:
        return Dataset(paths, image_size, channels, skipped=skipped)
    numbers, names = number_labels(found, names)
    return Dataset(paths, image_size, channels, numbers, names, skipped=skipped)


def _open_arrays(
    file: Path, image_size: int, channels: int | None, fit: Fit, labels: bool, names: tuple[str, ...] | None
) -> Dataset:
    images, numbers = open_npz(file, labels) if file.suffix.lower() == ".npz" else open_idx(file, labels)
    height, width, stored = map(int, images.shape[1:])
    if fit == "pad":
        check_pad(width, height, image_size, f"every image of {file}")
    channels = stored if channels is None else channels
    if channels < stored:
        images = np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images])
    if numbers is None:
        return Dataset(images, image_size, channels)
    if names is None and _is_fashion_mnist(file):
        names = FASHION_MNIST_LABELS
    return Dataset(images, image_size, channels, numbers, _names_for(numbers, names, file))


def _names_for(numbers: Int64[np.ndarray, " n"], names: tuple[str, ...] | None, file: Path) -> tuple[str, ...]:
    classes = int(numbers.max()) + 1
    if names is None:
        return tuple(map(str, range(classes)))
    if classes > len(names):
        raise DataError(f"{file} has a label {classes - 1}, but there are {len(names)} label_names: {listed(names)}")
    return names


def _is_fashion_mnist(file: Path) -> bool:
    """Whether a folder of the file says so: fashion-mnist/, or FashionMNIST/raw/ as torchvision has it."""
    folders = file.resolve().parent.parts[-2:]
    return any(name.lower().replace("_", "").replace("-", "") == "fashionmnist" for name in folders)


def _checked_names(label_names: Sequence[str] | None) -> tuple[str, ...] | None:
    if label_names is None:
        return None
    if isinstance(label_names, str) or len(set(label_names)) < len(label_names):
        raise DataError(f"label_names are {label_names!r}: allowed is a list of different names")
    return tuple(label_names)


def _check_options(image_size: int, channels: int | None, fit: str, crop: str, split: str) -> None:
    if image_size < 1:
        raise DataError(f"image_size is {image_size}: allowed are positive integers")
    if channels not in (None, 1, 3):
        raise DataError(f"channels is {channels}: allowed are 1, 3 and None")
    for name, value, allowed in (("fit", fit, Fit), ("crop", crop, Crop), ("split", split, Split)):
        if value not in get_args(allowed):
            raise DataError(f"{name} is {value!r}: allowed are {' and '.join(map(repr, get_args(allowed)))}")
