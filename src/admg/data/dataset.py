"""`Dataset`: images, in memory or in files, fitted to a square, augmented, and mapped to [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from .folder import read_image
from .transforms import center_crop, pad, random_crop

Fit = Literal["resize", "pad"]
Crop = Literal["center", "random"]
Seed = int | tuple[int, ...]


@dataclass(eq=False)
class Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Square images in [-1, 1] with label numbers; `open_dataset` makes one from files.

    `images` are files, or uint8 (N, H, W, C). `labels` are int64 (N,), or None if there are none; label k is called
    `label_names[k]`. `skipped` tells which files of a folder were left out, and why.
    """

    images: Sequence[Path] | UInt8[np.ndarray, "n h w c"]
    image_size: int
    channels: int
    labels: Int64[np.ndarray, " n"] | None = None
    label_names: tuple[str, ...] = ()
    fit: Fit = "resize"
    crop: Crop = "center"
    flip: bool = False
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c s s"], int]:
        return self.get(index, 0)

    def get(self, index: int, seed: Seed | None = None) -> tuple[Float[Tensor, "c s s"], int]:
        """One image and its label (-1 if there is none). Flip and random crop follow from `seed`; None: neither."""
        x, y = self.batch([index], None if seed is None else [seed])
        return x[0], int(y[0])

    def batch(
        self, indices: Sequence[int], seeds: Sequence[Seed] | None = None
    ) -> tuple[Float[Tensor, "n c s s"], Int64[Tensor, " n"]]:
        """What `get` returns for each index and seed, stacked."""
        rngs: list[np.random.Generator | None] = [None] * len(indices)
        if seeds is not None and (self.flip or self.crop == "random"):
            rngs = [np.random.default_rng(seed) for seed in seeds]
        flips = [self.flip and rng is not None and rng.random() < 0.5 for rng in rngs]
        pixels = self._fitted(indices, rngs)
        pixels[flips] = pixels[flips, :, ::-1]
        if pixels.shape[-1] < self.channels:
            pixels = pixels.repeat(self.channels, axis=-1)
        x = np.divide(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), 127.5, dtype=np.float32)
        x -= 1
        y = np.full(len(indices), -1) if self.labels is None else self.labels[indices]
        return torch.from_numpy(x), torch.from_numpy(y)

    def _fitted(
        self, indices: Sequence[int], rngs: Sequence[np.random.Generator | None]
    ) -> UInt8[np.ndarray, "n s s c"]:
        zoom = self.fit == "resize" and self.crop == "random"
        if isinstance(self.images, np.ndarray) and self.images.shape[1:3] == (self.image_size,) * 2 and not zoom:
            return self.images[indices]  # nothing to fit, whatever the options
        return np.stack([self._fit(index, rng) for index, rng in zip(indices, rngs, strict=True)])

    def _fit(self, index: int, rng: np.random.Generator | None) -> UInt8[np.ndarray, "s s c"]:
        size, rng = self.image_size, rng if self.crop == "random" else None
        if self.fit == "pad":
            return pad(self._array(index), size, rng)
        array = random_crop(self._image(index), size, rng) if rng else center_crop(self._image(index), size)
        return array.reshape(size, size, -1)

    def _array(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        if isinstance(self.images, np.ndarray):
            return self.images[index]
        array = np.asarray(self._image(index))
        return array.reshape(*array.shape[:2], -1)

    def _image(self, index: int) -> Image.Image:
        if isinstance(self.images, np.ndarray):
            return Image.fromarray(self.images[index].squeeze(-1) if self.images.shape[-1] == 1 else self.images[index])
        return read_image(self.images[index]).convert("L" if self.channels == 1 else "RGB")
