"""Trust on first use: the SHA-256 of a file is recorded beside it, and later copies must be the same."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg.files import atomic

from .errors import DownloadError
from .locks import locked

CHUNK = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What is known of a file beforehand: bytes that it must have at least, and its SHA-256 ("": not known)."""

    at_least: int = 0
    sha256: str = ""


ANY = Expected()


@dataclass(frozen=True)
class Record:
    """What is known of a whole file: its hash at first use, and the size and time (ns) it had when last hashed."""

    sha256: str
    size: int
    mtime: int
    url: str = ""
    etag: str = ""
    date: str = ""


def verify(path: Path | str, expected: Expected = ANY) -> Record:
    """Compare a file with the record of its first use, or make that record. It is hashed only if it was touched since.

    DownloadError: it is too small, a web page, or differs from what was recorded.
    """
    path = Path(path)
    record, stat = read_record(path), path.stat()
    untouched = record and (record.size, record.mtime) == (stat.st_size, stat.st_mtime_ns)
    if record and untouched and expected.sha256 in ("", record.sha256):
        return record
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a shared cache that we may only read
            stack.enter_context(locked(path))
        new = check(path, read_record(path), expected)
        with contextlib.suppress(OSError):
            write_json(beside(path, ".json"), new)
    return new


def check(file: Path, record: Record | None, expected: Expected) -> Record:
    """The record of this content: that of its first use, with the file's size and time as they are now."""
    stat = file.stat()
    if stat.st_size < expected.at_least:
        needed = f"{expected.at_least:,}: it is not whole"
        raise DownloadError(f"{file} has {stat.st_size:,} bytes, and must have at least {needed}")
    with file.open("rb") as stream:
        if stream.read(CHUNK).lstrip()[:1] == b"<":
            raise DownloadError(f"{file} is a web page, not a checkpoint: remove it")
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if expected.sha256 and sha256 != expected.sha256:
        name = file.name.removesuffix(".part")
        raise DownloadError(f"{name} is not the published file: its SHA-256 is {sha256}, not {expected.sha256}")
    if record is None:
        return Record(sha256, stat.st_size, stat.st_mtime_ns, date=today())
    if record.sha256 != sha256:
        raise DownloadError(
            f"{file.name.removesuffix('.part')} is not the file that was first used on {record.date}: its SHA-256 is "
            f"{sha256}, not {record.sha256}; if the change is meant, remove {file.name.removesuffix('.part')}.json "
            f"in {file.parent}"
        )
    return dataclasses.replace(record, size=stat.st_size, mtime=stat.st_mtime_ns)


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def read_record(path: Path) -> Record | None:
    return read_json(beside(path, ".json"), Record)


def read_json(file: Path, kind: type) -> Any:
    """The dataclass in the file; None if there is none, or not a proper one."""
    try:
        return kind(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_json(file: Path, value: Any) -> None:
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(value), indent=1) + "\n", encoding="utf-8")


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
