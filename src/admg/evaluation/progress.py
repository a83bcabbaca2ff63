"""Progress of long computations: a bar, a callback, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm.auto import tqdm

from admg.config import printable


@dataclass(frozen=True)
class Progress:
    """Progress of a computation.

    task: name of the computation, such as "features of the samples"
    done, total: number of finished units, and of all units
    unit: name of a unit, such as "image"
    note: a remark, such as an intermediate result
    """

    task: str
    done: int
    total: int
    unit: str
    note: str = ""


Show = bool | Callable[[Progress], None]
"""Display of progress: True for a bar, False for nothing, or a function that is called after each step."""

Update = Callable[..., None]
"""update(done, total=None, note=""): the number of finished units so far, of all units if it changed, and a remark."""


@contextmanager
def track(task: str, total: int, unit: str, show: Show) -> Iterator[Update]:
    """Context manager that yields a function to report the progress of a task with."""
    if callable(show):
        report = show

        def call(done: int, whole: int | None = None, note: str = "") -> None:
            report(Progress(task, done, total if whole is None else whole, unit, note))

        yield call
        return
    with tqdm(total=total, unit=unit, desc=printable(task), disable=not show) as bar:

        def advance(done: int, whole: int | None = None, note: str = "") -> None:
            bar.total = total if whole is None else whole
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        yield advance
