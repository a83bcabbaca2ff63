"""`from_dataset`: any `torch.utils.data.Dataset` of (image, label) as a data set for training."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image
from torch import Tensor

from .dataset import Batch, ImageDataset, Seed, check_options, summary
from .errors import DataError
from .layouts import checked_names
from .memory import channels_last
from .transforms import center_crop, plain
from .value_range import ValueRange, infer_range, to_signed

PROBED = 16
"""Number of items that are read to learn the size and the value range of the images."""


def from_dataset(
    dataset: Any,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    label_names: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
) -> ImageDataset:
    """Return a data set for training from any map-style `torch.utils.data.Dataset`.

    dataset: has `len()`, and item i is (image, label), or the image alone if there are no labels. The image is a PIL
        image, a uint8 or float tensor (C, H, W), or such an array (H, W, C). The label is an integer from 0 up. A data
        set that `open` or `from_arrays` made is returned as it is.
    image_size: side of the images in pixels; by default that of the first image. PIL and uint8 images of another size
        are scaled and cropped; float images must have this size.
    channels: 1 or 3; by default that of the first image.
    label_names: names of the labels, in the order of their numbers; by default the attribute `classes` of the data set
        or else the numbers. The largest number is found in the attribute `targets`, or by reading every item once.
    value_range: values of black and white in float images; by default (0, 1) or (-1, 1), if the first images clearly
        have this range.

    The items' random transforms may draw from the global generators of torch, NumPy and Python: these are seeded for
    each batch, so that a resumed run reads the same images, and restored afterwards. Raises DataError, which is a
    ValueError, if the items are anything else.

    Example::

        >>> import torch
        >>> import admg
        >>> x, y = torch.rand(10, 3, 16, 16), torch.arange(10) % 4
        >>> dataset = admg.data.from_dataset(torch.utils.data.TensorDataset(x, y))
        >>> dataset
        TorchDataset(10 images of 3x16x16, labels: 0, 1, 2, 3)
    """
    if all(hasattr(dataset, name) for name in ("batch", "image_size", "channels", "label_names")):
        ours: ImageDataset = dataset
        return ours
    check_options(image_size, channels, "resize", "center")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{type(dataset).__name__} has no len() or no items by number: allowed is a map-style "
            f"torch.utils.data.Dataset of (image, label)"
        )
    count = len(dataset)
    if not count:
        raise DataError(f"the {type(dataset).__name__} is empty")
    probes = [_read(dataset, i * count // min(count, PROBED)) for i in range(min(count, PROBED))]
    first = probes[0][0]
    if image_size is None and first.shape[0] != first.shape[1]:
        raise DataError(f"the first image is {first.shape[1]}x{first.shape[0]}, not square: give image_size")
    floats = [image.ravel() for image, _ in probes if image.dtype != np.uint8]
    if floats and value_range is None:
        value_range = infer_range(np.concatenate(floats))
    names = checked_names(label_names)
    if names is None:
        names = () if all(label is None for _, label in probes) else _label_names(dataset)
    channels = first.shape[2] if channels is None else channels
    return TorchDataset(dataset, image_size or first.shape[0], channels, names, value_range)


@dataclass(eq=False, repr=False)
class TorchDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A map-style data set of (image, label) as square images in [-1, 1]. `from_dataset` returns one."""

    dataset: Any
    image_size: int
    channels: int
    label_names: tuple[str, ...] = ()
    value_range: ValueRange | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({summary(self)})"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.batch([index])
        return x[0], int(y[0])

    def batch(self, indices: Sequence[int], seeds: Sequence[Seed] | None = None) -> Batch:
        """Return images (n, C, S, S) in [-1, 1] and labels (n,), -1 for none.

        Random transforms of the items follow from the first seed; without seeds they are the same each time.
        """
        with _seeded(seeds[0] if seeds else 0):
            items = [_read(self.dataset, index) for index in indices]
        x = np.stack([self._fitted(image, index) for (image, _), index in zip(items, indices)])
        y = [self._checked(label, index) for (_, label), index in zip(items, indices)]
        return torch.from_numpy(x), torch.tensor(y)

    def _fitted(self, image: Shaped[np.ndarray, "h w c"], index: int) -> Float32[np.ndarray, "c s s"]:
        size = self.image_size
        if image.dtype == np.uint8:
            image = _resized(image, size, self.channels).astype(np.float32) / np.float32(127.5) - 1
        elif self.value_range is None:
            raise DataError(f"item {index} is an image of floats, though the first ones are uint8: state value_range")
        else:
            image = to_signed(image, self.value_range, f"the image of item {index}")
        if image.shape[:2] != (size, size) or image.shape[2] > self.channels:
            height, width, channels = image.shape
            raise DataError(
                f"item {index} is an image of {channels}x{height}x{width}: allowed is {self.channels}x{size}x{size}; "
                f"only PIL and uint8 images are resized"
            )
        return np.ascontiguousarray(np.broadcast_to(image.transpose(2, 0, 1), (self.channels, size, size)))

    def _checked(self, label: int | None, index: int) -> int:
        if label is None or not self.label_names:
            return -1
        if not 0 <= label < len(self.label_names):
            raise DataError(f"item {index} has label {label}: allowed are 0 to {len(self.label_names) - 1}")
        return label


def _resized(image: UInt8[np.ndarray, "h w c"], size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    if image.shape[:2] == (size, size) and image.shape[2] <= channels:
        return image
    pil = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return center_crop(pil.convert("L") if channels == 1 else pil, size).reshape(size, size, -1)


def _read(dataset: Any, index: int) -> tuple[Shaped[np.ndarray, "h w c"], int | None]:
    """Return the image, uint8 or floats, and the label of an item. Raises DataError if it is not such a pair."""
    item = dataset[index]
    image, *rest = item if isinstance(item, tuple | list) else (item,)
    if len(rest) > 1:
        raise DataError(f"item {index} has {len(item)} parts: allowed is (image, label), or the image alone")
    if isinstance(image, Image.Image):
        image = np.asarray(plain(image))
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(
            f"item {index} is a {type(item).__name__}, not (image, label): the image must be a PIL image, a tensor or "
            f"an array, got {type(image).__name__}"
        )
    try:
        pixels = channels_last(image[None])[0]
    except DataError as error:
        raise DataError(f"item {index}: {error} (with N = 1 for one image)") from None
    return pixels, _label(rest[0], index) if rest else None


def _label(label: Any, index: int) -> int | None:
    if label is None:
        return None
    try:
        value: Any = label.item() if isinstance(label, Tensor | np.ndarray) else label
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # item() of several values
        raise DataError(f"item {index} has label {label!r}: allowed is one integer from 0 up, or None") from None


def _label_names(dataset: Any) -> tuple[str, ...]:
    """Return the classes that the data set names, or the numbers up to its largest label."""
    source = dataset
    while not hasattr(source, "classes") and isinstance(source, torch.utils.data.Subset):
        source = source.dataset
    classes = getattr(source, "classes", None)
    if isinstance(classes, list | tuple) and classes and len(set(map(str, classes))) == len(classes):
        return tuple(map(str, classes))
    targets = getattr(source, "targets", None)
    known = np.asarray(targets) if isinstance(targets, list | tuple | Tensor | np.ndarray) else np.empty(0)
    if known.ndim != 1 or not known.size or not np.issubdtype(known.dtype, np.integer):
        found = [label for _, label in (_read(dataset, i) for i in range(len(dataset))) if label is not None]
        known = np.asarray(found or [0])
    return tuple(map(str, range(int(known.max()) + 1)))


@contextmanager
def _seeded(seed: Seed) -> Iterator[None]:
    """Seed the global random generators on the CPU within the context, and restore them afterwards."""
    torchs, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    words = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    try:
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(words)
        random.seed(words.tobytes())
        yield
    finally:
        torch.set_rng_state(torchs)
        np.random.set_state(numpys)
        random.setstate(pythons)
