"""`find_source`: the kind of source at a path: a folder of images, an archive, or a file of arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .arrays import Split, find_idx
from .arrow import HUB, SAVED, SAVED_SPLITS, list_hub, list_saved, list_tables
from .errors import DataError
from .generated import IMAGES, PARTS, PICTURES, find_samples, source_of
from .listing import DESCRIPTION, LABEL_FILES, Listing, is_hidden_folder, is_image, list_files
from .parts import of_split, part_of
from .tars import expand, list_tars
from .zips import list_zip

TABLES = (".parquet", ".arrow")
COLLECTIONS = frozenset({".npz", ".npy", ".zip", ".tar", *TABLES})
"""Endings of files that hold many images."""
Entries = list[tuple[str, bool]]
"""Names in a folder, and whether each is a folder."""
ALLOWED = (
    "expected a folder of images or IDX files, a zip or tar of images, a folder or pattern of tars, a Parquet or "
    "Arrow file or a folder of them, hf:NAME of Hugging Face's hub, an IDX file, an .npz or an .npy"
)


def find_source(
    path: str | Path, split: Split = "train", *, classes: bool = True, sizes: bool = True, progress: bool = True
) -> Listing | Path:
    """Return the images at a path, or the path itself if it is a file of arrays (IDX, .npz, .npy).

    split: part of the data, where the path has both
    classes: whether the sub-folders of a folder may be classes; otherwise train/1.png and test/2.png are parts, too
    sizes: whether to read the size and the modification time of each file in a folder
    progress: show a progress bar if an archive takes more than two seconds to read
    Raises DataError if there is nothing of this kind.
    """
    text, path = str(path), Path(path).expanduser()
    if text.startswith(HUB) and not path.exists():
        return list_hub(text, split)
    if not path.exists():
        if tars := expand(text):
            return list_tars(tars[0].parent, tars, split, classes=classes, progress=progress)
        raise DataError(f"{path} does not exist: {ALLOWED}")
    if path.is_dir():
        return _in_folder(path, split, classes, sizes, progress)
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return list_zip(path, split, classes=classes)
    if suffix in (".tar", ".tgz") or ".tar." in path.name.lower():
        return list_tars(path, [path], split, classes=classes, progress=progress)
    if suffix in TABLES:
        return list_tables(path, [path], "table of images", progress=progress)
    if suffix not in COLLECTIONS and is_image(path.name):
        raise DataError(f"{path} is a single image, not a set of images: {ALLOWED}")
    return path


def _in_folder(path: Path, split: Split, classes: bool, sizes: bool, progress: bool) -> Listing | Path:
    if (found := find_idx(path, split)) is not None:
        return found
    if (path / SAVED).is_file() or (path / SAVED_SPLITS).is_file():
        return list_saved(path, split)
    entries = entries_of(path)
    if tars := only(path, entries, (".tar",)):
        return list_tars(path, tars, split, classes=classes, progress=progress)
    data = path / "data"  # the location in repositories of Hugging Face's hub
    for folder, inner in ((path, entries), *([(data, entries_of(data))] if data.is_dir() else [])):
        if tables := only(folder, inner, TABLES):
            tables = of_split(tables, split, folder)
            return list_tables(folder, tables, f"set of {len(tables)} tables", progress=progress)
    if may_be_samples(path, entries) and (samples := find_samples(path)) is not None:
        return _of_samples(samples, entries, sizes)
    listing = list_files(path, sizes=sizes)
    part = part_of([file.name for file in listing.files], split, path, classes=classes)
    if part is None:
        return listing
    if describes_labels(path) and not describes_labels(path / part):
        files = [file for file in listing.files if file.name.startswith(f"{part}/")]
        return replace(listing, files=files, top=f"{part}/")
    return list_files(path / part, sizes=sizes)


def describes_labels(folder: Path) -> bool:
    """Whether a folder has a file of the labels of all images in it and below it."""
    return any((folder / name).is_file() for name in LABEL_FILES)


def _of_samples(samples: Path, entries: Entries, sizes: bool) -> Listing | Path:
    """Return the images of a folder that admg wrote, without the pictures of many of them."""
    source = source_of(samples)
    if not source.is_dir():
        return source
    listing = list_files(source, sizes=sizes)
    others = [name for name, is_dir in entries if is_dir and name not in PARTS | {IMAGES}]
    return replace(listing, left_out=[*listing.left_out, *(f"../{name}" for name in others)])


def may_be_samples(folder: Path, entries: Entries) -> bool:
    """Whether a folder, if it has the .npz of samples, is theirs, and not a data set beside which the .npz lies."""
    folders = {name for name, is_dir in entries if is_dir}
    images = [name for name, is_dir in entries if not is_dir and is_image(name)]
    ours = (folder / IMAGES / DESCRIPTION).is_file() if IMAGES in folders else folders <= PARTS
    return ours and PICTURES.issuperset(images)


def only(folder: Path, entries: Entries, endings: Sequence[str]) -> list[Path]:
    """Return the files with these endings in a folder, sorted; [] if it also has images or folders."""
    chosen = [name for name, _ in entries if name.lower().endswith(tuple(endings))]
    if not chosen or any(is_dir or is_image(name) for name, is_dir in entries):
        return []
    return [folder / name for name in sorted(chosen)]


def entries_of(folder: Path) -> Entries:
    """Return the names in a folder, and whether each is a folder, without hidden files and folders of systems."""
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir()) for entry in found]
    return [entry for entry in entries if not (is_hidden_folder(entry[0]) if entry[1] else entry[0].startswith("."))]


__all__ = ["find_source", "is_image"]
