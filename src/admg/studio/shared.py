"""What the pages of a studio share: models, limits, the queue of jobs, files to download, runs."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .catalog import Catalog
from .jobs import JobQueue
from .limits import Limits
from .runs import RunFolder, Trainer


class Folders:
    """A folder of files to download for each visitor; a new one replaces the last one.

    root: folder that holds them
    """

    def __init__(self, root: Path):
        self.root = root
        self.of: dict[str, Path] = {}

    def new(self, visitor: str) -> Path:
        """Return a new, empty folder."""
        self.remove(visitor)
        self.of[visitor] = Path(tempfile.mkdtemp(dir=self.root))
        return self.of[visitor]

    def remove(self, visitor: str) -> None:
        """Remove the folder of a visitor, if there is one."""
        if (old := self.of.pop(visitor, None)) is not None:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Studio:
    """What the pages of a studio share.

    runs, trainer: None for a studio without a folder of runs or of data sets
    """

    catalog: Catalog
    limits: Limits
    queue: JobQueue
    folders: Folders
    runs: RunFolder | None = None
    trainer: Trainer | None = None

    def leave(self, visitor: str) -> None:
        """Stop the job of a visitor who leaves, and remove the files that were offered."""
        self.queue.stop(visitor, "the visitor has left")
        self.folders.remove(visitor)

    def close(self) -> None:
        """Stop the jobs, and the training that was started here."""
        self.queue.close()
        if self.trainer is not None:
            self.trainer.close()
