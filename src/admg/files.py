"""Atomic writes, file locks and the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder: $ADMG_HOME, or $XDG_CACHE_HOME/admg, or ~/.cache/admg."""
    if home := os.environ.get("ADMG_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "admg"


LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.(tmp(\..*)?|old)", re.DOTALL)
"""Names of temporary files and folders."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic(path: Path | str, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path` with the same suffix; on success, move it (a file or folder) to `path`.

    After an exception, the temporary path is removed and `path` is unchanged. An OSError that names no file, such as
    that of a full disk, gets the name of this one.

    durable: wait until the data is on the disk before the name changes: a power cut leaves either the old or the new
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        if durable:
            for part in (*temporary.rglob("*"), temporary):
                _flush(part)
        if not (temporary.is_dir() and path.exists()):
            temporary.replace(path)
        elif not _exchange(temporary, path):  # then the old one has the temporary name
            old = path.with_name(f".{path.name}.{_token()}.old")
            path.rename(old)
            temporary.rename(path)
            remove(old)
        if durable:
            _flush(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        remove(temporary)


def temporary_beside(path: Path) -> Path:
    """Return the path of a temporary file for `path`, which `remove_leftovers` recognises."""
    return path.with_name(f".{path.stem}.{_token()}.tmp{path.suffix}")


def _token() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"  # machines that share a disk may use the same process id


def _exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step, so that neither is ever missing. Return whether the system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(AT_FDCWD, bytes(a), AT_FDCWD, bytes(b), RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if sys.platform == "win32":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_being_replaced(folder: Path) -> bool:
    """Whether a folder is missing because another process is replacing it, or was killed while doing so."""
    return not folder.exists() and any(folder.parent.glob(f".{folder.name}.*.old"))


def remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed processes that were replacing files in a folder; no process may be writing there.

    A folder that one of them had moved away, and not replaced, gets its name back.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not LEFTOVER.fullmatch(path.name):
            continue
        original = folder / path.name[1:].rsplit(".", 2)[0]
        if path.name.endswith(".old") and not original.exists():
            path.rename(original)
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists. Errors within a folder are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # so that the disk reads ahead
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return hashlib.file_digest(file, "sha256").hexdigest()


class LockError(OSError):
    """The file system does not support file locks."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, waiting until no other process or thread does. It is released if its holder dies.

    Raises LockError if the file system does not support locks, and OSError if no lock file can be created.
    """
    with path.with_name(f".{path.name}.lock").open("a") as file:
        while not _try_lock(file.fileno(), path):
            time.sleep(0.1)
        yield  # closing the file releases the lock


class LockedError(ValueError):
    """Another process holds a lock."""


@contextmanager
def locked_nowait(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file, which is released if this process dies, without waiting for another process.

    what: description of the file, for the message

    Raises LockedError, which names the process that holds it, and LockError if the file system does not support locks.
    """
    with path.open("a+") as file:
        if not _try_lock(file.fileno(), path):
            file.seek(0)
            raise LockedError(f"{what} is in use by {file.read(200).strip() or 'another process'}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def shared(path: Path, alone: Callable[[], object]) -> Iterator[None]:
    """Hold a shared lock of a file that exists, as processes do that write into the same folder.

    There are no such locks on Windows, nor where the file system does not support them.

    alone: called first if no other process holds the lock
    Raises LockedError if the file was replaced before it was locked.
    """
    with path.open("rb") as file:
        with suppress(LockError, ImportError):
            import fcntl

            if _try_lock(file.fileno(), path):
                alone()
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)
            if not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
                raise LockedError(f"another process has replaced {path} in the meantime: start again")
        yield


@contextmanager
def unshared(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file, which need not exist, so that no other process holds or gets a shared one.

    Nothing is locked on Windows, nor where the file system does not support locks.

    what: description of the file, for the message
    Raises LockedError if another process or thread holds the lock.
    """
    with ExitStack() as stack:
        with suppress(FileNotFoundError, NotADirectoryError, LockError, ImportError):
            import fcntl  # noqa: F401

            file = stack.enter_context(path.open("rb"))
            if not _try_lock(file.fileno(), path):
                raise LockedError(f"another process is writing {what}: wait for it, or stop it")
        yield


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # already held: EAGAIN, or EACCES on Windows
        return False
    except OSError as error:
        raise LockError(f"cannot lock files in {path.parent} ({error.strerror})") from None
    return True


def check_output_folder(path: Path | str) -> Path:
    """Create a folder if necessary, check that it is writable, and return it. Meant to be called before long work.

    Raises OSError with the reason if it cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_beside(path / "write-test")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may remove what it finds left over
    except OSError as error:
        raise type(error)(f"cannot write to the output folder {path}: {error.strerror or error}") from error
    return path
