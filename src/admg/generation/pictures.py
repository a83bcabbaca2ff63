"""Contact sheets: images in rows and columns, with what they are written on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from admg.files import atomic

BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
GAP = 4


def sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w c"]] | UInt8[np.ndarray, "n h w c"]],
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: str = "",
    cell: int = 64,
) -> Image.Image:
    """Images (H, W, 1 or 3) in a grid; each is enlarged by a whole factor to about `cell` pixels, without smoothing."""
    height, width = rows[0][0].shape[:2]
    zoom = max(1, cell // width)
    height, width = height * zoom, width * zoom
    font, heading = ImageFont.load_default(15), ImageFont.load_default(18)
    left = GAP + max((int(font.getlength(t)) + 2 * GAP for t in row_titles), default=0)
    top = GAP + (24 + GAP if title else 0) + (20 + GAP if column_titles else 0)
    columns = max(map(len, rows))
    canvas_size = (left + columns * (width + GAP), top + len(rows) * (height + GAP))
    if title:
        canvas_size = (max(canvas_size[0], int(heading.getlength(title)) + 2 * GAP), canvas_size[1])
    canvas = Image.new("RGB", canvas_size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((GAP, GAP), title, INK, heading)
    for i, text in enumerate(column_titles):
        draw.text((left + i * (width + GAP) + width // 2, top - GAP), text, INK, font, anchor="mb")
    for i, row in enumerate(rows):
        y = top + i * (height + GAP)
        if row_titles:
            draw.text((left - 2 * GAP, y + height // 2), row_titles[i], INK, font, anchor="rm")
        for j, image in enumerate(row):
            canvas.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (left + j * (width + GAP), y))
    return canvas


def to_pil(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def save_png(image: Image.Image, path: Path) -> None:
    with atomic(path) as temporary:
        image.save(temporary)
