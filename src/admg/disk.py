"""Full disks: recognise them, name the file, and wait for space."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from admg.warn import warn

from .files import temporary_beside

T = TypeVar("T")
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Error numbers of a full disk, and of a quota that is used up."""
PROBE = 1 << 20
"""Number of free bytes below which a disk counts as full."""
PAUSE = 60.0
"""Seconds between two attempts to write to a full disk."""


def cannot_write(path: Path, into: Path, error: Exception) -> OSError:
    """Return an OSError for the custom exception of a library that could not write a file.

    path: what was being written, for the message
    into: folder with the unfinished file, which still fills the disk if it is full
    """
    probe = temporary_beside(into / "probe")
    try:
        probe.write_bytes(bytes(PROBE))
    except OSError as reason:
        return OSError(reason.errno, reason.strerror, str(path))
    finally:
        probe.unlink(missing_ok=True)
    return OSError(f"cannot write {path}: {str(error).strip().splitlines()[0]}")


def when_there_is_space(
    write: Callable[[], T], minutes: float = 0.0, given_up: Callable[[], bool] = lambda: False
) -> T:
    """Call a function that writes files, and retry every minute while the disk is full. Return its result.

    minutes: how long to retry, with a warning each time, before the error is raised; 0 raises it at once
    given_up: returns whether the user has asked to end the program in the meantime
    """
    start = time.monotonic()
    while True:
        try:
            return write()
        except OSError as error:
            waited = (time.monotonic() - start) / 60
            if error.errno not in FULL or waited >= minutes or given_up():
                raise
            left = math.ceil(minutes - waited)
            warn(f"THE DISK IS FULL: {error.strerror}: {error.filename}; waiting for space, for {left} more minutes")
        until = time.monotonic() + PAUSE
        while (now := time.monotonic()) < until and not given_up() and now - start < 60 * minutes:
            time.sleep(min(0.5, max(0.0, until - now)))
