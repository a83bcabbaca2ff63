"""README.md of a checkpoint folder: the model card that training writes, unless the user has written one."""

from __future__ import annotations

import shutil
from pathlib import Path

CARD, SAMPLES, CURVES = "README.md", "card-samples.png", "card-curves.png"
FILES = frozenset({CARD, SAMPLES, CURVES})
"""Files of the card, which may be in a checkpoint folder beside the checkpoint."""
MARK = (
    "<!-- Written by admg, and replaced each time that the model is saved. Delete this line to keep your changes. -->"
)


def is_users(folder: Path) -> bool:
    """Whether the folder has a README.md written or changed by the user."""
    path = folder / CARD
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace").splitlines()


def keep(folder: Path, new: Path) -> None:
    """Copy the user's README.md and the pictures beside it to a folder that is to replace this one."""
    if is_users(folder):
        for name in FILES:
            if (folder / name).is_file():
                shutil.copy2(folder / name, new / name)
