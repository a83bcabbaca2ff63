"""`find_source`: what lies at a path: a folder of images, an archive of them, or a file of arrays."""

from __future__ import annotations

from pathlib import Path

from .arrays import Split, find_idx
from .errors import DataError
from .listing import Listing, list_files
from .tars import expand, is_tar_set, list_tars
from .zips import list_zip

COLLECTIONS = frozenset({".npz", ".npy", ".zip", ".tar", ".parquet", ".arrow"})
"""Endings of files that hold many images."""
ALLOWED = (
    "allowed is a folder of images or IDX files, a zip or tar of images, a folder or pattern of tars, an IDX file, an "
    ".npz or an .npy"
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
    if not path.exists():
        if tars := expand(text):
            return list_tars(tars[0].parent, tars, split, progress=progress)
        raise DataError(f"{path} does not exist: {ALLOWED}")
    suffix = path.suffix.lower()
    if path.is_dir():
        if (found := find_idx(path, split)) is not None:
            return found
        if is_tar_set(path):
            return list_tars(path, [file for file in sorted(path.iterdir()) if file.suffix.lower() == ".tar"], split)
        return list_files(path, sizes=sizes)
    if suffix == ".zip":
        return list_zip(path)
    if suffix in (".tar", ".tgz") or ".tar." in path.name.lower():
        return list_tars(path, [path], split, progress=progress)
    return path
