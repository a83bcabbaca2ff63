"""One process or thread at a time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import DownloadError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread holds the lock of this file. The system frees it when its holder dies."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        while not _try_lock(file.fileno(), path):
            time.sleep(0.1)
        yield  # closing the file frees the lock


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # held by another: EAGAIN here, EACCES on Windows
        return False
    except OSError as error:
        raise DownloadError(
            f"cannot lock files in {path.parent} ({error.strerror}): set ADMG_HOME to a folder on a local disk"
        ) from None
    return True
