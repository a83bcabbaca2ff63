"""`open`: recognises how images are arranged on disk, and checks before training all that can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Int64, Shaped
from PIL import Image

from .arrays import Split, find_idx, open_idx, open_npz
from .dataset import Crop, Dataset, Fit, check_options
from .errors import DataError, listed
from .folder import ImageFile, label_names_of, number_labels, open_folder
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


def open(
    path: str | Path,
    image_size: int | None = None,
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
    """Open a data set on disk. The layout is recognised:

    - A folder with a sub-folder for each class. The sorted names of the sub-folders get the numbers 0, 1, ...
    - A flat folder whose file names begin with the label and an underscore, as in guided-diffusion. The sorted labels
      get the numbers. If no file name has an underscore, there are no labels.
    - A folder of IDX files (the MNIST family), from which `split` picks "train" or "test"; or one IDX file of images,
      with its labels file beside it.
    - An .npz with arr_0, uint8 (N, H, W[, C]), and optionally arr_1, integer labels (N,).

    image_size: side of the data set's images in pixels; by default that of the stored images, if all are square and of
        one size.
    channels: 1 or 3; by default 1 if every stored image is grey, else 3.
    fit: "resize" scales the shorter side to `image_size`; "pad" puts smaller images on a black canvas.
    crop: "center", or "random": a random square with fit="resize", a random place on the canvas with fit="pad".
    flip: mirror a random half of the images left to right.
    labels: False leaves labels out.
    label_names: names of the labels, in the order of their numbers. For a folder they fix the numbers, which helps if a
        part of the data lacks a class.
    strict: raise an error for a file in a folder that is not an image, instead of listing it in `Dataset.skipped`.
    verify: decode every image of a folder now; False reads only its header.

    Raises DataError, with one line that says what is wrong and what is allowed.

    Example::

        >>> import admg
        >>> dataset = admg.data.open("photos", 64, flip=True)  # photos/cat/1.jpg, photos/dog/2.jpg, ...
        >>> dataset
        Dataset(3 images of 3x64x64, labels: cat, dog)
        >>> x, y = dataset[2]
        >>> x.shape, dataset.label_names[y]
        (torch.Size([3, 64, 64]), 'dog')
    """
    check_options(image_size, channels, fit, crop)
    if split not in get_args(Split):
        raise DataError(f"split is {split!r}: allowed are {' and '.join(map(repr, get_args(Split)))}")
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist: allowed is a folder of images or IDX files, an IDX file or an .npz")
    names = checked_names(label_names)
    file = find_idx(path, split) if path.is_dir() else path
    if file is None:
        dataset = _open_folder(path, image_size, channels, fit, labels, names, strict=strict, verify=verify)
    else:
        dataset = _open_arrays(file, image_size, channels, fit, labels, names)
    return replace(dataset, fit=fit, crop=crop, flip=flip)


def _open_folder(
    root: Path,
    image_size: int | None,
    channels: int | None,
    fit: Fit,
    labels: bool,
    names: tuple[str, ...] | None,
    *,
    strict: bool,
    verify: bool,
) -> Dataset:
    images, skipped = open_folder(root, verify=verify, strict=strict)
    size = _common_size(images, root) if image_size is None else image_size
    if fit == "pad":
        for image in images:
            check_pad(*image.size, size, image.path)
    paths = tuple(image.path for image in images)
    grey = all(image.mode in GREY_MODES for image in images)
    channels = channels if channels is not None else 1 if grey else 3
    found = label_names_of(root, paths) if labels else None
    if found is None:
        return Dataset(paths, size, channels, skipped=skipped)
    numbers, names = number_labels(found, names)
    return Dataset(paths, size, channels, numbers, names, skipped=skipped)


def _common_size(images: Sequence[ImageFile], root: Path) -> int:
    """Return the side of the images. Raises DataError if they are not square or differ in size."""
    width, height = images[0].size
    other = next((image for image in images if image.size != (height, height)), None)
    if other is not None:
        sizes = f"{width}x{height} and {other.size[0]}x{other.size[1]}"
        raise DataError(f"{root} has images of {sizes}: give image_size, since they are not all square and of one size")
    return height


def _open_arrays(
    file: Path, image_size: int | None, channels: int | None, fit: Fit, labels: bool, names: tuple[str, ...] | None
) -> Dataset:
    images, numbers = open_npz(file, labels) if file.suffix.lower() == ".npz" else open_idx(file, labels)
    height, width, stored = map(int, images.shape[1:])
    if image_size is None and width != height:
        raise DataError(f"{file} has images of {width}x{height}: give image_size, since they are not square")
    size = height if image_size is None else image_size
    if fit == "pad":
        check_pad(width, height, size, f"every image of {file}")
    channels = stored if channels is None else channels
    images = to_channels(images, channels)
    if numbers is None:
        return Dataset(images, size, channels)
    if names is None and _is_fashion_mnist(file):
        names = FASHION_MNIST_LABELS
    return Dataset(images, size, channels, numbers, names_for(numbers, names, file))


def to_channels(images: Shaped[np.ndarray, "n h w c"], channels: int) -> Shaped[np.ndarray, "n h w c2"]:
    """Convert 8-bit colour images to grey if there is to be one channel. `Dataset` repeats the channel of grey ones."""
    if channels >= images.shape[3]:
        return images
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images])


def names_for(numbers: Int64[np.ndarray, " n"], names: tuple[str, ...] | None, source: object) -> tuple[str, ...]:
    """Return the names of all labels, the numbers themselves by default. Raises DataError if there are too few."""
    classes = int(numbers.max()) + 1
    if names is None:
        return tuple(map(str, range(classes)))
    if classes > len(names):
        raise DataError(f"{source} has a label {classes - 1}, but there are {len(names)} label_names: {listed(names)}")
    return names


def checked_names(label_names: Sequence[str] | None) -> tuple[str, ...] | None:
    if label_names is None:
        return None
    if isinstance(label_names, str) or len(set(label_names)) < len(label_names):
        raise DataError(f"label_names are {label_names!r}: allowed is a list of different names")
    return tuple(label_names)


def _is_fashion_mnist(file: Path) -> bool:
    """Whether the file lies in a folder named fashion-mnist/, or FashionMNIST/raw/ as torchvision names it."""
    folders = file.resolve().parent.parts[-2:]
    return any(name.lower().replace("_", "").replace("-", "") == "fashionmnist" for name in folders)
