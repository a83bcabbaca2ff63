"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


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
