"""A Hub for tests: the part of its protocol that huggingface_hub downloads models with, over folders on the disk.

It announces no xet storage, so that files come over plain HTTP, and can be told to misbehave.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

LARGE = (".safetensors", ".bin", "tokenizer.json")
"""What the Hub keeps in large file storage, named by its SHA-256; the rest is named by git's SHA-1."""


@dataclass
class Hub:
    """Repositories by id, and what is to go wrong."""

    repositories: dict[str, Path]
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Repository → status and X-Error-Code of every answer about it."""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """File → after how many bytes its next downloads break off."""
    stalled: dict[str, int] = field(default_factory=dict)
    """File → after how many bytes its download waits for `go_on`."""
    reached: threading.Event = field(default_factory=threading.Event)
    """A download waits."""
    go_on: threading.Event = field(default_factory=threading.Event)
    garbled: set[str] = field(default_factory=set)
    """Files whose last byte arrives altered."""
    portal: dict[str, tuple[int, dict[str, str], str]] = field(default_factory=dict)
    """What somebody else answers in the Hub's place, by "api", "files" or "signin": status, headers, body."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path below the repository, and Range of every request for a file."""
    url: str = ""

    def files(self, repository: str) -> dict[str, Path]:
        root = self.repositories[repository]
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}

    def commit(self, repository: str) -> str:
        """Another content, another commit."""
        sums = [name + describe(path)["sum"] for name, path in self.files(repository).items()]
        return hashlib.sha1("".join(sums).encode()).hexdigest()

    def downloads(self, ending: str = "") -> list[tuple[str, str | None]]:
        """File and Range of every GET of a file, in order."""
        return [(path, part) for method, path, part in self.asked if method == "GET" and path.endswith(ending)]


def describe(path: Path) -> dict[str, object]:
    """Size and sum of a file as the Hub states them."""
    stat = path.stat()
    return _described(path, stat.st_size, stat.st_mtime_ns)


def online(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """huggingface_hub asks the Hub at `url` from now on, without a token, and keeps files in `cache`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    close_session()


@lru_cache
def _described(path: Path, size: int, changed: int) -> dict[str, object]:
    data = path.read_bytes()
    git = hashlib.sha1(f"blob {size}\0".encode() + data).hexdigest()
    large = path.name.endswith(LARGE)
    return {"size": size, "git": git, "large": large, "sum": hashlib.sha256(data).hexdigest() if large else git}


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        place = "signin" if parts[:1] == ["signin"] else "api" if api else "files"
        if place in self.hub.portal:
            self._reply(*self.hub.portal[place])
            return
        repository, what, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
        if repository in self.hub.refused:
            self._refuse(*self.hub.refused[repository])
        elif repository not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        elif api:
            self._json(self._tree(repository) if what == ["tree"] else self._about(repository))
        elif what == ["resolve"]:
            self._file(repository, "/".join(rest[1:]))
        else:
            self._refuse(404, "EntryNotFound")

    def _about(self, repository: str) -> dict[str, object]:
        siblings = []
        for name, path in self.hub.files(repository).items():
            about = describe(path)
            large = {"size": about["size"], "sha256": about["sum"], "pointerSize": 134}
            sibling = {"rfilename": name, "size": about["size"], "blobId": about["git"]}
            siblings.append(sibling | ({"lfs": large} if about["large"] else {}))
        return {"id": repository, "sha": self.hub.commit(repository), "siblings": siblings}

    def _tree(self, repository: str) -> list[dict[str, object]]:
        entries = []
        for name, path in self.hub.files(repository).items():
            about = describe(path)
            large = {"oid": about["sum"], "size": about["size"], "pointerSize": 134}
            entry = {"type": "file", "path": name, "size": about["size"], "oid": about["git"]}
            entries.append(entry | ({"lfs": large} if about["large"] else {}))
        return entries

    def _file(self, repository: str, name: str) -> None:
        part = self.headers.get("Range")
        self.hub.asked.append((self.command, name, part))
        path = self.hub.files(repository).get(name)
        if path is None:
            self._refuse(404, "EntryNotFound")
            return
        data = path.read_bytes()
        if name in self.hub.garbled:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(part.removeprefix("bytes=").rstrip("-")) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("X-Repo-Commit", self.hub.commit(repository))
        self.send_header("ETag", f'"{describe(path)["sum"]}"')
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.hub.stalled:
            self.wfile.write(data[: self.hub.stalled[name]])
            self.hub.reached.set()
            self.hub.go_on.wait()
            self.close_connection = True
            return
        cuts = self.hub.cut.get(name)
        if cuts:
            self.wfile.write(data[start : cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reply(self, status: int, headers: dict[str, str], text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[Hub]:
    """The Hub at a free port of this machine."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
