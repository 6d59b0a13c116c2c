"""The part of the Hub that publishing a Space speaks with, on this machine: it takes nothing on trust.

Uploads are checked against the hashes under which they were announced, commits against what was uploaded, front matter
against what a Gradio Space needs. `faults` makes it fail where a test wants it to.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_" + "t" * 34
USER = "someone"
SHORT_DESCRIPTION = 60
"""Letters that the Hub accepts."""


@dataclass
class Space:
    """One repository."""

    sdk: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the server knows, and what it was asked."""

    spaces: dict[str, Space] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256, whether committed or not."""
    received: list[str] = field(default_factory=list)
    """SHA-256 of every large file in the order of arrival, repetitions included."""
    requests: list[str] = field(default_factory=list)
    stages: list[dict[str, object]] = field(default_factory=lambda: [{"stage": "BUILDING"}, {"stage": "RUNNING"}])
    """What is said of the build, one after the other; the last one for ever."""
    faults: dict[str, Callable[[], tuple[int, str] | None]] = field(default_factory=dict)
    """Part of the protocol → status and message to answer with instead, or None to go on."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    """One request. The routes are the methods of ROUTES."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        try:
            with self.hub.lock:
                self.hub.requests.append(f"{self.command} {path}")
                for method, pattern, part, route in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if method == self.command and match:
                        fault = self.hub.faults.get(part, lambda: None)()
                        if fault is not None:
                            raise Refused(*fault)
                        if part != "object" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                            raise Refused(401, "Invalid credentials in Authorization header")
                        return self.send(200, route(self.hub, body, *match.groups()))
            raise Refused(404, f"{self.command} {path} is no part of this Hub")
        except Refused as refusal:
            self.send(refusal.status, {"error": refusal.message}, refusal)

    do_GET = do_POST = do_PUT = answer

    def send(self, status: int, value: object, refusal: Refused | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if refusal:
            self.send_header("X-Error-Message", refusal.message)
            self.send_header("X-Error-Code", refusal.code)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def whoami(hub: Hub, body: bytes) -> object:
    return {"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}}


def info(hub: Hub, body: bytes, repo: str) -> object:
    space = _space(hub, repo)
    return {
        "_id": "1",
        "id": repo,
        "sdk": space.sdk,
        "private": space.private,
        "sha": space.commits[-1] if space.commits else "0" * 40,
        "siblings": [{"rfilename": path} for path in sorted(space.files)],
    }


def create(hub: Hub, body: bytes) -> object:
    asked = json.loads(body)
    assert asked["type"] == "space", asked
    owner, repo = asked["organization"], f"{asked['organization']}/{asked['name']}"
    if owner != USER:
        raise Refused(403, f"You don't have the rights to create a Space under the namespace {owner!r}")
    if repo in hub.spaces:
        raise Refused(409, "You already created this space repo")
    files = {".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"---\nsdk: gradio\n---\n"}
    hub.spaces[repo] = Space(asked["sdk"], asked.get("visibility") == "private", files)
    return {"url": f"{hub.url}/spaces/{repo}", "name": repo, "id": "1"}


def validate(hub: Hub, body: bytes) -> object:
    asked = json.loads(body)
    assert asked["repoType"] == "space"
    _check_front_matter(asked["content"])
    return {"errors": [], "warnings": []}


def tree(hub: Hub, body: bytes, repo: str) -> object:
    files = sorted(_space(hub, repo).files.items())
    return [{"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)} for path, data in files]


def preupload(hub: Hub, body: bytes, repo: str) -> object:
    files = _space(hub, repo).files
    found = []
    for file in json.loads(body)["files"]:
        large = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
        old = files.get(file["path"])
        oid = None if old is None else hashlib.sha256(old).hexdigest() if large else _git_hash(old)
        mode = "lfs" if large else "regular"
        found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": found}


def batch(hub: Hub, body: bytes, repo: str) -> object:
    asked = json.loads(body)
    assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256", asked
    _space(hub, repo)
    objects = []
    for one in asked["objects"]:
        answer = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.objects:
            actions = {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}, "verify": {"href": f"{hub.url}/verify"}}
            answer["actions"] = actions
        objects.append(answer)
    return {"transfer": "basic", "objects": objects}


def store(hub: Hub, body: bytes, oid: str) -> object:
    hub.received.append(oid)
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "The content is not what was announced")
    hub.objects[oid] = body
    return {}


def verify(hub: Hub, body: bytes) -> object:
    asked = json.loads(body)
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(400, "The size is not what was announced")
    return {}


def commit(hub: Hub, body: bytes, repo: str) -> object:
    space = _space(hub, repo)
    files = dict(space.files)
    header, *changes = (json.loads(line) for line in body.splitlines())
    assert header["key"] == "header" and header["value"]["summary"], header
    for change in changes:
        value = change["value"]
        match change["key"]:
            case "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            case "lfsFile":
                if len(hub.objects.get(value["oid"], b"")) != value["size"]:
                    raise Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = hub.objects[value["oid"]]
            case "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            case other:
                raise Refused(400, f"{other} is no change that this Hub knows")
    _check_front_matter(files["README.md"].decode())
    space.files = files
    space.commits.append(hashlib.sha1(body).hexdigest())
    return {"commitUrl": f"{hub.url}/spaces/{repo}/commit/{space.commits[-1]}", "commitOid": space.commits[-1]}


def runtime(hub: Hub, body: bytes, repo: str) -> object:
    space = _space(hub, repo)
    stage = hub.stages.pop(0) if len(hub.stages) > 1 else hub.stages[0]
    return {"hardware": {"current": None, "requested": "cpu-basic"}, "sha": space.commits[-1], **stage}


ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami", whoami),
    ("GET", r"/api/spaces/([^/]+/[^/]+)", "info", info),
    ("GET", r"/api/spaces/([^/]+/[^/]+)/revision/main", "info", info),
    ("POST", r"/api/repos/create", "create", create),
    ("POST", r"/api/validate-yaml", "validate", validate),
    ("GET", r"/api/spaces/([^/]+/[^/]+)/tree/main", "tree", tree),
    ("POST", r"/api/spaces/([^/]+/[^/]+)/preupload/main", "preupload", preupload),
    ("POST", r"/spaces/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch", batch),
    ("PUT", r"/objects/([0-9a-f]{64})", "object", store),
    ("POST", r"/verify", "verify", verify),
    ("POST", r"/api/spaces/([^/]+/[^/]+)/commit/main", "commit", commit),
    ("GET", r"/api/spaces/([^/]+/[^/]+)/runtime", "runtime", runtime),
]
"""Method, path, part of the protocol, function."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub without any Space, at its `url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def front_matter(readme: str) -> dict[str, object]:
    """The YAML block that a Space's README.md begins with."""
    block = re.match(r"---\n(.*?)\n---\n", readme, re.DOTALL)
    assert block, "README.md has no front matter"
    return yaml.safe_load(block[1])


def _check_front_matter(readme: str) -> None:
    given = front_matter(readme)
    if given.get("sdk") != "gradio" or not isinstance(given.get("sdk_version", ""), str):
        raise Refused(400, '"sdk" must be gradio and "sdk_version" a string')
    if len(given.get("short_description", "")) > SHORT_DESCRIPTION:
        raise Refused(400, f'"short_description" is longer than {SHORT_DESCRIPTION} letters')


def _space(hub: Hub, repo: str) -> Space:
    if repo not in hub.spaces:
        raise Refused(404, "Repository not found", "RepoNotFound")
    return hub.spaces[repo]


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
