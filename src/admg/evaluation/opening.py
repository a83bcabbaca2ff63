"""Images for evaluation in any form: arrays, tensors, samples, paths, and data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from admg.data import Dataset, from_dataset
from admg.data.arrays import Split, channel_axes, check_not_one_image
from admg.data.decoding import Decoding
from admg.data.pack import to_bytes
from admg.data.value_range import ValueRange, check_array_8_bits
from admg.diffusion.signed import check_signed
from admg.generation.images import to_uint8
from admg.generation.label_names import names_of
from admg.generation.samples import Samples

from .sources import Source, open_source

ImageSource = np.ndarray | Tensor | Samples | Source | torch.utils.data.Dataset[Any] | Path | str
"""Images of any form that `as_source` accepts."""

READ_BATCH_SIZE = 256  # images of a data set that are read at a time


def as_source(
    images: ImageSource,
    name: str = "images",
    *,
    labels: bool = False,
    split: Split = "test",
    value_range: ValueRange | None = None,
    wide_range: ValueRange | None = None,
    background: int | None = None,
    real: bool = False,
) -> Source:
    """Return images of any form as a Source.

    images: an array or tensor, see `source_from_array`; `Samples`; a path, see `open_source`; or a data set of
        `admg.data`, or any torch data set of (image, label)
    name: name in messages, if the images have none
    labels: whether to read the labels of a path
    split: "train" or "test", of a path that has both
    value_range: values of black and white in the files of a folder
    wide_range: those of files of more than 8 bits alone, if `value_range` is not given
    background: grey level behind transparent pixels and around padded images; a data set and a Source keep their own
    real: whether these are real images: floats in [-1, 1] are rounded to 8 bits then, and truncated as samples if not
    Raises ValueError if the type, shape or range is not one of these, if there are fewer than two images, if
    `value_range` is given for images that are not in files, or if `background` is not from 0 to 255.
    """
    if background is not None and not 0 <= background <= 255:
        raise ValueError(f"background must be a grey level from 0 to 255, got {background}")
    if isinstance(images, Source):
        return images
    if isinstance(images, str | Path):
        reading: dict[str, Any] = {"value_range": value_range, "wide_range": wide_range, "background": background}
        return open_source(images, labels=labels, split=split, **reading)
    if value_range is not None:
        raise ValueError(f"value_range applies only to image files, and {name} are not in files")
    if isinstance(images, Samples):
        return replace(source_from_samples(images, name), decoding=Decoding(background=background))
    if isinstance(images, Tensor | np.ndarray):
        return replace(source_from_array(images, name, rounds=real), decoding=Decoding(background=background))
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return source_from_dataset(images, name)
    raise ValueError(f"{name} must be an array, Samples, a path or a data set, got {type(images).__name__}")


def source_from_samples(samples: Samples, name: str = "images") -> Source:
    """Return samples as a Source, with the names of the labels that they have."""
    source, numbers = source_from_array(samples.images, name), samples.labels.numpy()
    if not (numbers >= 0).any():
        return source
    return replace(source, labels=numbers, names_of_numbers=names_of(samples))


def source_from_array(images: np.ndarray | Tensor, name: str = "images", rounds: bool = False) -> Source:
    """Return images in memory as a Source.

    images: uint8 (N, H, W, C) or (N, H, W), or a uint8 tensor (N, C, H, W); or floats (N, C, H, W) in [0, 1], or in
        about [-1, 1] as `sample` returns them
    rounds: whether floats in [-1, 1] are rounded to 8 bits, as real images are. Otherwise they are truncated, as
        samples are for the published metrics
    Raises ValueError for another type, shape or range, values that are not finite, or fewer than two images.
    """
    if isinstance(images, Tensor):
        if images.dtype == torch.uint8 and channel_axes(tuple(images.shape))[0]:
            images = images.permute(0, 2, 3, 1)
        images = images.float() if images.dtype == torch.bfloat16 else images  # NumPy has no bfloat16
        images = images.detach().cpu().contiguous().numpy()
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.floating) and images.ndim == 4:
        images = _from_float(images, name, rounds)
    check_not_one_image(images.shape, name)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or not channel_axes(images.shape)[1] or not images.size:
        raise ValueError(
            f"{name} must be uint8 (N, H, W, C), or float (N, C, H, W) in [-1, 1] or [0, 1], with fewer channels than "
            f"pixels per side, got {images.dtype} {images.shape}"
        )
    check_array_8_bits(images, name, "multiply them by 255")
    if len(images) < 2:
        raise ValueError(f"{name}: at least 2 images are needed, got 1")
    return Source(name, images, (images.shape[1], images.shape[2]), images.shape[3])


def source_from_dataset(dataset: Any, name: str = "images") -> Source:
    """Return a data set as a Source; one that is not in files or 8-bit arrays is read into memory.

    dataset: a data set of `admg.data`, or any map-style torch data set of (image, label); see `admg.data.from_dataset`
    """
    data = from_dataset(dataset)
    if isinstance(data, Dataset) and not (isinstance(data.images, np.ndarray) and data.images.dtype != np.uint8):
        size = (data.image_size, data.image_size)
        names = () if data.numbered else data.label_names
        source = Source(name, data.images, size, data.channels, data.labels, names, fit=data.fit)
        return replace(source, decoding=data.decoding, frames=data.frames, view=(size, data.fit))
    x, y = zip(
        *(data.batch(range(i, min(i + READ_BATCH_SIZE, len(data)))) for i in range(0, len(data), READ_BATCH_SIZE))
    )
    labels = torch.cat(y).numpy()
    source = source_from_array(to_bytes(torch.cat(x)), name)
    names = () if getattr(data, "numbered", False) else data.label_names
    return replace(source, labels=labels if (labels >= 0).any() else None, label_names=names)


def _from_float(x: np.ndarray, name: str, rounds: bool) -> UInt8[np.ndarray, "n h w c"]:
    """Convert floats in [0, 1], or in about [-1, 1] as models generate them. rounds: see `source_from_array`"""
    first, last = channel_axes(x.shape)
    if last and not first:
        x = x.transpose(0, 3, 1, 2)
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).all((1, 2, 3)))[0])
        raise ValueError(f"{name}: image {bad} has values that are not finite")
    low, high = float(x.min()), float(x.max())
    if first or last:
        if -3 <= low < -0.5 and high <= 3:
            check_signed(torch.from_numpy(x), name)
            return to_bytes(torch.from_numpy(x)) if rounds else to_uint8(torch.from_numpy(x))
        if low >= 0 and 0.5 < high <= 1:
            return (x.astype(np.float64) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    raise ValueError(
        f"{name} are float {x.shape} with values in [{low:g}, {high:g}]: expected (N, C, H, W), clearly in [-1, 1] or "
        f"[0, 1]"
    )
