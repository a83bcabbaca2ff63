"""`from_arrays`: images and labels in memory as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from .arrays import channel_axes, check_not_one_image
from .dataset import Crop, Dataset, Fit, check_options
from .decoding import Decoding
from .errors import DataError
from .labelling import FoundLabels, checked_names, names_for, number_labels
from .layouts import prepared, range_in
from .transforms import check_pad
from .value_range import ValueRange


def from_arrays(
    images: Shaped[np.ndarray, " n *s"] | Shaped[Tensor, " n *s"],
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

    images: (N, H, W), (N, H, W, C) or (N, C, H, W), of any type of numbers. C is 1, 3 or less than H and W. Where the
        shape allows both orders, the channels of an array are last and those of a tensor are first.
    labels: (N,) integers from 0 up, or names; None: no labels.
    image_size: side of the data set's images; by default that of the given images, which must be square then.
    channels: 1 or 3, to make colour images grey or the reverse; by default as given.
    label_names: names of the labels, in the order of their numbers; by default the numbers, or the sorted names.
    value_range: values of black and white; by default 0 and 255 in 8 bits, 0 and 65535 in 16 bits if some value needs
        the highest bit, and (0, 1) or (-1, 1) in floats that clearly have this range. Other types need it.
    fit, crop, flip: see `open`.

    Images of more than 8 bits are kept as floats if they have the size and the channels of the data set. Otherwise they
    are rounded to 8 bits before they are resampled. Raises DataError if the range or anything else does not fit.

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
        raise DataError(f"the images are {array.shape[2]}x{array.shape[1]}, not square: pass image_size")
    size = int(array.shape[1]) if image_size is None else image_size
    check_options(size, channels, fit, crop)
    if fit == "pad":
        check_pad(int(array.shape[2]), int(array.shape[1]), size, "every image")
    channels = int(array.shape[3]) if channels is None else channels
    value_range, eight_bits = range_in(array, value_range), array.dtype == np.uint8
    array = prepared(array, size, channels, value_range, zooms=fit == "resize" and crop == "random")
    decoding = Decoding(value_range) if eight_bits else Decoding(wide_range=value_range)
    labelling = None if labels is None else as_labels(labels, checked_names(label_names), len(array))
    dataset = Dataset(array, size, channels, fit=fit, crop=crop, flip=flip, decoding=decoding)
    if labelling is None:
        return dataset
    return replace(dataset, labels=labelling.numbers, label_names=labelling.names, numbered=labelling.numbered)


def channels_last(images: Any) -> Shaped[np.ndarray, "n h w c"]:
    """Return (N, H, W, C), integers or floating point. Raises DataError for another type or shape."""
    channels_first = isinstance(images, Tensor)
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()  # NumPy has no bfloat16
    array = np.asarray(images)
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"images must be of an integer or floating-point type, got {array.dtype}")
    check_not_one_image(array.shape)
    if array.ndim == 3:
        array = array[..., None]
    first, last = channel_axes(array.shape)
    if not array.size or not (first or last):
        raise DataError(
            f"images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with N, H, W > 0 and C 1, 3 or less than "
            f"H and W, got {tuple(array.shape)}"
        )
    return array.transpose(0, 2, 3, 1) if first and (channels_first or not last) else array


def as_labels(labels: Any, names: tuple[str, ...] | None, count: int) -> FoundLabels:
    """Return the labels as numbers, and the name of each number. An integer is a number, and text is a name."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (count,):
        raise DataError(f"labels must have shape ({count},), one label per image, got {values.shape}")
    texts = sum(isinstance(value, str) for value in labels) if values.dtype.kind in "UO" else 0
    if 0 < texts < count:
        raise DataError("some labels are integers and some are names: use integers for all images, or names for all")
    if texts:
        return FoundLabels(*number_labels([str(value) for value in values], names))
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"labels must be integers or names, got {values.dtype}")
    if values.min() < 0:
        raise DataError(f"labels must not be negative, got {values.min()}")
    numbers = values.astype(np.int64)
    return FoundLabels(numbers, names_for(numbers, names, "the data"), numbered=names is None)
