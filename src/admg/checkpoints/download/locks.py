"""File lock of a download. Its error suggests setting ADMG_HOME where files cannot be locked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from admg import files

from .errors import DownloadError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, as files.locked does. Raises DownloadError if the file system does not support locks."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path))
        except files.LockError as error:
            raise DownloadError(f"{error}: set ADMG_HOME to a folder on a local disk") from None
        yield
