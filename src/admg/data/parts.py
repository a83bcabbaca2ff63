"""The parts of a data set, training and test, by the names of its files and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from admg.warn import warn

from .arrays import Split
from .errors import DataError, listed
from .labelling import common_top, labelled_by_prefix
from .listing import LABEL_FILES, is_image

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val", "eval", "dev"),
}
"""Words that name a part of a data set, in the order of precedence."""
WORDS = frozenset(word for words in SPLIT_NAMES.values() for word in words)


def of_split(files: Sequence[Path], split: Split, root: Path) -> list[Path]:
    """Return the files of a part of the data, by the first words of their names; all if these name no parts.

    Raises DataError if there are only files of other parts.
    """
    words = [re.split(r"[^a-z]", file.name.lower())[0] for file in files]
    if not WORDS.intersection(words):
        return list(files)
    word = next((word for word in SPLIT_NAMES[split] if word in words), None)
    if word is None:
        have = listed([file.name for file in files], 3)
        raise DataError(f'{root} has no file for split="{split}": it has {have}')
    chosen = [file for file, first in zip(files, words) if first == word]
    if len(chosen) < len(files):
        names = listed([file.name for file in chosen], 3)
        warn(f"{root}: {len(chosen)} of {len(files)} files are the split {split}: {names}")
    return chosen


def part_of(names: Sequence[str], split: Split, root: Path, *, classes: bool = True) -> str | None:
    """Return the sub-folder of a split among these files, such as "train" for train/cat/1.png and val/cat/2.png.

    names: all files of a folder, relative to it
    classes: whether sub-folders may be classes. Then those that contain images directly are not parts, since they may
        be classes, or their file names may begin with labels.

    None for other folders, which is reported in a warning if there are no classes, but parts: others than this split,
    or images beside them.
    """
    images = [name for name in names if is_image(name)]
    folders = sorted({name.partition("/")[0] for name in images if "/" in name})
    by_word = {folder.lower(): folder for folder in folders}
    chosen = next((by_word[word] for word in SPLIT_NAMES[split] if word in by_word), None)
    others = [folder for folder in folders if folder.lower() not in WORDS]
    others += [name for name in images if "/" not in name]
    if chosen is None:
        if folders and not others and not classes:
            note = f"{root}: there is no part for the split {split}, but {listed(folders, 3)}: using all images"
            warn(note)
        return None
    inner = [name.removeprefix(f"{chosen}/") for name in names if name.startswith(f"{chosen}/")]
    if classes and (others or labelled_by_prefix(images)):
        return None
    if classes and any("/" not in name and name not in LABEL_FILES for name in inner):
        return None
    if others:
        warn(
            f"{root}: using all images, not only those of the split {split} in {chosen}, since there are others in "
            f"{listed(others, 3)}"
        )
        return None
    if len(folders) > 1:
        warn(f"{root}: using the images in {chosen}, the split {split}")
    return chosen


def top_of_part(names: Sequence[str], split: Split, root: Path, *, classes: bool = True) -> str | None:
    """Return the folder of a split in an archive, with "/" at its end, by the rules for folders; None in others.

    names: all files in the archive
    """
    folders = {name.rpartition("/")[0].lower() for name in names}
    if not any(WORDS.intersection(folder.split("/")) for folder in folders):
        return None
    top = common_top([name for name in names if is_image(name)])
    part = part_of([name.removeprefix(top) for name in names if name.startswith(top)], split, root, classes=classes)
    return None if part is None else f"{top}{part}/"
