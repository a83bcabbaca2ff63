"""Trust on first use: the SHA-256 of a file is recorded next to it, and later copies must match."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from admg import checksums
from admg.files import atomic

from .errors import DownloadError
from .locks import locked

CHUNK = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What is known about a file in advance.

    at_least: minimum size in bytes
    sha256: SHA-256 of the file; empty if it is not known
    """

    at_least: int = 0
    sha256: str = ""


ANY = Expected()


@dataclass(frozen=True)
class Record:
    """The record of a complete file.

    sha256: hash at first use
    size, mtime: size in bytes and modification time in ns when it was last hashed
    url, etag, date: where and when it was downloaded
    """

    sha256: str
    size: int
    mtime: int
    url: str = ""
    etag: str = ""
    date: str = ""


def verify(path: Path | str, expected: Expected = ANY) -> Record:
    """Compare a file with the record of its first use, or create that record.

    The file is read whole each time, since a disk may damage it without a change of its size and time.

    Raises DownloadError if the file is too small, a web page, or different from the recorded one.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the cache may be shared and read-only
            stack.enter_context(locked(path))
        record = read_record(path)
        new = check(path, record, expected)
        if new != record:
            with contextlib.suppress(OSError):
                write_json(beside(path, ".json"), new)
    return new


def check(file: Path, record: Record | None, expected: Expected) -> Record:
    """Return the record of a file, updated with its present size and time. Raises DownloadError as `verify` does."""
    stat = file.stat()
    if stat.st_size < expected.at_least:
        raise DownloadError(
            f"{file} has {stat.st_size:,} bytes but must have at least {expected.at_least:,}: it is incomplete"
        )
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
            f"{sha256}, not {record.sha256}; if this change is intended, remove {file.name.removesuffix('.part')}.json "
            f"in {file.parent}"
        )
    return dataclasses.replace(record, size=stat.st_size, mtime=stat.st_mtime_ns)


def check_md5(part: Path, md5: str) -> None:
    """Raise DownloadError unless a complete download has the MD5 that its server stated."""
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        name = part.name.removesuffix(".part")
        raise DownloadError(f"{name} was damaged in transit: its MD5 is {found}, and the server states {md5}")


def beside(path: Path, suffix: str) -> Path:
    """Return the path with a suffix appended to its name."""
    return path.with_name(path.name + suffix)


def read_record(path: Path) -> Record | None:
    """Return the record of a file, or None if there is none."""
    found: Record | None = read_json(beside(path, ".json"), Record)
    return found


def read_json(file: Path, kind: type) -> Any:
    """Return the dataclass stored in a file, or None if it is missing, damaged or invalid."""
    try:
        return msgspec.convert(checksums.read_json(file), kind)
    except (OSError, ValueError, TypeError):
        return None


def write_json(file: Path, value: Any) -> None:
    with atomic(file) as temporary:
        checksums.write_json(temporary, dataclasses.asdict(value))


def today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
