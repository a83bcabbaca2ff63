"""Contact sheets: images in rows and columns, with titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from .fonts import drawable, font_for
from .images import ImageArray, to_pil

BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
GAP = 4
MAX_IMAGES, MAX_PIXELS, MAX_ROWS = 200, 16_000_000, 20
"""Limits of a contact sheet that can still be viewed."""

Layout = Callable[[ImageArray, Sequence[str], str], Image.Image]
"""(images, label name of each image, title) -> contact sheet."""


def sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w c"]] | UInt8[np.ndarray, "n h w c"]],
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: str = "",
    cell: int = 64,
) -> Image.Image:
    """Return images (H, W, C) in a grid, each enlarged by a whole factor to about `cell` pixels, unsmoothed.

    If images are neither grey nor colour, their channels are shown side by side, each of about `cell` pixels. Columns
    are at least as wide as their titles.
    """
    zoom = max(1, cell // rows[0][0].shape[1])
    width, height = (zoom * side for side in to_pil(rows[0][0]).size)
    title, row_titles, column_titles = drawable(title), *(list(map(drawable, t)) for t in (row_titles, column_titles))
    heading = font_for(title, 18)
    left = GAP + max((int(font_for(t, 15).getlength(t)) + 2 * GAP for t in row_titles), default=0)
    top = GAP + (24 + GAP if title else 0) + (20 + GAP if column_titles else 0)
    longest = max((int(font_for(t, 15).getlength(t)) for t in column_titles), default=0)
    column = max(width, longest) + GAP
    canvas_size = (left + max(map(len, rows)) * column, top + len(rows) * (height + GAP))
    if title:
        canvas_size = (max(canvas_size[0], int(heading.getlength(title)) + 2 * GAP), canvas_size[1])
    canvas = Image.new("RGB", canvas_size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((GAP, GAP), title, INK, heading)
    for i, text in enumerate(column_titles):
        draw.text((left + i * column + (column - GAP) // 2, top - GAP), text, INK, font_for(text, 15), anchor="md")
    for i, row in enumerate(rows):
        y = top + i * (height + GAP)
        if row_titles:
            draw.text((left - 2 * GAP, y + height // 2), row_titles[i], INK, font_for(row_titles[i], 15), anchor="rm")
        for j, image in enumerate(row):
            x = left + j * column + (column - GAP - width) // 2
            canvas.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
    return canvas


def contact_sheet(images: ImageArray, names: Sequence[str], title: str = "") -> Image.Image:
    """Return a sheet with a row per label.

    Images of a single label form a square; with more than 20 labels each image has its label as a caption. The sheet
    shows the first images that fit: at most 200, and at most 16 megapixels.

    images: uint8 (N, H, W, C), in memory or an NpzImages
    names: label name of each image, "" for an image without a label
    """
    tiles = 1 if images.shape[3] == 3 else images.shape[3]
    most = max(1, min(MAX_IMAGES, MAX_PIXELS // (images.shape[1] * images.shape[2] * tiles)))
    labels = list(dict.fromkeys(names))
    if 1 < len(labels) <= min(MAX_ROWS, most):
        rows = [[i for i, n in enumerate(names) if n == label][: most // len(labels)] for label in labels]
        return sheet([[images[i : i + 1][0] for i in row] for row in rows], row_titles=labels, title=title)
    shown = [images[i : i + 1][0] for i in range(min(most, len(names)))]
    if len(labels) > 1:
        shown = [captioned(image, name) for image, name in zip(shown, names)]
    elif labels[0]:
        title = f"{labels[0]} {title}".strip()
    side = max(1, round(len(shown) ** 0.5))
    cell = 64 if len(labels) == 1 else shown[0].shape[1]
    return sheet([shown[i : i + side] for i in range(0, len(shown), side)], title=title, cell=cell)


def captioned(image: UInt8[np.ndarray, "h w c"], text: str, width: int = 96) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Return the image, enlarged by a whole factor to about `width` pixels, above its caption, cut to fit."""
    picture, zoom, text = to_pil(image), max(1, width // image.shape[1]), drawable(text)
    size = (picture.width * zoom, picture.height * zoom)
    font = font_for(text, 11)
    while text and font.getlength(text) > size[0]:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 2 else ""
    canvas = Image.new("RGB", (size[0], size[1] + 16), BACKGROUND)
    canvas.paste(picture.resize(size, Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(canvas).text((size[0] // 2, size[1] + 8), text, INK, font, anchor="mm")
    return np.asarray(canvas)


def scale_sheet(
    columns: Sequence[ImageArray],
    scales: Sequence[float],
    names: Sequence[str],
    title: str,
    option: str = "scale",
    guided: bool = False,
) -> Image.Image:
    """Return a sheet whose columns are guidance scales and whose rows are the images of a seed.

    columns: for each scale, the images of the same seed, uint8 (N, H, W, C)
    names: label name of each image
    option: name of the scale, "scale" for the classifier's or "cfg" for that of classifier-free guidance
    guided: whether there is other guidance, so that images at scale 0 are not unguided
    """
    rows = [[column[i : i + 1][0] for column in columns] for i in range(columns[0].shape[0])]
    named = guided or option != "scale"
    titles = [f"{option} {scale:g}" if scale or named else "unguided" for scale in scales]
    return sheet(rows, row_titles=names, column_titles=titles, title=title, cell=96)


def edit_sheet(originals: UInt8[np.ndarray, "m h w c"], num: int) -> Layout:
    """Return a layout with a row per original and label: the original, then its `num` edits."""

    def layout(images: ImageArray, names: Sequence[str], title: str) -> Image.Image:
        rows, titles = [], []
        for start in range(0, min(len(names), MAX_ROWS * num), num):
            original = originals[start * len(originals) // len(names)]
            rows.append([original, *images[start : start + min(num, 20)]])
            titles.append(names[start])
        columns = ["image", *(str(i + 1) for i in range(len(rows[0]) - 1))]
        return sheet(rows, row_titles=titles if any(titles) else (), column_titles=columns, title=title, cell=96)

    return layout


def interpolation_sheet(ends: UInt8[np.ndarray, "2 h w c"] | None, frames: int) -> Layout:
    """Return a layout with a row per label: the frames, between the two images at the ends if there are any."""

    def layout(images: ImageArray, names: Sequence[str], title: str) -> Image.Image:
        starts = range(0, min(len(names), MAX_ROWS * frames), frames)
        rows = [[*images[start : start + frames]] for start in starts]
        columns = [str(i + 1) for i in range(frames)]
        if ends is not None:
            rows, columns = [[ends[0], *row, ends[1]] for row in rows], ["image", *columns, "image"]
        titles = [names[start] for start in starts]
        return sheet(rows, row_titles=titles if any(titles) else (), column_titles=columns, title=title, cell=96)

    return layout
