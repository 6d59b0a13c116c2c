"""Attacks below Gradio: connections that never end, and requests that make no sense."""

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from tests.attacks import Attacker, attack

HEADERS = (
    "X-Content-Type-Options",
    "Referrer-Policy",
    "Permissions-Policy",
    "Cross-Origin-Resource-Policy",
    "Content-Security-Policy",
)
"""What every answer carries."""
HELD = 40.0
"""Seconds for which connections are held."""


def connected(attacker: Attacker, first: bytes) -> socket.socket:
    """A connection over which `first` was sent."""
    address = urlsplit(attacker.url)
    there = socket.create_connection((address.hostname, address.port), timeout=5, source_address=(attacker.address, 0))
    there.sendall(first)
    return there


def held(attacker: Attacker, number: int, first: bytes, *, slowly: bool) -> None:
    """So many connections for a while, to which a byte a second is added or none; heard: how they end."""
    there: list[socket.socket] = []
    for _ in range(number):
        try:
            there.append(connected(attacker, first))
        except OSError as problem:
            attacker.hear(f"no connection ({type(problem).__name__})")
    end = time.monotonic() + HELD * min(1.0, attacker.scale)
    closed = set()
    while time.monotonic() < end and len(closed) < len(there):
        for each in there:
            if each in closed:
                continue
            try:
                if slowly:
                    each.sendall(b"a")
                each.setblocking(False)
                answer = each.recv(4096)
            except BlockingIOError:
                continue
            except OSError:
                answer = b""
            closed.add(each)
            attacker.hear(f"closed: {answer.partition(bytes([13]))[0].decode(errors='replace') or 'without a word'}")
        time.sleep(1)
    attacker.heard["held to the end"] += len(there) - len(closed)
    for each in there:
        each.close()


@attack("half-open connections", "1,100 connections whose request never ends, held for 40 s")
def half_open(attacker: Attacker) -> Iterator[None]:
    yield
    held(attacker, attacker.count(1100), b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", slowly=False)


@attack("slow bodies", "300 connections that send a header or a body byte by byte, held for 40 s")
def slow(attacker: Attacker) -> Iterator[None]:
    post = b"POST /gradio_api/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\nContent-Type: %s\r\n\r\n"
    firsts = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        post % (b"queue/join", b"application/json"),
        post
        % (b"upload", b"multipart/form-data; boundary=x")
        + b'--x\r\nContent-Disposition: form-data; name="files"; '
        b'filename="x.png"\r\n\r\n',
    ]
    yield
    attacker.at_once(len(firsts), lambda number: held(attacker, attacker.count(100), firsts[number], slowly=True))


@attack("malformed requests", "260 requests without sense, of unknown sessions, of other hosts and sites")
def malformed(attacker: Attacker) -> Iterator[None]:
    kind = {"Content-Type": "application/json"}
    evil = {"Origin": "https://evil.example", **kind}
    bodies: list[object] = [None, [], "x", {}, {"data": None}, {"data": []}, {"data": [[]] * 50}, {"fn_index": 10**6}]
    bodies += [
        {"data": [], "session_hash": name, "fn_index": index} for name in ("nobody", "", 7) for index in (0, 7, -1)
    ]
    api = "gradio_api/"
    posts = ("run/ask", "api/inspect", "call/ask", "call/v2/ask", "call/nothing", "run/predict", "queue/join")
    posts = (*posts, "cancel", "reset", "upload")
    requests = [("POST", api + path, kind, json.dumps(body).encode()) for path in posts for body in bodies]
    requests += [("POST", api + path, kind, data) for path in posts for data in (b"", b"{", b"\xff" * 99, b"[" * 9999)]
    paths = (
        "queue/data?session_hash=nobody",
        "queue/data",
        "call/ask/nothing",
        "call/nothing/x",
        "heartbeat/x",
        "info",
    )
    paths = (*paths, "file=", "file=/etc/passwd", "file=%00", "upload_progress?upload_id=x", "queue/status", "user")
    requests += [("GET", api + path, {}, b"") for path in paths]
    requests += [
        (method, path, {}, b"") for method in ("PUT", "DELETE", "TRACE", "X") for path in ("", "health", "config")
    ]
    for host in ("evil.example", "127.0.0.1:1", "[::1]", "a" * 4000, ""):
        requests += [("GET", path, {"Host": host}, b"") for path in ("", "health", "config")]
    requests += [("POST", f"{api}{path}", evil, b"{}") for path in posts]
    foreign = {"Origin": "https://evil.example"}
    yield
    visitor = attacker.visitor()
    bare: dict[str, list[str]] = {}

    def answered(answer: httpx.Response, path: str) -> None:
        attacker.hear(f"{answer.status_code}")
        if missing := [name for name in HEADERS if name not in answer.headers]:
            bare.setdefault(path, missing)

    for method, path, headers, body in requests:
        try:
            with visitor.http.stream(method, path, headers=headers, content=body, timeout=10) as answer:
                answered(answer, f"{method} /{path.partition('?')[0]} ({answer.status_code})")
                endless = answer.headers.get("content-type", "").startswith("text/event-stream")
                attacker.check("" if endless else answer.read().decode(errors="replace"))
        except httpx.HTTPError as problem:
            attacker.hear(f"no answer ({type(problem).__name__})")
    taken = visitor.http.post(f"{api}upload", headers=foreign, files={"files": ("x.png", b"image")})
    answered(taken, "an upload of another site")
    if taken.status_code == 200:
        attacker.breach("an upload that another site's page sent was taken")
    if bare:
        path, missing = next(iter(bare.items()))
        attacker.breach(f"{len(bare)} kinds of answers lack headers, such as {path}: {', '.join(missing)}")
