"""Image grids, animations of the denoising, and files to download."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from admg.generation.contact_sheet import sheet
from admg.generation.denoising import write_mp4
from admg.generation.images import ImageArray
from admg.generation.samples import Samples

from .sampling import Frame

SIDE = 480
"""Approximate width and height of a grid in pixels."""
FRAME_SECONDS, LAST_SECONDS = 0.08, 1.5
"""Duration of each step of an animation, and of the last one, in seconds."""


def grid(images: ImageArray, title: str = "") -> Image.Image:
    """Return a grid of about SIDE x SIDE pixels with a title. Images are enlarged by an integer factor."""
    count = images.shape[0]
    columns = math.ceil(math.sqrt(count))
    rows = [[images[i : i + 1][0] for i in range(start, min(start + columns, count))]
            for start in range(0, count, columns)]  # fmt: skip
    return sheet(rows, title=title, cell=max(images.shape[2], SIDE // columns))


def noisy_grid(frame: Frame) -> Image.Image:
    """Return x_t of all images."""
    return grid(frame.x, f"x at t = {frame.t:g}")


def predicted_grid(frame: Frame) -> Image.Image:
    """Return the predicted x_0 of all images."""
    return grid(frame.x0, "predicted x0")


def side_by_side(frame: Frame) -> Image.Image:
    """Return x_t and the predicted x_0 of all images, side by side."""
    left, right = noisy_grid(frame), predicted_grid(frame)
    canvas = Image.new("RGB", (left.width + right.width + 12, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + 12, 0))
    return canvas


def save_gif(frames: Sequence[Frame], path: Path) -> Path:
    """Write the steps as an animated GIF. Raises ValueError if there are none."""
    if not frames:
        raise ValueError("there are no steps to show: generate images first")
    pictures = [side_by_side(frame) for frame in frames]
    first, *rest = [one.quantize(32, method=Image.Quantize.FASTOCTREE) for one in pictures]
    times = [round(1000 * seconds) for seconds in (*[FRAME_SECONDS] * len(rest), LAST_SECONDS)]
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0)
    return path


def save_mp4(frames: Sequence[Frame], path: Path) -> Path:
    """Write the steps as an MP4 animation. Raises ValueError without steps or without ffmpeg."""
    if not frames:
        raise ValueError("there are no steps to show: generate images first")
    pictures = [side_by_side(frame) for frame in frames]
    pictures += [pictures[-1]] * round(LAST_SECONDS / FRAME_SECONDS)
    write_mp4(pictures, path, 1 / FRAME_SECONDS)
    return path


def save_npz(samples: Samples, folder: Path) -> Path:
    """Write the .npz that `admg sample` would write for these images. Return its path."""
    with tempfile.TemporaryDirectory() as scratch:
        written = samples.save(scratch)
        return Path(shutil.move(written, folder / written.name))


def enlarged(image: UInt8[np.ndarray, "h w c"], side: int = 256) -> Image.Image:
    """Return an 8-bit image, enlarged by an integer factor to about `side` pixels."""
    return sheet([[image]], cell=side)


def frame_at(frames: Sequence[Frame], number: int) -> Frame:
    """Return the frame of a step, or if it was not kept the next one that was."""
    return next((frame for frame in frames if frame.number >= number), frames[-1])
