"""Pictures of samples: a contact sheet, a PNG of each image, a sheet of guidance scales."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from admg.checkpoints.model import file_name
from admg.files import atomic
from admg.generation.pictures import BACKGROUND, INK, save_png, sheet, to_pil
from admg.generation.sample import Samples
from admg.generation.shards import Shards

READ = 64  # images at a time
MOST_IMAGES, MOST_PIXELS, MOST_ROWS = 200, 16_000_000, 20  # of a contact sheet that one can look at


class Images(Protocol):
    """uint8 (N, H, W, C), in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, images: slice, /) -> UInt8[np.ndarray, "n h w c"]: ...


Picture = Callable[[Images, Sequence[str], str], Image.Image]
"""(images, the label's name of each, title) -> what sheet.png shows of them."""


def write(samples: Samples, out: Path, title: str) -> Path:
    """The .npz as the published evaluator reads it, sheet.png, and images/; returns the path of the .npz."""
    images, labels = samples.images, samples.labels.numpy()
    height, width, channels = images.shape[1:]
    shards = Shards(out, len(images), len(images), (height, width, channels), labelled=bool((labels >= 0).any()))
    shards.write(0, images, labels if shards.labelled else None)
    path = shards.merge()
    shards.discard()
    save_png(contact_sheet(images, samples.label_names, title), out / "sheet.png")
    save_images(images, samples.label_names, out / "images")
    return path


def save_images(images: Images, names: Sequence[str], out: Path) -> None:
    """A PNG file of each image, named as training reads its label."""
    with atomic(out) as folder:
        folder.mkdir()

        def save(number: int, image: UInt8[np.ndarray, "h w c"]) -> None:
            to_pil(image).save(folder / f"{file_name(names[number])}_{number:06d}.png")

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow encodes without Python's lock
            for start in range(0, len(names), READ):
                part = images[start : min(start + READ, len(names))]
                list(pool.map(save, range(start, start + len(part)), part))


def contact_sheet(images: Images, names: Sequence[str], title: str) -> Image.Image:
    """A row for each label; a square for one label, or, with the label under each image, for more than 20 of them.

    It shows the first images that have room: 200 in all, or 16 megapixels.
    """
    most = max(1, min(MOST_IMAGES, MOST_PIXELS // (images.shape[1] * images.shape[2])))
    labels = list(dict.fromkeys(names))
    if 1 < len(labels) <= min(MOST_ROWS, most):
        rows = [[i for i, n in enumerate(names) if n == label][: most // len(labels)] for label in labels]
        return sheet([[images[i : i + 1][0] for i in row] for row in rows], row_titles=labels, title=title)
    shown = [images[i : i + 1][0] for i in range(min(most, len(names)))]
    if len(labels) > 1:
        shown = [captioned(image, name) for image, name in zip(shown, names)]
    elif labels[0]:
        title = f"{labels[0]} {title}"
    side = max(1, round(len(shown) ** 0.5))
    cell = 64 if len(labels) == 1 else shown[0].shape[1]
    return sheet([shown[i : i + side] for i in range(0, len(shown), side)], title=title, cell=cell)


def captioned(image: UInt8[np.ndarray, "h w c"], text: str, width: int = 96) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image, enlarged by a whole factor to about `width`, with the text under it, cut to fit."""
    zoom = max(1, width // image.shape[1])
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    font = ImageFont.load_default(11)
    while text and font.getlength(text) > size[0]:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 2 else ""
    canvas = Image.new("RGB", (size[0], size[1] + 16), BACKGROUND)
    canvas.paste(to_pil(image).resize(size, Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(canvas).text((size[0] // 2, size[1] + 8), text, INK, font, anchor="mm")
    return np.asarray(canvas)


def scale_sheet(columns: list[Samples], scales: list[float], title: str, name: str = "scale") -> Image.Image:
    """Columns: the guidance scale, called `name`; rows: the seed's images."""
    rows = [[column.images[i] for column in columns] for i in range(len(columns[0].x))]
    titles = [f"{name} {scale:g}" if scale or name != "scale" else "unguided" for scale in scales]
    return sheet(rows, row_titles=columns[0].label_names, column_titles=titles, title=title, cell=96)
