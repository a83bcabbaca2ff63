"""Settings of the whole process. Commands make them; the library never does so on its own."""

from __future__ import annotations

import ctypes
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import torch

from admg.threads import Reading, threads_beside
from admg.warn import warn

FIRST, INTERVAL, STALE = 0.5, 5.0, 600.0
"""Seconds: the shortest first measurement of other processes, the shortest later one, and the longest."""


def configure_process(device: torch.device | str | None = None, threads: int | None = None) -> None:
    """Configure the whole process for fast and exact networks on this device (default: on any).

    On a CPU under Linux, freed memory is kept for later use instead of being given back to the system. On a GPU,
    convolutions in float32 do not use TF32, which has three digits and is cuDNN's default. It may be called twice.

    threads: number of CPU threads; None leaves it as it is (`admg.threads.available_cores` has a number for containers)
    """
    kind = None if device is None else torch.device(device).type
    if kind in (None, "cpu"):
        keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if kind in (None, "cuda"):
        with suppress(RuntimeError):  # set by torch's newer switch (fp32_precision), which is left as it is
            torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, up to its peak. Has an effect only on Linux.

    glibc gives large blocks back to the system at once. Every step then gets its memory as new pages, which are cleared
    one by one: a tenth of the time of a small network's forward pass.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    if mallopt(-3, 1 << 30) or mallopt(-3, 32 << 20):  # M_MMAP_THRESHOLD; the second is the maximum of an older glibc
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


@dataclass
class Adapting:
    """Adapts the number of threads of this process to the load of other processes.

    most: number of threads on an idle machine
    since: reading of processor time at the beginning of the next measurement
    chosen: whether the first choice was made
    """

    most: int
    since: Reading
    chosen: bool = False

    def adapt(self) -> None:
        """Set the number of threads, unless the last choice was recent. A first choice below `most` is printed."""
        waited = time.monotonic() - self.since.when
        if waited < (INTERVAL if self.chosen else FIRST) or (now := Reading.now()) is None:
            return
        before, self.since = self.since, now
        if waited > STALE:  # such as a studio that was idle for hours
            return
        others = before.others_until(now)
        threads = threads_beside(others, self.most, now.cores)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        if threads < self.most and not self.chosen:
            number = "1 thread" if threads == 1 else f"{threads} threads"
            warn(
                f"other processes use {others:.1f} of {now.cores} cores: each operation is computed by {number} while "
                "they do (--threads chooses a number)"
            )
        self.chosen = True


_adapting: Adapting | None = None


def follow_load(since: Reading | None) -> None:
    """Let the number of threads of this process follow the load of the machine, up to the current number.

    Results then depend on the load as they depend on the number of threads: by rounding.

    since: a reading before the process began to compute; None: leave the number of threads as it is
    """
    global _adapting
    _adapting = None if since is None else Adapting(torch.get_num_threads(), since)


def threads_in_all() -> int:
    """Return the number of threads that work may use whose threads wait for each other only once per call.

    Unlike that of threads which share every operation, it does not depend on the load: a thread on a shared core delays
    the others only at the end of a call, and each of them has its own turns on the cores.
    """
    return max(torch.get_num_threads(), 1 if _adapting is None else _adapting.most)


def adapt_threads() -> None:
    """Adapt the number of threads to the load of the machine, between two steps, if `follow_load` was called.

    It must be called in the thread that computes, since OpenMP counts the threads of each separately.
    """
    if _adapting is not None:
        _adapting.adapt()
