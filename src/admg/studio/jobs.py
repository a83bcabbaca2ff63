"""Jobs of the studio: one runs at a time, each visitor has at most one, and can be stopped at its next step."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
PAUSE = 0.1
"""Seconds between two looks at a running job."""


class JobStopped(Exception):
    """The job was stopped. The message says why."""


@dataclass(frozen=True)
class Waiting:
    """An update of a job that has not begun. ahead: number of jobs before it"""

    ahead: int


@dataclass(frozen=True)
class Done(Generic[T]):
    """The last update of a job.

    result: what its function returned; None if it was stopped
    notes: warnings
    stopped: why it was stopped, "" if it was not
    """

    result: T | None
    notes: tuple[str, ...] = ()
    stopped: str = ""


class Job:
    """A job of a visitor. Its function calls `report` with each update, and `check` before each long computation.

    seconds: time after which `check` stops it, counted from its beginning
    """

    def __init__(self, visitor: str, seconds: float):
        self.visitor, self.seconds = visitor, seconds
        self.began: float | None = None
        self.reason = ""
        self.latest: Any = None
        self.notes: tuple[str, ...] = ()
        self.changed = threading.Event()

    def stop(self, reason: str = "stopped") -> None:
        """Let the job end before its next step."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise JobStopped if the job is to be stopped, or has taken too long."""
        if self.began is not None and time.monotonic() - self.began > self.seconds:
            self.stop(f"stopped after {self.seconds:g} seconds, the limit of this studio")
        if self.reason:
            raise JobStopped(self.reason)

    def report(self, update: Any) -> None:
        """Show an update, in place of an earlier one that has not been looked at, and check()."""
        self.latest = update
        self.changed.set()
        self.check()

    def call(self, function: Callable[[Job], T]) -> T:
        """Run the function of the job, in the thread that computes."""
        self.check()
        self.began = time.monotonic()
        self.changed.set()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                return function(self)
            finally:
                messages = [str(one.message) for one in caught if one.category is UserWarning]
                self.notes = tuple(dict.fromkeys(messages))


class JobQueue:
    """Runs jobs one after the other, in a thread of its own.

    seconds: limit of each job
    waiting: number of jobs that may wait
    """

    def __init__(self, seconds: float = 600.0, waiting: int = 8):
        self.seconds, self.most = seconds, waiting + 1
        self.jobs: list[Job] = []  # the running one first
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="studio")

    def run(self, visitor: str, function: Callable[[Job], T]) -> Iterator[Any]:
        """Yield the updates of a job: Waiting while it waits, what it reports, and Done at the end.

        Leaving the iteration early stops the job. Raises ValueError if the visitor has a job already or if too many
        jobs wait, and whatever the function raises.
        """
        job = self.added(visitor)
        try:
            future = self.thread.submit(job.call, function)
        except RuntimeError:
            self.remove(job)
            raise ValueError("the studio is being closed") from None
        future.add_done_callback(lambda _: self.remove(job))
        try:
            yield from self.updates(job, future)
        finally:
            if not future.done():
                job.stop("the visitor has left")
                future.cancel()

    def updates(self, job: Job, future: Future[T]) -> Iterator[Any]:
        """Yield the updates of a job that was submitted."""
        ahead = None
        while not future.done():
            place = self.place(job)
            if job.began is None and place != ahead:
                ahead = place
                yield Waiting(place)
            if job.changed.wait(PAUSE):
                job.changed.clear()
                update, job.latest = job.latest, None
                if update is not None:
                    yield update
            if job.began is None and job.reason:
                future.cancel()
        try:
            result = None if future.cancelled() else future.result()
        except JobStopped:
            result = None
        if job.latest is not None:
            yield job.latest
        self.remove(job)  # now, so that the visitor can begin another one
        yield Done(result, job.notes, job.reason if result is None else "")

    def added(self, visitor: str) -> Job:
        with self.lock:
            if any(job.visitor == visitor for job in self.jobs):
                raise ValueError("you have a job already: wait until it is finished, or stop it first")
            if len(self.jobs) >= self.most:
                raise ValueError(f"the studio is busy: {len(self.jobs) - 1} jobs are waiting; try again later")
            job = Job(visitor, self.seconds)
            self.jobs.append(job)
            return job

    def place(self, job: Job) -> int:
        """Return the number of jobs before this one."""
        with self.lock:
            return self.jobs.index(job) if job in self.jobs else 0

    def remove(self, job: Job) -> None:
        with self.lock:
            if job in self.jobs:
                self.jobs.remove(job)

    def stop(self, visitor: str, reason: str = "stopped") -> bool:
        """Stop the job of a visitor before its next step. Return whether there was one."""
        with self.lock:
            found = [job for job in self.jobs if job.visitor == visitor]
        for job in found:
            job.stop(reason)
        return bool(found)

    def close(self) -> None:
        """Stop all jobs and the thread."""
        with self.lock:
            for job in self.jobs:
                job.stop("the studio was closed")
        self.thread.shutdown(wait=True, cancel_futures=True)
