"""Pictures of a job: grids of images, animations of the denoising, files to download."""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from admg.generation.contact_sheet import sheet
from admg.generation.images import ImageArray
from admg.generation.samples import Samples

from .sampling import Frame

SIDE = 480
"""Width and height of a grid in pixels, about."""
FRAME_SECONDS, LAST_SECONDS = 0.08, 1.5
"""How long an animation shows each step, and the last one."""


def grid(images: ImageArray, title: str = "") -> Image.Image:
    """Return images as a square grid of about SIDE pixels under a title, each enlarged by a whole factor."""
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


def both(frame: Frame) -> Image.Image:
    """Return x_t and the predicted x_0 of all images of a step, side by side."""
    left, right = noisy_grid(frame), predicted_grid(frame)
    canvas = Image.new("RGB", (left.width + right.width + 12, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + 12, 0))
    return canvas


def save_gif(frames: Sequence[Frame], path: Path) -> Path:
    """Write an animation of the steps. Raises ValueError if there are none."""
    if not frames:
        raise ValueError("there are no steps to show: generate images first")
    pictures = [both(frame) for frame in frames]
    first, *rest = [one.quantize(32, method=Image.Quantize.FASTOCTREE) for one in pictures]
    times = [round(1000 * seconds) for seconds in (*[FRAME_SECONDS] * len(rest), LAST_SECONDS)]
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0)
    return path


def encoder() -> str | None:
    """Return the path of ffmpeg, that of the system or of the package imageio-ffmpeg; None if there is neither."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def save_mp4(frames: Sequence[Frame], path: Path) -> Path:
    """Write an animation of the steps as MP4. Raises ValueError without steps or without an encoder."""
    program = encoder()
    if program is None:
        raise ValueError("MP4 needs ffmpeg, or the package imageio-ffmpeg: take the GIF")
    if not frames:
        raise ValueError("there are no steps to show: generate images first")
    pictures = [np.asarray(both(frame)) for frame in frames]
    pictures += [pictures[-1]] * round(LAST_SECONDS / FRAME_SECONDS)
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])  # as yuv420p needs
    command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", f"{1 / FRAME_SECONDS:g}", "-i", "-", "-pix_fmt", "yuv420p", str(path)]  # fmt: skip
    content = b"".join(np.ascontiguousarray(picture[:height, :width]).tobytes() for picture in pictures)
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"ffmpeg could not write the MP4: {done.stderr.decode(errors='replace').strip()[:200]}")
    return path


def save_npz(samples: Samples, folder: Path) -> Path:
    """Write the .npz that `admg sample` would write for these images. Return its path."""
    with tempfile.TemporaryDirectory() as scratch:
        written = samples.save(scratch)
        return Path(shutil.move(written, folder / written.name))


def enlarged(image: UInt8[np.ndarray, "h w c"], side: int = 256) -> Image.Image:
    """Return an 8-bit image, enlarged by a whole factor to about `side` pixels."""
    return sheet([[image]], cell=side)


def in_steps(frames: Sequence[Frame], number: int) -> Frame:
    """Return the frame of a step, or the next one that was kept."""
    return next((frame for frame in frames if frame.number >= number), frames[-1])
