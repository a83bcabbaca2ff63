"""Pictures of the denoising process: an animation of the steps, and the steps side by side."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from admg.checkpoints.model import Model
from admg.data.generated import ANIMATIONS, TRAJECTORY
from admg.diffusion.gaussian import Images
from admg.files import atomic, check_output_folder
from admg.samplers import Step

from .contact_sheet import sheet
from .fonts import label_title
from .generate import plan
from .images import save_png, to_uint8
from .labels import LabelsArgument
from .recipe import Recipe

AnimationFormat = Literal["gif", "mp4"]
MAX_IMAGES, MAX_FRAMES, COLUMNS = 8, 60, 9
DURATION, LAST_FRAME_DURATION = 4.0, 1.5
"""Length of an animation in seconds, and additional time for its last frame."""


@dataclass
class Denoising:
    """The steps of some images: x after each step, and the image that was predicted in it.

    x, x0: (N, H, W, C) per step
    t: timestep before the step, which the network was given, per step
    """

    x: list[UInt8[np.ndarray, "n h w c"]] = field(default_factory=list)
    x0: list[UInt8[np.ndarray, "n h w c"]] = field(default_factory=list)
    t: list[float] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.x.append(to_uint8(step.x))
        self.x0.append(to_uint8(step.x0))
        self.t.append(float(step.t))

    def title(self, i: int) -> str:
        """Return the timesteps before and after a step, `50→25`; the last step leads to the image, t = 0."""
        after = self.t[i + 1] if i + 1 < len(self.t) else 0
        return f"{self.t[i]:.0f}→{after:.0f}"

    def some(self, most: int) -> list[int]:
        """Return the indices of at most `most` evenly spaced steps, including the first and the last."""
        count = min(most, len(self.t))
        return sorted({round(i * (len(self.t) - 1) / max(count - 1, 1)) for i in range(count)})


def generate_denoising(
    model: Model | str | Path,
    labels: LabelsArgument = None,
    *,
    out: Path | str,
    recipe: Recipe,
    num: int | None = None,
    init: Images | None = None,
    strength: float = 0.6,
    animate: AnimationFormat | None = None,
    trajectory: bool = False,
) -> list[Path]:
    """Sample the first images of a run again, and draw their steps. Return the paths of the pictures.

    The arguments are those of generate(), and the images are the same ones, at most 8.

    animate: write denoising.gif or denoising.mp4: x and the predicted image at each step, at most 60
    trajectory: write trajectory.png: for each image some steps side by side

    Raises ValueError if neither is chosen, or if there is no program that writes MP4 files.
    """
    if not (animate or trajectory):
        raise ValueError("choose an animation, a trajectory or both")
    if animate == "mp4":
        ffmpeg()
    stage = plan(model, labels, recipe, out=out, num=num, init=init, strength=strength)
    folder, steps = check_output_folder(out), Denoising()
    count = min(MAX_IMAGES, len(stage.labels))
    stage.draw_steps(range(count), steps.add)
    names = [label_title(name, label) for name, label in zip(stage.label_names[:count], stage.labels)]
    written = []
    if animate:
        written.append(write_animation(frames(steps, names), folder / ANIMATIONS[animate]))
    if trajectory:
        written.append(folder / TRAJECTORY)
        save_png(trajectory_picture(steps, names, stage.title), written[-1])
    return written


def frames(steps: Denoising, names: Sequence[str]) -> list[Image.Image]:
    """Return the pictures of an animation, all of one size: x after the step above the predicted image."""
    drawn = [
        sheet([steps.x[i], steps.x0[i]], row_titles=("x", "predicted x0"), column_titles=names,
              title=f"t: {steps.title(i)}", cell=96)
        for i in steps.some(MAX_FRAMES)
    ]  # fmt: skip
    size = max(frame.width for frame in drawn), max(frame.height for frame in drawn)
    return [frame if frame.size == size else padded(frame, size) for frame in drawn]


def trajectory_picture(steps: Denoising, names: Sequence[str], title: str) -> Image.Image:
    """Return a picture with two rows for each image, x after the step and the predicted image, and some steps."""
    chosen = steps.some(COLUMNS)
    rows = [[kind[i][n] for i in chosen] for n in range(len(names)) for kind in (steps.x, steps.x0)]
    titles = [text for name in names for text in (name, "predicted x0")]
    return sheet(rows, row_titles=titles, column_titles=[steps.title(i) for i in chosen], title=title)


def padded(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture enlarged by a border in the colour of its corner."""
    larger = Image.new("RGB", size, frame.getpixel((0, 0)))
    larger.paste(frame, (0, 0))
    return larger


def write_animation(pictures: Sequence[Image.Image], path: Path) -> Path:
    """Write pictures of one size as a GIF or MP4 file by the ending of the path, and return the path.

    Raises ValueError if there is no program that writes MP4 files, or if it fails.
    """
    each = max(0.04, DURATION / len(pictures))
    with atomic(path) as temporary:
        if path.suffix == ".gif":
            durations = [round(1000 * each)] * (len(pictures) - 1) + [round(1000 * (each + LAST_FRAME_DURATION))]
            pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
        else:
            write_mp4([*pictures, *[pictures[-1]] * round(LAST_FRAME_DURATION / each)], temporary, 1 / each)
    return path


def write_mp4(pictures: Sequence[Image.Image], path: Path, rate: float) -> None:
    """Write pictures of one size as an MP4 file of `rate` pictures per second, with a border if their sides are odd.

    Raises ValueError if there is no program that writes MP4 files, or if it fails.
    """
    width, height = (side + side % 2 for side in pictures[0].size)  # H.264 takes even sizes
    command = [ffmpeg(), "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", f"{rate:.3f}", "-i", "-", "-pix_fmt", "yuv420p", str(path)]  # fmt: skip
    data = b"".join(np.asarray(padded(picture, (width, height))).tobytes() for picture in pictures)
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"ffmpeg cannot write {path.suffix} files: {said[-1] if said else done.returncode}")


def ffmpeg() -> str:
    """Return the path of ffmpeg. Raises ValueError if there is none."""
    if found := find_ffmpeg():
        return found
    raise ValueError("MP4 files need ffmpeg: install it, or pip install 'admg[video]'; a GIF needs nothing")


def find_ffmpeg() -> str | None:
    """Return the path of ffmpeg, of the system or of the package imageio-ffmpeg; None if there is none."""
    if found := shutil.which("ffmpeg"):
        return found
    if find_spec("imageio_ffmpeg"):
        package: Any = import_module("imageio_ffmpeg")
        return str(package.get_ffmpeg_exe())
    return None
