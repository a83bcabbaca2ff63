"""Large files, fetched once into the user's cache: resumed after a break, checked, and never taken for whole too soon.

Beside the file `x.pt` stand `x.pt.json` (its SHA-256, recorded at first use, and where it came from) and, while it is
being fetched, `x.pt.part` with `x.pt.part.json`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from admg.files import cache_folder

from .connection import Part, Progress, discard, receive
from .errors import DownloadError, Refused
from .locks import locked
from .records import ANY, Expected, Record, beside, check, read_json, read_record, verify, write_json

__all__ = [
    "DownloadError",
    "Expected",
    "Progress",
    "Record",
    "cache_folder",
    "download",
    "fetch",
    "offline",
    "sources",
    "verify",
]


def offline() -> bool:
    """Whether ADMG_OFFLINE forbids downloads."""
    return os.environ.get("ADMG_OFFLINE", "").lower() not in ("", "0", "no", "false")


def sources(url: str) -> list[str]:
    """Where to fetch the file of a published URL: ADMG_MIRROR's base URLs (separated by commas), then there.

    ValueError: a mirror is not an http(s) URL.
    """
    mirrors = [base.strip() for base in os.environ.get("ADMG_MIRROR", "").split(",") if base.strip()]
    for base in mirrors:
        if not base.startswith(("http://", "https://")):
            raise ValueError(f"ADMG_MIRROR must hold URLs that start with https:// or http://, not {base!r}")
    return [f"{base.rstrip('/')}/{url.rsplit('/', 1)[-1]}" for base in mirrors] + [url]


def fetch(url: str, path: Path | str, expected: Expected = ANY, *, forbid: bool = False, progress: bool = True) -> Path:
    """`path`, downloaded unless it is there. It may have been put there by hand: its hash is recorded at first use.

    url: published address, asked after those of ADMG_MIRROR
    expected: what is known of the file beforehand
    forbid: do not download; so does ADMG_OFFLINE
    progress: draw a bar
    DownloadError: it cannot be had, or differs from the file that was first used.
    """
    path = Path(path)
    if not path.is_file():
        if forbid or offline():
            raise DownloadError(
                f"{path.name} is not on disk, and downloads are off (--offline, ADMG_OFFLINE): {by_hand(url, path)}"
            )
        with _bar(path.name, progress) as bar:
            for step in download(url, path, expected):
                bar.total = step.total or None
                bar.update(step.done - bar.n)
    verify(path, expected)
    return path


def by_hand(url: str, path: Path) -> str:
    return f"get {url} and put it at {path}"


def download(url: str, path: Path, expected: Expected = ANY) -> Iterator[Progress]:
    """Fetch a file that is not there, telling how far it is. Whoever else does the same waits, then has it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if path.is_file():  # while we waited
            return
        errors = []
        for source in sources(url):
            try:
                yield from receive(source, path)
                _finish(source, path, expected)
                return
            except Refused as error:
                errors.append(f"{source}: {error}")
        raise DownloadError(f"cannot download {path.name} ({'; '.join(errors)}); {by_hand(url, path)}")


def _finish(source: str, path: Path, expected: Expected) -> None:
    """Check the part that is now whole, record its hash if it is the first, and give it its name."""
    part, known = beside(path, ".part"), read_json(beside(path, ".part.json"), Part)
    try:
        record = check(part, read_record(path), expected)
    except DownloadError as error:
        discard(path)
        raise Refused(str(error)) from None
    etag = known.validator if known else ""
    write_json(beside(path, ".json"), dataclasses.replace(record, url=source, etag=etag))
    part.replace(path)
    discard(path)


def _bar(name: str, show: bool):
    from tqdm.auto import tqdm

    return tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1000, disable=not show)
