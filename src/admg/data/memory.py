"""`from_arrays`: images and labels in memory as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from .dataset import Crop, Dataset, Fit, check_options
from .errors import DataError
from .folder import number_labels
from .layouts import checked_names, names_for, to_channels
from .transforms import check_pad
from .value_range import ValueRange, infer_range, to_signed


def from_arrays(
    images: Shaped[np.ndarray, n * s] | Shaped[Tensor, n * s],
    labels: Sequence[int] | Sequence[str] | Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"] | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    label_names: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    fit: Fit = "resize",
    crop: Crop = "center",
    flip: bool = False,
) -> Dataset:
    """Return a data set of images in memory.

    images: (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3, as uint8 or floats. Where the shape allows both
        orders, the channels of an array are last and those of a tensor are first.
    labels: (N,) integers from 0 up, or names; None: no labels.
    image_size: side of the data set's images; by default that of the given images, which must be square then.
    channels: 1 or 3; by default as given.
    label_names: names of the labels, in the order of their numbers; by default the numbers, or the sorted names.
    value_range: values of black and white in float images; by default (0, 1) or (-1, 1) if the images clearly have
        this range. 8-bit images always range from 0 to 255.
    fit, crop, flip: see `open`.

    Float images are kept as they are if they have the size and the channels of the data set. Otherwise they are
    rounded to 8 bits before they are resampled. Raises DataError if the range is ambiguous or anything does not fit.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).random((6, 8, 8))  # grey, in [0, 1]
        >>> dataset = admg.data.from_arrays(images, ["cat", "dog"] * 3, flip=True)
        >>> dataset.label_names
        ('cat', 'dog')
        >>> x, y = dataset[1]
        >>> x.shape, y
        (torch.Size([1, 8, 8]), 1)
    """
    array = channels_last(images)
    if image_size is None and array.shape[1] != array.shape[2]:
        raise DataError(f"the images are {array.shape[2]}x{array.shape[1]}, not square: give image_size")
    size = int(array.shape[1]) if image_size is None else image_size
    check_options(size, channels, fit, crop)
    if fit == "pad":
        check_pad(int(array.shape[2]), int(array.shape[1]), size, "every image")
    if array.dtype != np.uint8:
        array = to_signed(array, value_range or infer_range(array))
        zooms = fit == "resize" and crop == "random"
        if array.shape[1:3] != (size, size) or zooms or channels not in (None, array.shape[3]):
            array = ((array + 1) * 127.5).round().astype(np.uint8)
    channels = int(array.shape[3]) if channels is None else channels
    array = to_channels(array, channels)
    numbers, names = numbered(labels, checked_names(label_names), len(array))
    return Dataset(array, size, channels, numbers, names, fit=fit, crop=crop, flip=flip)


def channels_last(images: Any) -> Shaped[np.ndarray, "n h w c"]:
    """Return (N, H, W, C), uint8 or floating point. Raises DataError for another type or shape."""
    channels_first = isinstance(images, Tensor)
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"the images are of type {array.dtype}: allowed are uint8, and floats in [0, 1] or [-1, 1]")
    if array.ndim == 3:
        array = array[..., None]
    first, last = (array.ndim == 4 and array.shape[axis] in (1, 3) for axis in (1, 3))
    if not array.size or not (first or last):
        raise DataError(
            f"the images have shape {tuple(array.shape)}: allowed are (N, H, W), (N, H, W, C) and (N, C, H, W) with "
            f"1 or 3 channels and N, H, W > 0"
        )
    return array.transpose(0, 2, 3, 1) if first and (channels_first or not last) else array


def numbered(
    labels: Any, names: tuple[str, ...] | None, count: int
) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
    """Return the labels as numbers, and the name of each number."""
    if labels is None:
        return None, ()
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (count,):
        raise DataError(f"the labels have shape {values.shape}: allowed is ({count},), one label per image")
    if values.dtype.kind in "UO" and all(isinstance(value, str) for value in values):
        return number_labels([str(value) for value in values], names)
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"the labels are of type {values.dtype}: allowed are integers and names")
    if values.min() < 0:
        raise DataError(f"there is a label {values.min()}: allowed are labels from 0 up")
    numbers = values.astype(np.int64)
    return numbers, names_for(numbers, names, "the data")
