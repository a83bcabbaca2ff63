"""`from_dataset`: any `torch.utils.data.Dataset` of (image, label) as a data set for training."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped, UInt8
from PIL import Image
from torch import Tensor

from admg.warn import warn

from .dataset import Batch, ImageDataset, Seed, check_options, summary
from .decoding import WIDE_MODES, Decoding, wide_array
from .errors import DataError, listed
from .labelling import MAX_LABELS, checked_names
from .listing import nfc
from .memory import channels_last
from .transforms import center_crop
from .value_range import ValueRange, check_8_bits, check_range, infer_range, to_8_bits, to_signed

PROBED = 16
"""Number of items that are read to learn the size and the value range of the images."""


def from_dataset(
    dataset: Any,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    label_names: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    labels: bool = True,
) -> ImageDataset:
    """Return a data set for training from any map-style `torch.utils.data.Dataset`.

    dataset: has `len()`, and item i is (image, label), or the image alone if there are no labels. The image is a PIL
        image, a tensor (C, H, W) of any type of numbers, or such an array (H, W, C). The label is an integer from 0 up.
        A data set that `open` or `from_arrays` made is returned as it is.
    image_size: side of the images in pixels; by default that of the first image. PIL images and integers of another
        size are scaled and cropped; floats must have this size.
    channels: by default that of the first image; 2 and 4 keep the transparency of PIL images as a channel.
    label_names: names of the labels, in the order of their numbers; by default the attribute `classes` of the data set,
        if its attribute `targets`, `labels` or `_labels` shows that its labels are not transformed, or if all their
        numbers occur; or else the numbers, with a warning if there are `classes`. The largest number is found in the
        attribute `targets`, or by reading every item once.
    value_range: values of black and white, see `from_arrays`; by default found from the first images.
    labels: False leaves labels out, whatever they are.

    The items' random transforms may draw from the global generators of torch, NumPy and Python. These are seeded for
    each item and restored afterwards, so that a resumed run, or one on another number of processes, reads the same
    images. Raises DataError, which is a ValueError, if the items are anything else.

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
            f"{type(dataset).__name__} has no len() or no items by index: expected a map-style "
            f"torch.utils.data.Dataset of (image, label)"
        )
    count = len(dataset)
    if not count:
        raise DataError(f"the {type(dataset).__name__} is empty")
    probed = [i * count // min(count, PROBED) for i in range(min(count, PROBED))]
    probes = [_read(dataset, i, channels, labels) for i in probed]
    some = {i: label for i, (_, label) in zip(probed, probes)}
    has_targets = _are_labels(_targets_of(dataset), some)
    first = probes[0][0]
    if image_size is None and first.shape[0] != first.shape[1]:
        raise DataError(f"the first image is {first.shape[1]}x{first.shape[0]}, not square: pass image_size")
    stated = value_range is not None
    if value_range is None:
        value_range = _inferred_range([image for image, _ in probes])
    else:
        check_range(value_range)
    names, numbered = checked_names(label_names), False
    if names is None:
        names, numbered = (
            ((), False) if all(label is None for label in some.values()) else _label_names(dataset, has_targets, some)
        )
    channels = first.shape[2] if channels is None else channels
    size = image_size or first.shape[0]
    return TorchDataset(dataset, size, channels, names, value_range, stated, numbered, labels, has_targets)


@dataclass(eq=False, repr=False)
class TorchDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A map-style data set of (image, label) as square images in [-1, 1]. `from_dataset` returns one.

    value_range: values of black and white; those of 8-bit images are 0 and 255 unless it was `stated`
    has_targets: whether the attribute `targets` of the data set, if it has one, holds the labels of its items
    """

    dataset: Any
    image_size: int
    channels: int
    label_names: tuple[str, ...] = ()
    value_range: ValueRange | None = None
    stated: bool = False
    numbered: bool = False
    labelled: bool = True
    has_targets: bool = True

    @cached_property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """The labels that the attribute `targets` of the data set, or of what it is a subset of, holds; or None."""
        targets = _targets_of(self.dataset) if self.has_targets and self.labelled else None
        if not isinstance(targets, np.ndarray | Tensor | list | tuple):
            return None
        known = np.asarray(targets)
        fits = known.shape == (len(self),) and np.issubdtype(known.dtype, np.integer)
        return known.astype(np.int64) if fits else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({summary(self)})"

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.batch([index])
        return x[0], int(y[0])

    def batch(self, indices: Sequence[int], seeds: Sequence[Seed] | None = None) -> Batch:
        """Return images (n, C, S, S) in [-1, 1] and labels (n,), -1 for none.

        Random transforms of an item depend on its seed, or on its index if there are no seeds.
        """
        items = []
        for index, seed in zip(indices, seeds or map(int, indices)):
            with _seeded(seed):
                items.append(_read(self.dataset, index, self.channels, self.labelled))
        x = np.stack([self._fitted(image, index) for (image, _), index in zip(items, indices)])
        y = [self._checked(label, index) for (_, label), index in zip(items, indices)]
        return torch.from_numpy(x), torch.tensor(y)

    def _fitted(self, image: Shaped[np.ndarray, "h w c"], index: int) -> Float32[np.ndarray, "c s s"]:
        size, what = self.image_size, f"the image of item {index}"
        resizes = image.shape[:2] != (size, size) and np.issubdtype(image.dtype, np.integer)
        if self.value_range and (self.stated if image.dtype == np.uint8 else resizes):
            image = to_8_bits(image, self.value_range, what)
        if image.dtype == np.uint8:
            image = _resized(image, size, self.channels).astype(np.float32) / np.float32(127.5) - 1
        elif self.value_range is None:
            raise DataError(
                f"item {index} is an image of {image.dtype}, but the first ones are uint8: pass value_range"
            )
        else:
            image = to_signed(image, self.value_range, what)
        if image.shape[:2] != (size, size) or image.shape[2] not in (self.channels, 1 if self.channels == 3 else 0):
            height, width, channels = image.shape
            raise DataError(
                f"item {index} is an image of {channels}x{height}x{width}: expected {self.channels}x{size}x{size}; "
                f"only PIL images and integers are resized"
            )
        return np.ascontiguousarray(np.broadcast_to(image.transpose(2, 0, 1), (self.channels, size, size)))

    def _checked(self, label: int | None, index: int) -> int:
        if label is None:
            return -1
        if not self.label_names:
            raise DataError(
                f"item {index} has label {label}, but the first ones have none: pass label_names, or labels=False"
            )
        if self.labels is not None and self.labels[index] != label:
            raise DataError(
                f"item {index} has label {label}, but targets[{index}] is {self.labels[index]}, where those of other "
                "items agree: hide `targets` if a transform changes labels"
            )
        if not 0 <= label < len(self.label_names):
            raise DataError(f"item {index} must have a label from 0 to {len(self.label_names) - 1}, got {label}")
        return label


def _inferred_range(images: Sequence[Shaped[np.ndarray, "h w c"]]) -> ValueRange | None:
    """Return the range of the images that have more than 8 bits, None if there are none. Raises DataError."""
    wide = [image.ravel() for image in images if image.dtype != np.uint8]
    if not wide:
        check_8_bits(min(map(np.min, images)), max(map(np.max, images)), "the images")
    return infer_range(np.concatenate(wide)) if wide else None


def _resized(image: UInt8[np.ndarray, "h w c"], size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    converts = image.shape[2] == 3 and channels == 1
    if image.shape[:2] == (size, size) and not converts:
        return image
    if image.shape[2] not in (1, 3):
        return center_crop(image, size)
    pil = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return center_crop(pil.convert("L") if converts else pil, size).reshape(size, size, -1)


def _read(
    dataset: Any, index: int, channels: int | None = None, labels: bool = True
) -> tuple[Shaped[np.ndarray, "h w c"], int | None]:
    """Return the image, of any type of numbers, and the label of an item. Raises DataError if it is not such a pair.

    channels: number of channels, if it is known
    """
    item = dataset[index]
    image, *rest = item if isinstance(item, tuple | list) else (item,)
    if len(rest) > 1:
        raise DataError(f"item {index} must be (image, label), or the image alone, got {len(item)} parts")
    if not isinstance(image, Tensor | np.ndarray | Image.Image):
        raise DataError(
            f"item {index} is a {type(item).__name__}, not (image, label): the image must be a PIL image, a tensor or "
            f"an array, got {type(image).__name__}"
        )
    try:
        image = _of_pil(image, channels) if isinstance(image, Image.Image) else image
        pixels = channels_last(image[None])[0]
    except DataError as error:
        raise DataError(f"item {index}: {error} (with N = 1 for one image)") from None
    return pixels, _label(rest[0], index) if rest and labels else None


def _of_pil(image: Image.Image, channels: int | None) -> Shaped[np.ndarray, "h w c"]:
    if image.mode in WIDE_MODES:
        return wide_array(image)[..., None]
    array = np.asarray(Decoding().pixels(image, channels if channels in (2, 4) else None))
    return array.reshape(*array.shape[:2], -1)


def _label(label: Any, index: int) -> int | None:
    if label is None:
        return None
    try:
        value: Any = label.item() if isinstance(label, Tensor | np.ndarray) else label
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # item() of several values
        raise DataError(
            f"item {index} must have a non-negative integer label, or None, got {label!r}; "
            f"admg.data.from_dataset(..., labels=False) leaves labels out"
        ) from None


def _targets_of(dataset: Any, name: str = "targets") -> Any:
    """Return the attribute `targets` of a data set, for a subset those of its items; None if there is none.

    name: another name of this attribute
    """
    if not isinstance(dataset, torch.utils.data.Subset):
        return getattr(dataset, name, None)
    targets = _targets_of(dataset.dataset, name)
    try:
        return None if targets is None else [targets[i] for i in dataset.indices]
    except (TypeError, IndexError, KeyError):  # not one for each item
        return None


def _are_labels(targets: Any, labels: Mapping[int, int | None]) -> bool:
    """Whether these targets equal the labels of some items, by index; they differ if a transform changes labels."""
    try:
        return targets is None or all(label is None or int(targets[i]) == label for i, label in labels.items())
    except (TypeError, ValueError, IndexError, KeyError):  # not one number for each item
        return False


def _label_names(dataset: Any, has_targets: bool, some: Mapping[int, int | None]) -> tuple[tuple[str, ...], bool]:
    """Return the names of the classes, or the numbers up to the largest label; and whether they are numbers.

    has_targets: False if a transform changes the labels
    some: labels of some items, by index
    """
    source = dataset
    while not hasattr(source, "classes") and isinstance(source, torch.utils.data.Subset):
        source = source.dataset
    classes = getattr(source, "classes", None)
    names = [nfc(str(name)) for name in classes] if isinstance(classes, list | tuple) else []
    if names and len(set(names)) == len(names):
        if has_targets and (_are_untransformed(dataset, some) or _all_occur(dataset, len(names))):
            return tuple(names), False
        reason = "not all of their numbers occur" if has_targets else "its targets are not its labels"
        warn(
            f"the labels of the {type(dataset).__name__} are taken for numbers without names, since its classes "
            f"({listed(names, 3)}) may name other labels ({reason}): pass label_names to name them"
        )
    targets = getattr(source, "targets", None) if has_targets else None
    known = np.asarray(targets) if isinstance(targets, list | tuple | Tensor | np.ndarray) else np.empty(0)
    if known.ndim != 1 or not known.size or not np.issubdtype(known.dtype, np.integer):
        labels = [label for _, label in (_read(dataset, i) for i in range(len(dataset))) if label is not None]
        known = np.asarray(labels or [0])
    if not 0 <= int(known.min()) <= int(known.max()) < MAX_LABELS:
        raise DataError(f"labels must be from 0 to {MAX_LABELS - 1:,}, but range from {known.min()} to {known.max()}")
    return tuple(map(str, range(int(known.max()) + 1))), True


def _are_untransformed(dataset: Any, some: Mapping[int, int | None]) -> bool:
    """Whether the data set lists its labels in an attribute, as torchvision's do, and some items have these labels."""
    stated = (_targets_of(dataset, name) for name in ("targets", "labels", "_labels"))
    return any(_are_labels(labels, some) for labels in stated if labels is not None)


def _all_occur(dataset: Any, count: int) -> bool:
    """Whether the labels 0 .. count-1 all occur. Items are read in a random order until they do."""
    missing = set(range(count))
    for index in np.random.default_rng(0).permutation(len(dataset)).tolist():
        missing.discard(_read(dataset, index)[1])
        if not missing:
            return True
    return False


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
