"""What stands between the network and Gradio: security headers on every answer, and requests that are refused unread.

Plain ASGI, because Starlette's BaseHTTPMiddleware would hold back streams.
"""

import json
import math
import re
import secrets
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.limits import MAX_BODY, MAX_NESTING, Limits

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer, beside the Content-Security-Policy."""

EMBEDDERS = ("https://huggingface.co",)
"""Sites that may show the page in a frame of theirs: Spaces are seen so."""

OPEN = (
    r"/|/config/?|/health|/plotly\.min\.js|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?"
    r"|/(assets|static)/.*"
    r"|/gradio_api/(info|openapi\.json|app_id|user|login_check|startup-events|theme\.css|cancel|reset|upload"
    r"|queue/(join|data|status)|heartbeat/[^/]*)/?"
    r"|/gradio_api/(run|api|call|call/v2)/.*|/gradio_api/file=.*"
)
"""Paths that page and programs need; a public instance answers no other. Gradio's proxies, editors, monitors and
recorders are among the others."""

_ADDRESS = re.compile(r"^\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class Refused(Exception):
    """A request that is not passed on: status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """ASGI middleware around Gradio's app."""

    def __init__(self, app: ASGIApp, *, limits: Limits, public: bool) -> None:
        self.app, self.limits, self.public = app, limits, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes HTTP requests on that may be passed on; answers the others itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, scope["path"])
        try:
            receive = await self._admitted(scope, receive)
        except Refused as refusal:
            said = JSONResponse({"detail": str(refusal), "error": str(refusal)}, status_code=refusal.status)
            await said(scope, receive, answer.send)
            return
        await self.app(scope, receive, answer.send)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """What the app may read the request from. Raises Refused."""
        path = scope["path"]
        if self.public:
            if not re.fullmatch(OPEN, path, re.DOTALL):
                raise Refused(404, "There is nothing here.")
            named = path.partition("/file=")[2]
            if _ADDRESS.match(unquote(named)):
                raise Refused(403, "Files are not fetched from addresses here.")
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if path.rstrip("/").endswith("/upload"):
            return receive  # counted as it arrives, see uploads.py
        body = await _whole(receive, MAX_BODY)
        if not headers.get(b"content-type", "").startswith("multipart/"):
            _check_json(body, addresses=not self.public)
        return _replayed(body, receive)


class _Answer:
    """Sends an answer on with the headers added, and a nonce for the scripts of a page."""

    def __init__(self, send: Send, path: str) -> None:
        self._send, self._path = send, path
        self._start: Message | None = None
        self._page: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if kind.startswith(b"text/html"):
                self._start = message  # its length changes with the nonces
                return
            message = _with_headers(message, policy(None), private="/file=" in self._path)
        elif message["type"] == "http.response.body" and self._start is not None:
            self._page.append(message.get("body", b""))
            if message.get("more_body"):
                return
            nonce = secrets.token_urlsafe(16)
            # Gradio writes values into this page as JSON without a `<`: every `<script` in it is its own
            page = b"".join(self._page).replace(b"<script", f'<script nonce="{nonce}"'.encode())
            start, self._start = _with_headers(self._start, policy(nonce), private=True), None
            if dict(start["headers"]).get(b"content-length", b"0") != b"0":  # but for HEAD, which sends no page
                start["headers"] = [
                    (name, str(len(page)).encode() if name == b"content-length" and page else value)
                    for name, value in start["headers"]
                ]
            await self._send(start)
            message = {"type": "http.response.body", "body": page}
        await self._send(message)


def policy(nonce: str | None) -> str:
    """The Content-Security-Policy: everything from here, scripts in a page only where they carry `nonce`.

    Gradio runs the scripts of gr.HTML with `new Function`, hence 'unsafe-eval', and sets styles in the page.
    """
    scripts = f"'self' 'unsafe-eval' 'nonce-{nonce}'" if nonce else "'self'"
    rules = {
        "default-src": "'self'",
        "script-src": scripts,
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "media-src": "'self' data: blob:",
        "connect-src": "'self' data: blob:",  # figures are fetched from their own data to be downloaded
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": " ".join(("'self'", *EMBEDDERS)),
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _with_headers(start: Message, security: str, *, private: bool) -> Message:
    added = {**HEADERS, "Content-Security-Policy": security} | ({"Cache-Control": "private"} if private else {})
    names = {name.lower().encode() for name in added}
    kept = [(name, value) for name, value in start["headers"] if name.lower() not in names]
    return {**start, "headers": [*kept, *((name.lower().encode(), value.encode()) for name, value in added.items())]}


async def _whole(receive: Receive, most: int) -> bytes:
    """The body of a request. Raises Refused for one above `most` bytes."""
    body = bytearray()  # and not a list to be counted: it may come byte by byte
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request ended before it was complete.")
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, f"The request is longer than {most:,} bytes.")
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives `body` once, then what the connection says, which is how an app hears of its end."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(messages, None) or await receive()

    return replay


def _check_json(body: bytes, *, addresses: bool) -> None:
    """Raises Refused for what is no plain JSON: numbers that are not finite, half characters, depth without end.

    Gradio answers with what it was given, and could not write these. Without `addresses`, a file that is named by an
    address is refused too, for Gradio would fetch it, however large.
    """
    if not body:
        return
    try:
        pending: Iterable[object] = [json.loads(body)]
    except (ValueError, RecursionError) as problem:
        raise Refused(400, "The request is not JSON that can be read.") from problem
    for _ in range(MAX_NESTING):
        inner: list[object] = []
        for value in pending:
            if isinstance(value, dict):
                inner += [*value.keys(), *value.values()]
                if not addresses and isinstance(value.get("path"), str) and _ADDRESS.match(value["path"]):
                    raise Refused(403, "Files are not fetched from addresses here; upload them.")
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise Refused(400, "The request holds a number that is not finite.")
            elif isinstance(value, int) and abs(value) >= 2**63:
                raise Refused(400, "The request holds a number above 2^63.")
            elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise Refused(400, "The request holds half a character (a lone surrogate), which is not text.")
        if not inner:
            return
        pending = inner
    raise Refused(400, "The request is nested too deeply.")
