"""The parts of a data set, training and test, by the names of its files and folders."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from .arrays import Split
from .errors import DataError, listed

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
