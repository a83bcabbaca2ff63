"""`Dataset`: images, in memory or in files, fitted to a square, augmented, and mapped to [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from .decoding import Decoding
from .errors import DataError, check_choice, listed
from .folder import read_image
from .members import ImagePath
from .transforms import Pixels, center_crop, pad, random_crop

Fit = Literal["resize", "pad"]
Crop = Literal["center", "random"]
Seed = int | tuple[int, ...]
Batch = tuple[Float[Tensor, "n c s s"], Int64[Tensor, " n"]]


class ImageDataset(Protocol):
    """The data set interface that training uses: square images in [-1, 1] by index, and the names of their labels.

    `label_names` is empty if there are no labels. `Dataset` and `TorchDataset` implement it.
    """

    @property
    def image_size(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def label_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], seeds: Sequence[Seed] | None = None) -> Batch:
        """Return images (n, C, S, S) in [-1, 1] and labels (n,), -1 for none.

        Random augmentation follows from the seed of each image; without seeds there is none.
        """
        ...


@dataclass(eq=False)
class Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Square images in [-1, 1] with label numbers. `open` and `from_arrays` return one.

    images: files, or members of files; or (N, H, W, C), uint8, or float32 in [-1, 1] if H and W are `image_size`
    image_size: side of the images that the data set returns, in pixels
    channels: number of channels; one is repeated if this is 3
    labels: int64 (N,), or None if there are no labels
    label_names: names of the labels, in the order of their numbers
    fit, crop, flip: see `open`
    skipped: files that are not images and were left out, each with the reason
    decoding: how files become pixels
    frames: the frame of each file, or None for the first ones
    numbered: whether the labels were stored as numbers, which also serve as their names
    """

    images: Sequence[ImagePath] | UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n s s c"]
    image_size: int
    channels: int
    labels: Int64[np.ndarray, " n"] | None = None
    label_names: tuple[str, ...] = ()
    fit: Fit = "resize"
    crop: Crop = "center"
    flip: bool = False
    skipped: list[tuple[ImagePath, str]] = field(default_factory=list)
    decoding: Decoding = field(default_factory=Decoding)
    frames: Sequence[int] | None = None
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({summary(self)})"

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c s s"], int]:
        """Return one image, augmented at random if there is a flip or a random crop, and its label.

        The random numbers are from torch's global generator, which a DataLoader seeds in each of its workers.
        """
        augments = self.flip or self.crop == "random"
        return self.get(index, int(torch.randint(2**62, ())) if augments else None)

    def get(self, index: int, seed: Seed | None = None) -> tuple[Float[Tensor, "c s s"], int]:
        """Return one image and its label, -1 if there is none.

        Flip and random crop follow from `seed`; None: the image is neither flipped nor randomly cropped.
        """
        x, y = self.batch([index], None if seed is None else [seed])
        return x[0], int(y[0])

    def batch(self, indices: Sequence[int], seeds: Sequence[Seed] | None = None) -> Batch:
        """Return the images and labels that `get` returns for each index and seed, stacked."""
        rngs: list[np.random.Generator | None] = [None] * len(indices)
        if seeds is not None and (self.flip or self.crop == "random"):
            rngs = [np.random.default_rng(seed) for seed in seeds]
        flips = [self.flip and rng is not None and rng.random() < 0.5 for rng in rngs]
        pixels = self._fitted(indices, rngs)
        pixels[flips] = pixels[flips, :, ::-1]
        if pixels.shape[-1] < self.channels:
            pixels = pixels.repeat(self.channels, axis=-1)
        x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        if x.dtype == np.uint8:
            x = np.divide(x, 127.5, dtype=np.float32)
            x -= 1
        y = np.full(len(indices), -1) if self.labels is None else self.labels[indices]
        return torch.from_numpy(x), torch.from_numpy(y)

    def _fitted(
        self, indices: Sequence[int], rngs: Sequence[np.random.Generator | None]
    ) -> UInt8[np.ndarray, "n s s c"] | Float32[np.ndarray, "n s s c"]:
        zoom = self.fit == "resize" and self.crop == "random"
        if isinstance(self.images, np.ndarray) and self.images.shape[1:3] == (self.image_size,) * 2 and not zoom:
            return self.images[indices]  # nothing to fit, whatever the options
        return np.stack([self._fit(index, rng) for index, rng in zip(indices, rngs, strict=True)])

    def _fit(self, index: int, rng: np.random.Generator | None) -> UInt8[np.ndarray, "s s c"]:
        size, rng = self.image_size, rng if self.crop == "random" else None
        image = self._image(index)
        if self.fit == "pad":
            square = pad(np.asarray(image), size, rng, self.decoding.canvas)
        else:
            square = random_crop(image, size, rng) if rng else center_crop(image, size)
        array: UInt8[np.ndarray, "s s c"] = square.reshape(size, size, -1)
        return array

    def _image(self, index: int) -> Pixels:
        if not isinstance(self.images, np.ndarray):
            frame = 0 if self.frames is None else self.frames[index]
            return read_image(self.images[index], self.channels, self.decoding, frame)
        image: UInt8[np.ndarray, "h w c"] = self.images[index]
        if image.shape[-1] not in (1, 3):
            return image
        return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


@dataclass(frozen=True)
class View:
    """Base class of views of another data set: a subset, or other labels."""

    dataset: ImageDataset

    @property
    def image_size(self) -> int:
        return self.dataset.image_size

    @property
    def channels(self) -> int:
        return self.dataset.channels

    @property
    def known_labels(self) -> Int64[np.ndarray, " n"] | None:
        """The labels of the other data set, if they are known without reading every image."""
        labels = getattr(self.dataset, "labels", None)
        return labels if isinstance(labels, np.ndarray) else None


def summary(dataset: ImageDataset) -> str:
    """Return '60000 images of 1x28x28, labels: T-shirt/top, Trouser, ...'."""
    labels = f"labels: {listed(dataset.label_names)}" if dataset.label_names else "no labels"
    return f"{len(dataset)} images of {dataset.channels}x{dataset.image_size}x{dataset.image_size}, {labels}"


def check_options(image_size: int | None, channels: int | None, fit: str, crop: str) -> None:
    """Raise DataError if an option of a data set is not one of the allowed values."""
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be a positive integer, got {image_size}")
    if channels is not None and channels < 1:
        raise DataError(f"channels must be a positive integer or None, got {channels}")
    check_choice(fit, Fit, "fit")
    check_choice(crop, Crop, "crop")
