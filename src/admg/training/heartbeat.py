"""Detects that a process of the group has ended, by heartbeats in the store of torch.distributed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from admg.engine.device import Processes

HEARTBEAT_SECONDS = 2.0
"""Seconds between two heartbeats of a process."""
MAX_MISSED_HEARTBEATS = 30
"""Number of missed heartbeats after which a process has ended."""
MAX_MISSED_AFTER_ERROR = 3
"""The same after an exchange with the others has failed."""
ABORT_SECONDS = 15.0
"""Seconds within which an aborted exchange must raise its error."""
ENDED, LEFT = "ended", "left"


class ProcessLostError(ConnectionError):
    """Another of the processes that train together has ended, or cannot be reached."""


class HeartbeatMonitor:
    """A thread that sends heartbeats of this process, and monitors those of the next one.

    Every process is monitored by the one before it, so all processes are monitored. A process that finds that another
    has ended notifies all of them. Each then aborts the exchange that it is waiting for, and `reporting_failures`
    raises ProcessLostError.

    on_stuck: called with the reason if the exchange cannot be aborted, as with gloo if a machine is lost
    """

    def __init__(self, store: Store, processes: Processes):
        self.store, self.processes, self.beat = store, processes, HEARTBEAT_SECONDS
        self.monitored = (processes.rank + 1) % processes.count
        self.max_missed = MAX_MISSED_HEARTBEATS
        self.reason = ""
        self.on_stuck: Callable[[str], Any] | None = None
        self.stopped, self.noticed, self.raised = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="admg watch", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the thread. Others no longer expect heartbeats of this process."""
        if not self.stopped.is_set():
            self.stopped.set()
            self.thread.join(self.beat)
            with suppress(RuntimeError):  # the store may be gone already
                self.store.set(self._key(self.processes.rank), LEFT)

    @contextmanager
    def reporting_failures(self) -> Iterator[None]:
        """Context manager that informs the other processes why this one ends, if it raises an exception.

        Raises ProcessLostError in place of the error of an exchange with a process that has ended.
        """
        try:
            yield
        except Exception as error:
            if self.noticed.is_set() or is_lost_connection(error):
                self.raised.set()
                self.max_missed = MAX_MISSED_AFTER_ERROR
                self.noticed.wait((MAX_MISSED_HEARTBEATS + 2) * self.beat)
                self.stopped.wait(self.beat)  # torchrun reports the first process that ends as the cause
                reason = self.reason or f"another of {self.processes.count} processes has ended"
                raise ProcessLostError(reason) from error
            with suppress(RuntimeError):
                self._announce(f"{self.name(self.processes.rank)} has ended: {' '.join(str(error).split())}")
                self.stopped.wait(1.2 * self.beat)  # until the others have read it, perhaps from this process
            raise

    def name(self, rank: int) -> str:
        """Return the name of a process in messages."""
        return f"process {rank} of {self.processes.count}"

    def _run(self) -> None:
        seen, silent, count = "", 0, 0
        while not self.stopped.wait(self.beat):
            count += 1
            try:
                self.store.set(self._key(self.processes.rank), str(count))
                sign = self._read(self._key(self.monitored))
                silent = 0 if sign == LEFT or (sign and sign != seen) else silent + 1  # beats, not seconds: a whole
                seen = sign  # job may be suspended
                if silent >= self.max_missed:
                    self._announce(f"{self.name(self.monitored)} has ended without a message, or cannot be reached")
                reason = self._read(ENDED)
            except RuntimeError:  # the store, held by the first process or torchrun, is gone
                reason = f"{self.name(0)} has ended, or cannot be reached"
            if reason and not self.stopped.is_set():
                self._notice(reason)
                return

    def _notice(self, reason: str) -> None:
        self.reason = reason
        self.noticed.set()
        with suppress(Exception):  # do not wait for a process that has ended
            dist.group.WORLD.abort()  # type: ignore[union-attr]
        if self.on_stuck is not None and not self.raised.wait(ABORT_SECONDS) and not self.stopped.is_set():
            self.on_stuck(reason)

    def _announce(self, reason: str) -> None:
        """Publish why a process has ended, unless a reason has been published already."""
        self.store.compare_set(ENDED, "", reason)

    def _read(self, key: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _key(self, rank: int) -> str:
        return f"beat of {rank}"


def is_lost_connection(error: Exception) -> bool:
    """Whether an exception is that of torch.distributed for a process that cannot be reached."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)  # which gives the place in its source
