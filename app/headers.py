"""Security headers of every answer, and in a page a nonce for its scripts.

Plain ASGI, because Starlette's BaseHTTPMiddleware would hold back streams.
"""

import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer, beside the Content-Security-Policy."""

EMBEDDERS = ("https://huggingface.co",)
"""Sites that may show the page in a frame of theirs: Spaces are seen so."""


class Answer:
    """Sends an answer on with the headers added, but holds one of status 500 back: it may be an error's."""

    def __init__(self, send: Send, path: str) -> None:
        self._send, self._path = send, path
        self._back: list[Message] = []
        self.started = False
        self.lasts = False
        """Whether it is a stream of events, which has no length and may end anywhere."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = _with_headers(message, private="/file=" in self._path)
            if message["status"] == 500:
                self._back = [message]
                return
            self.lasts = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            self.started = True
        elif self._back:
            self._back.append(message)
            return
        await self._send(message)

    def drop(self) -> None:
        """Forgets what was held back."""
        self._back = []

    async def release(self) -> None:
        """Sends what was held back: it was meant so."""
        for message in self._back:
            await self._send(message)
        self._back = []


class Pages:
    """ASGI middleware next to the routes, before Gradio's own compresses: a nonce for the scripts of a page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, _Page(send).send if scope["type"] == "http" else send)


class _Page:
    """Sends an answer on; a page once it is whole, with a nonce."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._page: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                self._start = message  # its length changes with the nonces
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._page.append(message.get("body", b""))
            if message.get("more_body"):
                return
            nonce = secrets.token_urlsafe(16)
            # Gradio writes values into this page as JSON without a `<`: every `<script` in it is its own
            page = b"".join(self._page).replace(b"<script", f'<script nonce="{nonce}"'.encode())
            changed = {b"content-security-policy": policy(nonce).encode(), b"cache-control": b"private"}
            if page:  # but for HEAD, which sends no page
                changed[b"content-length"] = str(len(page)).encode()
            others = [(name, value) for name, value in self._start["headers"] if name.lower() not in changed]
            await self._send({**self._start, "headers": [*others, *changed.items()]})
            self._start = None
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


def _with_headers(start: Message, *, private: bool) -> Message:
    """The same answer with the headers; a page has its own policy already. Scripts of other sites may not read it."""
    added = {**HEADERS, **({"Cache-Control": "private"} if private else {})}
    names = {name.lower().encode() for name in added}
    others = [
        (name, value)
        for name, value in start["headers"]
        if name.lower() not in names and not name.lower().startswith(b"access-control-")
    ]
    if not any(name.lower() == b"content-security-policy" for name, _ in others):
        added["Content-Security-Policy"] = policy(None)
    return {**start, "headers": [*others, *((name.lower().encode(), value.encode()) for name, value in added.items())]}
