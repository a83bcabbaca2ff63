"""The result of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """The result of an export, with remarks for its users.

    path: folder or file that was written
    notes: one sentence for each feature that the other library lacks or handles differently
    flags: flags that load the file into OpenAI's code; empty for other formats
    """

    path: Path
    notes: tuple[str, ...] = ()
    flags: str = ""
