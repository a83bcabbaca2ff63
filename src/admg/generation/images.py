"""Images as 8-bit arrays: conversion to and from tensors in [-1, 1], and PNG files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from admg.checkpoints.labels import file_names
from admg.data.labelling import description
from admg.data.listing import DESCRIPTION
from admg.diffusion.gaussian import Images
from admg.files import atomic

IMAGES_AT_A_TIME = 64
ROUNDING_ERROR = 4e-5
"""Bound of the error, in float32, of (x + 1) * 127.5 for x = u / 127.5 - 1 with an integer u up to 255.

x and x + 1 have errors of 2.5 and 3.5 units of 2^-24, which the product scales by 127.5 and rounds by at most 2^-17.
"""


SAMPLE = re.compile(r".*_\d{6,}\.(png|tif)")
"""Names of the files of images that `save_images` writes."""


class ImageArray(Protocol):
    """uint8 (N, H, W, C), in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, images: slice, /) -> UInt8[np.ndarray, "n h w c"]: ...


def to_uint8(x: Images) -> UInt8[np.ndarray, "n h w c"]:
    """Return x (N, C, H, W) in [-1, 1] as 8-bit images (N, H, W, C).

    Values are truncated, not rounded, as in the samples behind the published metrics, except for rounding errors: an
    8-bit value that `to_float` has converted, such as a pixel that inpainting keeps, stays the same.
    """
    levels = (x.to(torch.promote_types(x.dtype, torch.float32)) + 1) * 127.5
    nearest = levels.round()
    levels = torch.where((levels - nearest).abs() < ROUNDING_ERROR, nearest, levels)
    return levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_float(images: UInt8[np.ndarray, "n h w c"]) -> Images:
    """Return 8-bit images (N, H, W, C) as x (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Return a picture of an 8-bit image: grey, colour, or for other channel counts the channels in grey, side by side.

    Pillow would show a fourth channel as transparency.
    """
    height, width, channels = image.shape
    if channels == 3:
        return Image.fromarray(image)
    return Image.fromarray(image.transpose(0, 2, 1).reshape(height, channels * width))


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image. The file appears only once it is complete."""
    with atomic(path) as temporary:
        image.save(temporary)


def check_only_samples(folder: Path) -> None:
    """Raise ValueError if a folder to be replaced holds other files than `save_images` writes."""
    found = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    other = [name for name in found if name != DESCRIPTION and not SAMPLE.fullmatch(name)]
    if other:
        raise ValueError(f"{folder} holds {min(other)}, which is not a sample: move it, or choose another folder")


def save_images(images: ImageArray, labels: Sequence[int | None], names: Sequence[str], out: Path) -> None:
    """Write a file per image to the folder `out`, and dataset.json with the labels for training.

    labels, names: number and name of each image's label, None and "" for none

    The files are named `<label>_<number>.png`, with labels made valid for file systems. Images with other than one or
    three channels become TIFF files, `.tif`, with a grey page per channel. The folder appears only once all files are
    written.
    """
    beginnings = file_names(names)
    drawn = images.shape[3] in (1, 3)
    ending = "png" if drawn else "tif"
    files = [f"{beginnings[name]}_{number:06d}.{ending}" for number, name in enumerate(names)]
    with atomic(out) as folder:
        folder.mkdir()

        def save(file: str, image: UInt8[np.ndarray, "h w c"]) -> None:
            first, *pages = [to_pil(image)] if drawn else [Image.fromarray(page) for page in np.moveaxis(image, -1, 0)]
            first.save(folder / file, save_all=bool(pages), append_images=pages, compression="tiff_deflate")

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow encodes without holding the GIL
            for start in range(0, len(names), IMAGES_AT_A_TIME):
                part = images[start : min(start + IMAGES_AT_A_TIME, len(names))]
                list(pool.map(save, files[start : start + len(part)], part))
        content = description(files, [-1 if label is None else label for label in labels], names)
        (folder / DESCRIPTION).write_text(json.dumps(content), encoding="utf-8")
