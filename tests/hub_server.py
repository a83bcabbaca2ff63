"""A stand-in for the Hugging Face Hub on the loopback interface: the parts of its HTTP interface that models need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """The repositories of the stand-in: the files of each commit, and the commit of each branch or tag."""

    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    url: str = ""

    def commit(self, repo: str, files: Files, ref: str = "main") -> str:
        """Add a commit, and return its hash."""
        commits = self.commits.setdefault(repo, {})
        sha = hashlib.sha1(f"{repo} {ref} {len(commits)}".encode()).hexdigest()
        commits[sha] = dict(files)
        self.refs.setdefault(repo, {})[ref] = sha
        return sha

    def files(self, repo: str, revision: str = "main") -> Files:
        return self.commits[repo][self.refs[repo].get(revision, revision)]

    def sha(self, repo: str, revision: str) -> str | None:
        found = self.refs[repo].get(revision, revision)
        return found if found in self.commits[repo] else None


@contextmanager
def running() -> Iterator[Hub]:
    """Run the server in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            return self._about(found[1], found[2] or "revision", found[3] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        return self._error(404, "EntryNotFound")

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo not in self.hub.commits:
                self.hub.commit(repo, {})
            return self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            asked = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self._json({"files": asked})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(found[1], found[2], body)
        return self._error(404, "EntryNotFound")

    def _about(self, repo: str, what: str, revision: str) -> None:
        sha = self._known(repo, revision)
        if sha is None:
            return
        files = self.hub.commits[repo][sha]
        if what == "tree":
            listed = [{"type": "file", "path": n, "size": len(b), "oid": _blob(b)} for n, b in files.items()]
            return self._json(listed)
        self._json({"id": repo, "modelId": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, repo: str, revision: str, name: str) -> None:
        sha = self._known(repo, revision)
        if sha is None:
            return
        if name not in self.hub.commits[repo][sha]:
            return self._error(404, "EntryNotFound")
        data = self.hub.commits[repo][sha][name]
        self.send_response(200)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{_blob(data)}"')
        self._send(data)

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        if self._known(repo, revision) is None:
            return
        files = dict(self.hub.files(repo, revision))
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                value = operation["value"]
                files[value["path"]] = base64.b64decode(value["content"])
        sha = self.hub.commit(repo, files, revision)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "hookOutput": ""})

    def _known(self, repo: str, revision: str) -> str | None:
        """Return the commit of a revision; answer with the Hub's error without one."""
        if repo in self.hub.gated:
            self._error(403, "GatedRepo")
        elif repo not in self.hub.commits:
            self._error(404, "RepoNotFound")
        elif (sha := self.hub.sha(repo, revision)) is None:
            self._error(404, "RevisionNotFound")
        else:
            return sha
        return None

    def _json(self, content: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._send(json.dumps(content).encode())

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self._send(b"")

    def _send(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob(data: bytes) -> str:
    """Return the hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
