"""`find_source`: the kind of source at a path: a folder of images, an archive, or a file of arrays."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .arrays import Split, find_idx
from .arrow import HUB, SAVED, SAVED_SPLITS, list_hub, list_saved, list_tables
from .errors import DataError
from .labelling import labelled_by_prefix
from .listing import METADATA, Listing, is_hidden_folder, list_files
from .parts import SPLIT_NAMES, of_split
from .tars import expand, list_tars
from .zips import list_zip

Entries = list[tuple[str, bool]]
"""Names in a folder, and whether each is a folder."""
TABLES = (".parquet", ".arrow")
COLLECTIONS = frozenset({".npz", ".npy", ".zip", ".tar", *TABLES})
"""Endings of files that hold many images."""
ALLOWED = (
    "expected a folder of images or IDX files, a zip or tar of images, a folder or pattern of tars, a Parquet or "
    "Arrow file or a folder of them, hf:NAME of Hugging Face's hub, an IDX file, an .npz or an .npy"
)


def find_source(
    path: str | Path, split: Split = "train", *, sizes: bool = True, progress: bool = True
) -> Listing | Path:
    """Return the images at a path, or the path itself if it is a file of arrays (IDX, .npz, .npy).

    split: part of the data, where the path has both
    sizes: whether to read the size and the modification time of each file in a folder
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
    if suffix not in COLLECTIONS and is_image(path.name):
        raise DataError(f"{path} is a single image, not a set of images: {ALLOWED}")
    return path


def _in_folder(path: Path, split: Split, sizes: bool, progress: bool) -> Listing | Path:
    if (found := find_idx(path, split)) is not None:
        return found
    if (path / SAVED).is_file() or (path / SAVED_SPLITS).is_file():
        return list_saved(path, split)
    entries = entries_of(path)
    if tars := only(path, entries, (".tar",)):
        return list_tars(path, tars, split, progress=progress)
    data = path / "data"  # the location in repositories of Hugging Face's hub
    for folder, inner in ((path, entries), *([(data, entries_of(data))] if data.is_dir() else [])):
        if tables := only(folder, inner, TABLES):
            tables = of_split(tables, split, folder)
            return list_tables(folder, tables, f"set of {len(tables)} tables", progress=progress)
    listing = list_files(path, sizes=sizes)
    part = part_with_classes(path, entries, split)
    if part is None or labelled_by_prefix([file.name for file in listing.files if is_image(file.name)]):
        return listing
    if sum(is_dir for _, is_dir in entries) > 1:
        warnings.warn(f"{path}: using the images in {part.name}, the split {split}", stacklevel=4)
    return list_files(part, sizes=sizes)


def part_with_classes(folder: Path, entries: Entries, split: Split) -> Path | None:
    """Return the sub-folder of a split in a folder such as train/cat/1.png, val/cat/2.png; None for other folders.

    Sub-folders that contain images directly are not splits: they may be classes, or their file names may begin with
    labels.
    """
    names = {name.lower(): name for name, is_dir in entries if is_dir}
    known = {word for words in SPLIT_NAMES.values() for word in words}
    chosen = next((names[word] for word in SPLIT_NAMES[split] if word in names), None)
    if chosen is None or any(is_image(name) for name, is_dir in entries if not is_dir) or not names.keys() <= known:
        return None
    inner = entries_of(folder / chosen)
    if not inner or any(not is_dir and name not in METADATA for name, is_dir in inner):
        return None
    return folder / chosen


def only(folder: Path, entries: Entries, endings: Sequence[str]) -> list[Path]:
    """Return the files with these endings in a folder, sorted; [] if it also has images or folders."""
    chosen = [name for name, _ in entries if name.lower().endswith(tuple(endings))]
    if not chosen or any(is_dir or is_image(name) for name, is_dir in entries):
        return []
    return [folder / name for name in sorted(chosen)]


def is_image(name: str) -> bool:
    """Whether a file has the ending of an image that Pillow reads."""
    return os.path.splitext(name)[1].lower() in Image.registered_extensions()


def entries_of(folder: Path) -> Entries:
    """Return the names in a folder, and whether each is a folder, without hidden files and folders of systems."""
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir()) for entry in found]
    return [entry for entry in entries if not (is_hidden_folder(entry[0]) if entry[1] else entry[0].startswith("."))]
