"""One process or thread at a time, or a word of where files should be kept instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from admg import files

from .errors import DownloadError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """As files.locked. DownloadError: files cannot be locked there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path))
        except files.LockError as error:
            raise DownloadError(f"{error}: set ADMG_HOME to a folder on a local disk") from None
        yield
