"""What an export hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """What was written, and what its user must know.

    path: the folder or file
    notes: a sentence for each thing that the other library does not have or does differently
    flags: that load the file into OpenAI's code; "" for other formats
    """

    path: Path
    notes: tuple[str, ...] = ()
    flags: str = ""
