"""The parts of a data set, training and test, by the names of its files and folders."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .arrays import Split
from .errors import DataError, listed
from .labelling import common_top, labelled_by_prefix
from .listing import LABEL_FILES, is_image

Entries = list[tuple[str, bool]]
"""Names in a folder, and whether each is a folder."""

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val", "eval", "dev"),
}
"""Words that name a part of a data set, in the order of precedence."""


def of_split(files: Sequence[Path], split: Split, root: Path) -> list[Path]:
    """Return the files of a part of the data, by the first words of their names; all if these name no parts.

    Raises DataError if there are only files of other parts.
    """
    words = [re.split(r"[^a-z]", file.name.lower())[0] for file in files]
    known = {word for names in SPLIT_NAMES.values() for word in names}
    if not known.intersection(words):
        return list(files)
    word = next((word for word in SPLIT_NAMES[split] if word in words), None)
    if word is None:
        have = listed([file.name for file in files], 3)
        raise DataError(f'{root} has no file for split="{split}": it has {have}')
    chosen = [file for file, first in zip(files, words) if first == word]
    if len(chosen) < len(files):
        names = listed([file.name for file in chosen], 3)
        warnings.warn(f"{root}: {len(chosen)} of {len(files)} files are the split {split}: {names}", stacklevel=5)
    return chosen


def part_with_classes(entries: Entries, inside: Callable[[str], Entries], split: Split) -> str | None:
    """Return the sub-folder of a split in a folder such as train/cat/1.png, val/cat/2.png; None for other folders.

    entries: content of the folder
    inside: function that returns the content of a sub-folder

    Sub-folders that contain images directly are not splits: they may be classes, or their file names may begin with
    labels.
    """
    names = {name.lower(): name for name, is_dir in entries if is_dir}
    known = {word for words in SPLIT_NAMES.values() for word in words}
    chosen = next((names[word] for word in SPLIT_NAMES[split] if word in names), None)
    if chosen is None or any(is_image(name) for name, is_dir in entries if not is_dir) or not names.keys() <= known:
        return None
    inner = inside(chosen)
    if not inner or any(not is_dir and name not in LABEL_FILES for name, is_dir in inner):
        return None
    return chosen


def top_of_part(names: Sequence[str], split: Split, root: Path) -> str | None:
    """Return the folder of a split in an archive, with "/" at its end, by the rules for folders; None in others.

    names: all files in the archive
    """
    folders = {name.rpartition("/")[0].lower() for name in names}
    if not any(folder.split("/").count(word) for folder in folders for word in SPLIT_NAMES[split]):
        return None
    images = [name for name in names if is_image(name)]
    top = common_top(images)
    entries = _entries(names, top)
    part = part_with_classes(entries, lambda name: _entries(names, f"{top}{name}/"), split)
    if part is None or labelled_by_prefix(images):
        return None
    if sum(is_dir for _, is_dir in entries) > 1:
        warnings.warn(f"{root}: using the images in {part}, the split {split}", stacklevel=5)
    return f"{top}{part}/"


def _entries(names: Sequence[str], top: str) -> Entries:
    """Return the content of a folder in an archive."""
    inner = [name.removeprefix(top).partition("/") for name in names if name.startswith(top)]
    return list(dict.fromkeys((name, bool(slash)) for name, slash, _ in inner))
