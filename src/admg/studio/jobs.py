"""Job queue. One job runs at a time; each visitor has at most one job, and can stop it at the next step."""

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
"""Polling interval for a running job, in seconds."""


class JobStopped(Exception):
    """The job was stopped. The message says why."""


@dataclass(frozen=True)
class Waiting:
    """An update of a job that has not started. ahead: number of jobs ahead of it"""

    ahead: int


@dataclass(frozen=True)
class Done(Generic[T]):
    """The last update of a job.

    result: what its function returned; None if it was stopped
    notes: warnings that it caused
    stopped: why it was stopped; "" if it was not
    """

    result: T | None
    notes: tuple[str, ...] = ()
    stopped: str = ""


class Job:
    """A visitor's job. Its function calls `report` with each update, and `check` before each long computation.

    seconds: time limit, measured from the start of the job
    """

    def __init__(self, visitor: str, seconds: float):
        self.visitor, self.seconds = visitor, seconds
        self.started: float | None = None
        self.reason = ""
        self.latest: Any = None
        self.notes: tuple[str, ...] = ()
        self.changed = threading.Event()

    def stop(self, reason: str = "stopped") -> None:
        """Stop the job before its next step."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise JobStopped if the job was stopped or has exceeded its time limit."""
        if self.started is not None and time.monotonic() - self.started > self.seconds:
            self.stop(f"stopped after {self.seconds:g} seconds, the time limit of this studio")
        if self.reason:
            raise JobStopped(self.reason)

    def report(self, update: Any) -> None:
        """Set the latest update, replacing an earlier one that was not shown, and call check()."""
        self.latest = update
        self.changed.set()
        self.check()

    def call(self, function: Callable[[Job], T]) -> T:
        """Run the function of the job, in the worker thread."""
        self.check()
        self.started = time.monotonic()
        self.changed.set()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                return function(self)
            finally:
                messages = [str(one.message) for one in caught if one.category is UserWarning]
                self.notes = tuple(dict.fromkeys(messages))


class JobQueue:
    """Runs jobs one after the other in a worker thread.

    seconds: time limit of each job
    waiting: maximum number of waiting jobs
    """

    def __init__(self, seconds: float = 600.0, waiting: int = 8):
        self.seconds, self.max_jobs = seconds, waiting + 1
        self.jobs: list[Job] = []  # the running job comes first
        self.lock = threading.Lock()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="studio")

    def run(self, visitor: str, function: Callable[[Job], T]) -> Iterator[Any]:
        """Yield the updates of a job: Waiting while it waits, then what it reports, and Done at the end.

        Closing the iterator stops the job. Raises ValueError if the visitor already has a job or the queue is full, and
        any exception of the function.
        """
        job = self.added(visitor)
        try:
            future = self.thread.submit(job.call, function)
        except RuntimeError:
            self.remove(job)
            raise ValueError("the studio is shutting down") from None
        future.add_done_callback(lambda _: self.remove(job))
        try:
            yield from self.updates(job, future)
        finally:
            if not future.done():
                job.stop("the visitor has left")
                future.cancel()

    def updates(self, job: Job, future: Future[T]) -> Iterator[Any]:
        """Yield the updates of a submitted job."""
        ahead = None
        while not future.done():
            place = self.place(job)
            if job.started is None and place != ahead:
                ahead = place
                yield Waiting(place)
            if job.changed.wait(PAUSE):
                job.changed.clear()
                update, job.latest = job.latest, None
                if update is not None:
                    yield update
            if job.started is None and job.reason:
                future.cancel()
        try:
            result = None if future.cancelled() else future.result()
        except JobStopped:
            result = None
        if job.latest is not None:
            yield job.latest
        self.remove(job)  # now, so that the visitor can start another one
        yield Done(result, job.notes, job.reason if result is None else "")

    def added(self, visitor: str) -> Job:
        with self.lock:
            if any(job.visitor == visitor for job in self.jobs):
                raise ValueError("you already have a job: wait until it is finished, or stop it first")
            if len(self.jobs) >= self.max_jobs:
                waiting = len(self.jobs) - 1
                jobs = "1 job is" if waiting == 1 else f"{waiting} jobs are"
                raise ValueError(f"the studio is busy: {jobs} waiting; try again later")
            job = Job(visitor, self.seconds)
            self.jobs.append(job)
            return job

    def place(self, job: Job) -> int:
        """Return the number of jobs ahead of this one."""
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
        """Stop all jobs and the worker thread."""
        with self.lock:
            for job in self.jobs:
                job.stop("the studio was shut down")
        self.thread.shutdown(wait=True, cancel_futures=True)
