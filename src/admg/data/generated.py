"""Folders that admg writes samples to: which of their files are images, and which are pictures of many images."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from .errors import DataError

MERGED = re.compile(r"samples_\d+x\d+x\d+x(\d+)\.npz")
"""Names of the .npz files that `admg sample` and `Samples.save` write; the last number is that of channels."""
IMAGES = "images"
"""Folder of the images as files."""
SHARDS, BASE = "shards", "base"
PARTS = frozenset({SHARDS, BASE})
"""Other folders beside the .npz: parts of it, and the smaller samples that were enlarged."""
SHEET, SCALE_SHEET, TRAJECTORY = "sheet.png", "scale-sheet.png", "trajectory.png"
ANIMATIONS = {"gif": "denoising.gif", "mp4": "denoising.mp4"}
"""Animation in each format."""
PICTURES = frozenset({SHEET, SCALE_SHEET, TRAJECTORY, ANIMATIONS["gif"]})
"""Files beside the .npz that Pillow could read as images: pictures of many images."""
RUN = "run.json"
"""Settings of the run."""


def find_samples(folder: Path) -> Path | None:
    """Return the .npz of the samples in a folder, or None if there is none. Raises DataError if there are several."""
    files = [file for file in sorted(folder.glob("samples_*.npz")) if MERGED.fullmatch(file.name)]
    if len(files) > 1:
        raise DataError(f"{folder} holds {' and '.join(file.name for file in files)}: choose one of them")
    return files[0] if files else None


def beside_samples(names: Collection[str]) -> set[str]:
    """Return what admg wrote besides the images, among the names in a folder; nothing if there are no samples."""
    merged = {name for name in names if MERGED.fullmatch(name)}
    others = {*PARTS, RUN, *merged} if IMAGES in names else set()  # else these may be the user's, and are named
    return {*PICTURES, *others}.intersection(names) if merged else set()


def source_of(samples: Path) -> Path:
    """Return the folder of the images of samples, with their labels; the .npz itself if only it has all their pixels.

    Files of images have 1 or 3 channels, or else a page for each.
    """
    match = MERGED.fullmatch(samples.name)
    images = samples.parent / IMAGES
    return images if images.is_dir() and match and match[1] in ("1", "3") else samples


def without_pictures(names: Sequence[str]) -> list[str]:
    """Return the names of the files in an archive without the pictures of many images in folders of samples."""
    if not any(name.endswith(".npz") for name in names):
        return list(names)
    split = [name.rpartition("/") for name in names]
    folders = {folder for folder, _, file in split if MERGED.fullmatch(file)}
    return [name for name, (folder, _, file) in zip(names, split) if file not in PICTURES or folder not in folders]
