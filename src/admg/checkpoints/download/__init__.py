"""Download large files once into the user's cache: interrupted downloads resume, and complete files are verified.

Verified are the size, the MD5 if the server states it, and the SHA-256 if it is known in advance.

Next to the file `x.pt` are `x.pt.json` (its SHA-256, recorded at first use, and its source) and, during the download,
`x.pt.part` with `x.pt.part.json`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from admg.files import cache_folder
from admg.offline import offline

from .connection import Part, Progress, discard, receive
from .errors import DownloadError, DownloadRefusedError
from .locks import locked
from .records import ANY, Expected, Record, beside, check, check_md5, read_json, read_record, verify, write_json

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


def sources(url: str) -> list[str]:
    """Return the URLs to try: the mirrors of ADMG_MIRROR (base URLs separated by commas), then the published URL.

    Raises ValueError if a mirror is not an http(s) URL.
    """
    mirrors = [base.strip() for base in os.environ.get("ADMG_MIRROR", "").split(",") if base.strip()]
    for base in mirrors:
        if not base.startswith(("http://", "https://")):
            raise ValueError(f"ADMG_MIRROR must hold URLs that start with https:// or http://, got {base!r}")
    return [f"{base.rstrip('/')}/{url.rsplit('/', 1)[-1]}" for base in mirrors] + [url]


def fetch(url: str, path: Path | str, expected: Expected = ANY, *, forbid: bool = False, progress: bool = True) -> Path:
    """Return `path`, after downloading the file if it is missing. Its hash is recorded at first use.

    url: published URL, tried after the mirrors of ADMG_MIRROR
    expected: what is known about the file in advance
    forbid: do not download, as with ADMG_OFFLINE
    progress: show a progress bar

    Raises DownloadError if the file cannot be downloaded, or differs from the one that was first used.
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
    """Return the instruction to download a file by hand."""
    return f"download {url} and save it as {path}"


def download(url: str, path: Path, expected: Expected = ANY) -> Iterator[Progress]:
    """Download a missing file, yielding the progress. Concurrent downloads of the file wait for the first one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if path.is_file():  # another process has downloaded it in the meantime
            return
        errors = []
        for source in sources(url):
            try:
                yield from receive(source, path)
                _finish(source, path, expected)
                return
            except DownloadRefusedError as error:
                errors.append(f"{source}: {error}")
        raise DownloadError(f"cannot download {path.name} ({'; '.join(errors)}); {by_hand(url, path)}")


def _finish(source: str, path: Path, expected: Expected) -> None:
    """Verify the complete part file, record its hash, and give it its name."""
    part, known = beside(path, ".part"), read_json(beside(path, ".part.json"), Part)
    try:
        if known and known.md5:
            check_md5(part, known.md5)
        record = check(part, read_record(path), expected)
    except DownloadError as error:
        discard(path)
        raise DownloadRefusedError(str(error)) from None
    etag = known.validator if known else ""
    write_json(beside(path, ".json"), dataclasses.replace(record, url=source, etag=etag))
    part.replace(path)
    discard(path)


def _bar(name: str, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1000, disable=not show)
