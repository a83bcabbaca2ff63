"""Download a file from one server, over as many connections as necessary, into a `.part` file."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import DownloadError, DownloadRefusedError
from .records import beside, read_json, write_json

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without data after which a connection is considered broken."""
TRIES = 6
"""Consecutive connections without progress before a source is given up; half as many if it never answered."""
PAUSE = 0.5
"""Seconds before the first retry; doubled for each further one."""
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
WEB_PAGE = "this is a web page, not the file (a login or error page?)"


@dataclass(frozen=True)
class Progress:
    """Bytes on disk, and bytes of the complete file (0 if the server does not say)."""

    done: int
    total: int


@dataclass(frozen=True)
class Part:
    """Metadata of a partial download: its URL, total size, and the ETag or date that identifies its version.

    md5: MD5 of the complete file in hexadecimal, if the server states it, or else ""
    """

    url: str
    total: int
    validator: str
    md5: str = ""


def receive(source: str, path: Path) -> Iterator[Progress]:
    """Complete the part file, yielding the progress. Raises DownloadRefusedError if connections make no progress."""
    part, failures, best, answered = beside(path, ".part"), 0, 0, False
    while True:
        try:
            for step in _connect(source, path):
                answered = True
                yield step
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part belongs to another version
                discard(path)
            elif error.code not in (408, 429) and error.code < 500:
                raise DownloadRefusedError(f"the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except BROKEN as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
                raise DownloadRefusedError(reason) from None
        size = part.stat().st_size if part.exists() else 0
        best, failures = max(best, size), 0 if size > best else failures + 1
        if failures >= (TRIES if answered else TRIES // 2):
            raise DownloadRefusedError(f"{reason}, {failures} times in a row")
        time.sleep(PAUSE * 2**failures)


def _connect(source: str, path: Path) -> Iterator[Progress]:
    """Use one connection: resume the part file if the server still has the same version, or else start over."""
    part, known = beside(path, ".part"), known_part(source, path)
    have = part.stat().st_size if known else 0
    if known and have == known.total:
        return
    headers = {"User-Agent": "admg", "Accept-Encoding": "identity"}
    if known and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
    with urllib.request.urlopen(urllib.request.Request(source, headers=headers), timeout=TIMEOUT) as response:
        now = Part(source, _total(response), _validator(response), _md5(response))
        resumed = response.status == 206
        same = known is not None and now == replace(known, md5=now.md5)
        if resumed and not (same and _first_byte(response) == have):
            discard(path)
            raise ConnectionError("the file has changed on the server")
        if "text/html" in response.headers.get("Content-Type", ""):
            raise DownloadRefusedError(WEB_PAGE)
        have = have if resumed else 0
        _check_space(path, now.total - have)
        if not resumed:
            discard(path)  # the old part must not be mistaken for one of the new version
        if not resumed or now.md5:
            write_json(beside(path, ".part.json"), now)
        yield from _copy(response, part, have, now.total)


def _copy(response: http.client.HTTPResponse, part: Path, have: int, total: int) -> Iterator[Progress]:
    """Append the body of the response after the first `have` bytes of the part."""
    chunk = response.read1(CHUNK)
    if have == 0 and chunk.lstrip()[:1] == b"<":
        raise DownloadRefusedError(WEB_PAGE)
    with part.open("ab" if have else "wb") as file:
        yield Progress(have, total)
        while chunk:
            file.write(chunk)
            have += len(chunk)
            yield Progress(have, total)
            chunk = response.read1(CHUNK)
        file.flush()
        os.fsync(file.fileno())
    if total and have != total:
        raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")


def _total(response: http.client.HTTPResponse) -> int:
    """Return the size of the complete file, or 0 for a chunked transfer, whose end is marked."""
    tail = response.headers.get("Content-Range", "").rpartition("/")[2]
    length = tail if response.status == 206 else response.headers.get("Content-Length", "")
    if not length.isdecimal() and "chunked" not in response.headers.get("Transfer-Encoding", ""):
        raise DownloadRefusedError("the server does not send the size of the file")
    return int(length) if length.isdecimal() else 0


def _first_byte(response: http.client.HTTPResponse) -> int:
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else -1


def _validator(response: http.client.HTTPResponse) -> str:
    """Return a value for If-Range: a strong ETag, or else the date of the last change, or else "" (no resuming)."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _md5(response: http.client.HTTPResponse) -> str:
    """Return the MD5 of the complete file that the server states, in hexadecimal, or "".

    Content-MD5 (RFC 1864) is that of a part if a part is sent; the headers of Azure and Google are of the whole file.
    """
    values = [response.headers.get("x-ms-blob-content-md5", "")]
    values += [
        h.strip()[4:] for line in response.headers.get_all("x-goog-hash", []) for h in line.split(",") if "md5=" in h
    ]
    values += [response.headers.get("Content-MD5", "")] if response.status == 200 else []
    for value in values:
        with contextlib.suppress(ValueError):
            digest = base64.b64decode(value, validate=True)
            if len(digest) == 16:
                return digest.hex()
    return ""


def known_part(source: str, path: Path) -> Part | None:
    """Return the metadata of the partial download if this URL can resume it, or else None."""
    known = read_json(beside(path, ".part.json"), Part)
    part = beside(path, ".part")
    usable = known and part.is_file() and known.url == source and known.validator and known.total
    return known if usable and part.stat().st_size <= known.total else None


def discard(path: Path) -> None:
    """Remove the partial download of a file."""
    for suffix in (".part", ".part.json"):
        beside(path, suffix).unlink(missing_ok=True)


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DownloadError(
            f"{path.name} needs {needed / 1e9:.2f} GB more, and {path.parent} has {free / 1e9:.2f} GB left: "
            "free some space, or set ADMG_HOME to a folder on another disk"
        )
