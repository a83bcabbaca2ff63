"""Downloads from a local server that misbehaves as real servers do."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from admg.checkpoints import download
from admg.checkpoints.download import DownloadError, Expected, connection
from admg.checkpoints.download.records import write_json

CONTENT = np.random.default_rng(0).bytes(3_000_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A server of `content` at any path. `requests` are the Range headers (or "") that it received."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.ranges = True  # whether it supports Range
        self.honest = True  # whether it respects If-Range
        self.drop_after: list[int] = []  # bytes after which each of the next connections breaks
        self.statuses: list[int] = []  # of the next responses
        self.length: int | None = None  # sent instead of the true length; -1: no length
        self.type = "application/octet-stream"
        self.headers: dict[str, str] = {}  # further ones
        self.hold = threading.Event()  # the body is sent once this is set
        self.hold.set()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/x.pt"

    def handle_error(self, request, client_address):
        """Ignore connections that are broken on purpose."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, requested = self.server, self.headers.get("Range", "")
        server.requests.append(requested)
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        content, start = server.content, 0
        fresh = not server.honest or self.headers.get("If-Range") == server.etag
        if requested and server.ranges and fresh:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        length = len(content) - start if server.length is None else server.length
        if length >= 0:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", server.type)
        for name, value in (server.headers | ({"ETag": server.etag} if server.etag else {})).items():
            self.send_header(name, value)
        self.end_headers()
        end = start + server.drop_after.pop(0) if server.drop_after else len(content)
        server.hold.wait(10)
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(connection, "PAUSE", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "ADMG_MIRROR", "ADMG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


def fetch(server: Server, path: Path, **options) -> bytes:
    return download.fetch(server.url, path, progress=False, **options).read_bytes()


def files_beside(path: Path) -> set[str]:
    """Names of the files in the same folder, without the lock, which is kept."""
    return {p.name for p in path.parent.iterdir()} - {f".{path.name}.lock"}


def refused(server: Server, path: Path, **options) -> str:
    with pytest.raises(DownloadError) as error:
        fetch(server, path, **options)
    assert not path.exists()
    assert f"download {server.url} and save it as {path}" in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_downloaded_once_and_recorded(server, tmp_path):
    path = tmp_path / "openai" / "x.pt"
    assert fetch(server, path) == fetch(server, path) == CONTENT
    assert server.requests == [""]
    assert files_beside(path) == {"x.pt", "x.pt.json"}
    record = json.loads((path.parent / "x.pt.json").read_text())
    assert (record["sha256"], record["size"]) == (SHA256, len(CONTENT))
    assert (record["url"], record["etag"]) == (server.url, '"v1"') and record["date"].startswith("20")


def test_progress_is_reported(server, tmp_path):
    steps = list(download.download(server.url, tmp_path / "x.pt"))
    assert {step.total for step in steps} == {len(CONTENT)} and steps[-1].done == len(CONTENT)
    assert [s.done for s in steps] == sorted(s.done for s in steps)


def test_dropped_connections_resume(server, tmp_path):
    server.drop_after = [1_000_000, 0, 500_000]
    assert fetch(server, tmp_path / "x.pt") == CONTENT
    assert server.requests == ["", "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]


def test_an_interrupted_download_resumes_at_the_next_start(server, tmp_path):
    path = tmp_path / "x.pt"
    with contextlib.closing(download.download(server.url, path)) as steps:
        while next(steps).done < 100_000:
            assert not path.exists()
    have = (tmp_path / "x.pt.part").stat().st_size
    assert 0 < have < len(CONTENT) and not path.exists()
    assert fetch(server, path) == CONTENT
    assert server.requests == ["", f"bytes={have}-"]


def test_a_complete_part_needs_no_connection(server, tmp_path):
    (tmp_path / "x.pt.part").write_bytes(CONTENT)
    part = connection.Part(server.url, len(CONTENT), '"v1"')
    (tmp_path / "x.pt.part.json").write_text(json.dumps(dataclasses.asdict(part)))
    assert fetch(server, tmp_path / "x.pt") == CONTENT and server.requests == []


def test_a_part_of_unknown_origin_is_not_resumed(server, tmp_path):
    (tmp_path / "x.pt.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path / "x.pt") == CONTENT and server.requests == [""]


def test_without_range_support_it_starts_over(server, tmp_path):
    server.ranges, server.drop_after = False, [1_000_000, 2_000_000]
    assert fetch(server, tmp_path / "x.pt") == CONTENT
    assert server.requests == ["", "bytes=1000000-", "bytes=2000000-"]


def test_without_an_etag_it_starts_over(server, tmp_path):
    server.etag, server.drop_after = None, [1_000_000]
    assert fetch(server, tmp_path / "x.pt") == CONTENT and server.requests == ["", ""]


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changed_on_the_server_starts_over(server, tmp_path, honest):
    server.drop_after, server.honest = [1_000_000], honest
    steps = download.download(server.url, tmp_path / "x.pt")
    while next(steps).done < 1_000_000:
        pass
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert list(steps)[-1].done == len(CONTENT)
    assert (tmp_path / "x.pt").read_bytes() == CONTENT[::-1]


@pytest.mark.thorough
def test_a_truncated_file_is_never_accepted(server, tmp_path):
    server.content, server.length, server.ranges = CONTENT[:-1], len(CONTENT), False
    assert "broke after 3,000,000 of 3,000,001 bytes, 6 times in a row" in refused(server, tmp_path / "x.pt")
    assert files_beside(tmp_path / "x.pt") == {"x.pt.part", "x.pt.part.json"}
    server.content, server.length = CONTENT, None
    assert fetch(server, tmp_path / "x.pt") == CONTENT


def test_a_wrong_or_missing_length_is_refused(server, tmp_path):
    server.length = 1000
    assert "has 1,000 bytes but must have at least 2,000,000" in refused(
        server, tmp_path / "x.pt", expected=Expected(2_000_000)
    )
    assert files_beside(tmp_path / "x.pt") == set()
    server.length = -1
    assert "does not send the size of the file" in refused(server, tmp_path / "x.pt")


@pytest.mark.parametrize(
    "kind, page", [("text/html; charset=utf-8", b"sorry"), ("application/x", b"\n<!doctype html>")]
)
def test_an_error_page_is_refused(server, tmp_path, kind, page):
    server.type, server.content = kind, page
    assert "web page" in refused(server, tmp_path / "x.pt")
    assert len(server.requests) == 1


@pytest.mark.parametrize("statuses, tries", [([404], 1), ([403], 1), ([503] * 9, 3)])
def test_server_errors(server, tmp_path, statuses, tries):
    server.statuses = list(statuses)
    assert f"the server answers {statuses[0]}" in refused(server, tmp_path / "x.pt")
    assert len(server.requests) == tries


def test_temporary_server_errors(server, tmp_path):
    server.statuses = [503, 429]
    assert fetch(server, tmp_path / "x.pt") == CONTENT


def test_a_part_that_the_server_cannot_resume(server, tmp_path):
    server.drop_after, server.statuses = [1_000_000], []
    steps = download.download(server.url, tmp_path / "x.pt")
    while next(steps).done < 1_000_000:
        pass
    server.statuses = [416]
    list(steps)
    assert (tmp_path / "x.pt").read_bytes() == CONTENT and server.requests == ["", "bytes=1000000-", ""]


def test_no_server(server, tmp_path):
    server.server_close()
    assert "refused" in refused(server, tmp_path / "x.pt")


def test_mirrors_are_tried_in_order(server, tmp_path, monkeypatch):
    base = server.url.removesuffix("/x.pt")
    monkeypatch.setenv("ADMG_MIRROR", f"http://127.0.0.1:1/nothing, {base}/mirror/")
    url = "https://example.invalid/published/x.pt"
    assert download.sources(url) == ["http://127.0.0.1:1/nothing/x.pt", f"{base}/mirror/x.pt", url]
    assert download.fetch(url, tmp_path / "x.pt", progress=False).read_bytes() == CONTENT
    monkeypatch.setenv("ADMG_MIRROR", "/some/folder")
    with pytest.raises(ValueError, match="ADMG_MIRROR must hold URLs"):
        download.sources(url)


def test_a_file_must_be_the_one_that_was_first_used(server, tmp_path):
    path = tmp_path / "x.pt"
    fetch(server, path)
    path.unlink()
    server.content, server.etag = CONTENT[::-1], '"v2"'
    message = refused(server, path)
    assert f"its SHA-256 is {hashlib.sha256(CONTENT[::-1]).hexdigest()}, not {SHA256}" in message
    assert "remove x.pt.json" in message
    (tmp_path / "x.pt.json").unlink()
    assert fetch(server, path) == CONTENT[::-1]


def test_a_file_placed_by_hand_is_trusted_only_at_first_use(server, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(CONTENT)
    assert fetch(server, path, forbid=True) == CONTENT and server.requests == []
    assert json.loads((tmp_path / "x.pt.json").read_text())["sha256"] == SHA256
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(DownloadError, match=r"^x\.pt is not the file that was first used on 20"):
        fetch(server, path)
    path.write_bytes(CONTENT)  # a new modification time, the same content
    assert fetch(server, path) == CONTENT


def test_an_invalid_file_placed_by_hand_is_refused(server, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match="1,000 bytes but must have at least 2,000: it is incomplete"):
        fetch(server, path, expected=Expected(2000))
    path.write_bytes(b"<html>not here</html>")
    with pytest.raises(DownloadError, match="is a web page"):
        fetch(server, path)
    assert files_beside(path) == {"x.pt"}


def test_a_known_hash(server, tmp_path):
    other = "0" * 64
    message = refused(server, tmp_path / "x.pt", expected=Expected(sha256=other))
    assert f"is not the published file: its SHA-256 is {SHA256}, not {other}" in message
    assert fetch(server, tmp_path / "x.pt", expected=Expected(sha256=SHA256)) == CONTENT


MD5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
OTHER = base64.b64encode(hashlib.md5(b"other").digest()).decode()


@pytest.mark.parametrize(
    "headers, of_part",
    [
        ({"Content-MD5": "{}"}, True),
        ({"x-ms-blob-content-md5": "{}"}, False),
        ({"x-goog-hash": "crc32c=AAAAAA==,md5={}"}, False),
    ],
)
def test_the_md5_that_the_server_states(server, tmp_path, headers, of_part):
    """Compared with the whole file, also after an interruption; a Content-MD5 of the rest alone does not count."""
    server.headers = {name: value.format(OTHER) for name, value in headers.items()}
    message = refused(server, tmp_path / "x.pt")
    stated, found = (hashlib.md5(content).hexdigest() for content in (b"other", CONTENT))
    assert f"x.pt was damaged in transit: its MD5 is {found}, and the server states {stated}" in message
    assert files_beside(tmp_path / "x.pt") == set()
    server.headers, server.drop_after = {name: value.format(MD5) for name, value in headers.items()}, [1_000_000]
    assert fetch(server, tmp_path / "x.pt") == CONTENT
    server.headers, server.drop_after = {name: value.format(OTHER) for name, value in headers.items()}, []
    part, known = (tmp_path / f"y.pt{suffix}" for suffix in (".part", ".part.json"))
    part.write_bytes(CONTENT[:1000])
    write_json(known, connection.Part(server.url, len(CONTENT), server.etag))
    if of_part:
        assert fetch(server, tmp_path / "y.pt") == CONTENT
    else:
        assert "was damaged in transit" in refused(server, tmp_path / "y.pt")


@pytest.mark.parametrize("value", ["", "no base64", "AAAA"])
def test_what_is_no_md5_is_ignored(server, tmp_path, value):
    server.headers = {"Content-MD5": value, "x-goog-hash": f"md5={value}"}
    assert fetch(server, tmp_path / "x.pt") == CONTENT


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline(server, tmp_path, monkeypatch, value):
    assert "downloads are off" in refused(server, tmp_path / "x.pt", forbid=True)
    monkeypatch.setenv("ADMG_OFFLINE", value)
    assert "downloads are off" in refused(server, tmp_path / "x.pt")
    assert server.requests == []
    monkeypatch.setenv("ADMG_OFFLINE", "0")
    assert fetch(server, tmp_path / "x.pt") == CONTENT


def test_a_full_disk_is_reported_before_anything_is_written(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(connection.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        DownloadError, match=r"needs 0\.00 GB more, and .* has 0\.00 GB left: free some space, or set ADMG_"
    ):
        fetch(server, tmp_path / "x.pt")
    assert files_beside(tmp_path / "x.pt") == set()


@pytest.mark.thorough
def test_concurrent_threads_download_once(server, tmp_path):
    server.hold.clear()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(server, tmp_path / "x.pt"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    threading.Timer(0.3, server.hold.set).start()
    for thread in threads:
        thread.join(20)
    assert results == [CONTENT] * 4 and server.requests == [""]
    assert files_beside(tmp_path / "x.pt") == {"x.pt", "x.pt.json"}


@pytest.mark.process
def test_concurrent_processes_download_once(server, tmp_path):
    server.hold.clear()
    code = "import sys; from admg.checkpoints import download; download.fetch(sys.argv[1], sys.argv[2], progress=False)"
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "x.pt")]
    first = subprocess.Popen(command)
    second = subprocess.Popen(command)
    threading.Timer(1.5, server.hold.set).start()
    assert first.wait(30) == second.wait(30) == 0
    assert server.requests == [""] and (tmp_path / "x.pt").read_bytes() == CONTENT


@pytest.mark.process
def test_the_lock_of_a_killed_process_is_released(server, tmp_path):
    server.hold.clear()
    code = "import sys; from admg.checkpoints import download; download.fetch(sys.argv[1], sys.argv[2], progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path / "x.pt")])
    while not server.requests:
        assert process.poll() is None
    process.kill()
    process.wait()
    server.hold.set()
    assert fetch(server, tmp_path / "x.pt") == CONTENT


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ADMG_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert download.cache_folder() == Path("~/.cache/admg").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "admg"
    monkeypatch.setenv("ADMG_HOME", "~/models")
    assert download.cache_folder() == Path("~/models").expanduser()
