"""The progress of a job, and bars that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

Activity = Literal["sampling", "upsampling", "waiting"]


@dataclass(frozen=True)
class JobProgress:
    """Progress of a stage of a job.

    folder: folder of the stage
    activity: "sampling", "upsampling", or "waiting" for the shards of other processes
    done: number of images that this process has finished, which grows by a fraction with each step; shards while
        waiting
    total: number of images of this process; shards while waiting
    reused: images that an earlier run had finished
    """

    folder: Path
    activity: Activity
    done: float
    total: int
    reused: int = 0


OnProgress = Callable[[JobProgress], Any]


class ProgressBars:
    """Shows a bar per stage."""

    LAYOUT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"

    def __init__(self) -> None:
        self.stage: tuple[Path, str] | None = None
        self.bar: Any = None

    def __call__(self, progress: JobProgress) -> None:
        if progress.activity == "waiting":
            return
        if self.stage != (progress.folder, progress.activity):
            self.stage = (progress.folder, progress.activity)
            self.bar = tqdm(total=progress.total, initial=progress.done, desc=progress.activity, unit=" images",
                            bar_format=self.LAYOUT)  # fmt: skip
        self.bar.update(progress.done - self.bar.n)
        if progress.done >= progress.total:
            self.bar.close()

    def close(self) -> None:
        """Leave the bar in its current state, before something else is printed."""
        if self.bar is not None:
            self.bar.close()


@contextmanager
def reporting(progress: bool | OnProgress, show: bool = True) -> Iterator[OnProgress]:
    """Context manager that returns a function to call with a JobProgress, and closes it at the end if it can be closed.

    show: whether True shows bars; only in the first of several processes
    """
    report = progress if callable(progress) else ProgressBars() if progress and show else _ignore
    try:
        yield report
    finally:
        close = getattr(report, "close", None)
        if callable(close):
            close()


def _ignore(progress: JobProgress) -> None:
    """Do nothing."""
