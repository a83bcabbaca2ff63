"""Writing files so that a reader never meets half of one, and one writer at a time."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """ADMG_HOME, else XDG_CACHE_HOME/admg, else ~/.cache/admg."""
    if home := os.environ.get("ADMG_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "admg"


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, that takes its place (file or folder) once written whole.

    After an exception nothing is left of it, and what stood at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = f"{os.getpid()}-{secrets.token_hex(4)}"  # two machines that share a disk may have equal process numbers
    temporary = path.with_name(f".{path.stem}.{token}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{token}.old")
            path.rename(old)
            temporary.rename(path)
            remove(old)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that can be removed of it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class LockError(OSError):
    """Files cannot be locked on this file system."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread holds the lock of this file. The system frees it when its holder dies.

    LockError: files cannot be locked there; OSError: no lock can be made beside the file.
    """
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
        raise LockError(f"cannot lock files in {path.parent} ({error.strerror})") from None
    return True


def check_output_folder(path: Path | str) -> Path:
    """`path` as a folder that exists and can be written; OSError says why not. To be called before long work."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(f"cannot write to the output folder {path}: {error.strerror or error}") from error
    return path
