"""`find_source`: what lies at a path: a folder of images, an archive of them, or a file of arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .arrays import Split, find_idx
from .arrow import HUB, SAVED, SAVED_SPLITS, list_hub, list_saved, list_tables
from .errors import DataError
from .listing import Listing, list_files
from .parts import of_split
from .tars import expand, list_tars
from .zips import list_zip

TABLES = (".parquet", ".arrow")
COLLECTIONS = frozenset({".npz", ".npy", ".zip", ".tar", *TABLES})
"""Endings of files that hold many images."""
ALLOWED = (
    "allowed is a folder of images or IDX files, a zip or tar of images, a folder or pattern of tars, a Parquet or "
    "Arrow file or a folder of them, hf:NAME of Hugging Face's hub, an IDX file, an .npz or an .npy"
)


def find_source(
    path: str | Path, split: Split = "train", *, sizes: bool = True, progress: bool = True
) -> Listing | Path:
    """Return the images at a path, or the path itself if it is a file of arrays (IDX, .npz, .npy).

    split: part of the data, where the path has both
    sizes: whether to ask for the size and the time of each file in a folder
    progress: show a progress bar if an archive takes more than two seconds to read
    Raises DataError if there is nothing of this kind.
    """
    text, path = str(path), Path(path).expanduser()
    if text.startswith(HUB) and not path.exists():
        return list_hub(text, split)
    if not path.exists():
        if tars := expand(text):
            return list_tars(tars[0].parent, tars, split, progress=progress)
        raise DataError(f"{path} does not exist: {ALLOWED}")
    if path.is_dir():
        return _in_folder(path, split, sizes, progress)
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return list_zip(path)
    if suffix in (".tar", ".tgz") or ".tar." in path.name.lower():
        return list_tars(path, [path], split, progress=progress)
    if suffix in TABLES:
        return list_tables(path, [path], "table of images", progress=progress)
    return path


def _in_folder(path: Path, split: Split, sizes: bool, progress: bool) -> Listing | Path:
    if (found := find_idx(path, split)) is not None:
        return found
    if (path / SAVED).is_file() or (path / SAVED_SPLITS).is_file():
        return list_saved(path, split)
    if tars := only(path, (".tar",)):
        return list_tars(path, tars, split, progress=progress)
    data = path / "data"  # where the repositories of Hugging Face's hub have them
    for folder in (path, data) if data.is_dir() else (path,):
        if tables := only(folder, TABLES):
            tables = of_split(tables, split, folder)
            return list_tables(folder, tables, f"set of {len(tables)} tables", progress=progress)
    return list_files(path, sizes=sizes)


def only(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Return the files with these endings in a folder, sorted; [] if it also has images or folders."""
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    chosen = [name for name, _ in entries if name.lower().endswith(tuple(endings))]
    images = tuple(Image.registered_extensions())
    if not chosen or any(is_dir or name.lower().endswith(images) for name, is_dir in entries):
        return []
    return [folder / name for name in sorted(chosen)]
