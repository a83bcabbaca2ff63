"""State that the tabs share: models, limits, job queue, files to download, training runs."""

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
    """Folders of files to download, one per visitor. A new folder replaces the visitor's previous one.

    root: folder that contains them
    """

    def __init__(self, root: Path):
        self.root = root
        self.by_visitor: dict[str, Path] = {}

    def new(self, visitor: str) -> Path:
        """Create an empty folder for a visitor and return its path."""
        self.remove(visitor)
        self.by_visitor[visitor] = Path(tempfile.mkdtemp(dir=self.root))
        return self.by_visitor[visitor]

    def remove(self, visitor: str) -> None:
        """Remove the folder of a visitor, if there is one."""
        if (old := self.by_visitor.pop(visitor, None)) is not None:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Studio:
    """State that the tabs share.

    runs, trainer: None without a folder of runs or of data sets
    """

    catalog: Catalog
    limits: Limits
    queue: JobQueue
    folders: Folders
    runs: RunFolder | None = None
    trainer: Trainer | None = None

    def leave(self, visitor: str) -> None:
        """Stop the job of a visitor who has left the page, and remove the files to download."""
        self.queue.stop(visitor, "the visitor has left")
        self.folders.remove(visitor)

    def close(self) -> None:
        """Stop all jobs and the training run, if one was started here."""
        self.queue.close()
        if self.trainer is not None:
            self.trainer.close()
