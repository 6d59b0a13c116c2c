"""An ASGI app between the network and Gradio: refuses requests unread, and answers those that Gradio fails at.

Plain ASGI, because Starlette's BaseHTTPMiddleware would hold back streams.
"""

import contextlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from urllib.parse import parse_qs, unquote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.connections import SHARE, counted_as
from app.errors import UNEXPECTED, sentence
from app.gradio_private import FnIndexInferError
from app.headers import Answer
from app.limits import MAX_BODIES, MAX_BODY, MAX_NESTING, MAX_STREAMS, Limits
from app.quiet import Quiet

OPEN = (
    r"/|/config/?|/health|/plotly\.min\.js|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?"
    r"|/(assets|static)/.*"
    r"|/gradio_api/(info|openapi\.json|app_id|user|login_check|startup-events|theme\.css|cancel|reset|upload"
    r"|queue/(join|data|status)|heartbeat/[^/]*)/?"
    r"|/gradio_api/(run|api|call|call/v2)/.*|/gradio_api/file=.*"
)
"""Paths that page and programs need; a public instance answers no other. Gradio's proxies, editors, monitors and
recorders are among the others."""

_API = r"(?:/[^/]+)*/gradio_api/"
_UPLOAD = re.compile(_API + "upload/?")
_STREAM = re.compile(
    _API + r"(?:heartbeat/(?P<heartbeat>[^/]*)|queue/data|upload_progress|call/(?:v2/)?[^/]+/(?P<event>[^/]+))/?"
)
"""Answers that last: a tab's heartbeat, what is said to it, what becomes of a program's call."""
_ADDRESS = re.compile(r"^\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)

quiet = Quiet(logging.getLogger("inscape"))


class Refused(Exception):
    """A request that is not passed on: status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """ASGI app around Gradio's and all of its middleware.

    Args:
        ours: whether the page may be asked for by a name; see `address.ours`.
        connections: that the server has; most of them may be answers that last.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, public: bool, ours: Callable[[str], bool], connections: int
    ) -> None:
        self.app, self.limits, self.public = app, limits, public
        self.ours, self.connections = ours, connections
        self._held = 0  # bytes of bodies that are being read
        self._streams: Counter[tuple[str, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes HTTP requests on that may be passed on; answers the others itself, and what Gradio fails at."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = Answer(send, scope["path"])
        try:
            with self._counted_stream(scope):
                receive = await self._admitted(scope, receive)
                await self.app(scope, receive, answer.send)
                await answer.release()
        except Refused as refusal:
            await self._refuse(refusal, scope, receive, answer)
        except ClientDisconnect:
            await self._refuse(Refused(400, "The request ended before it was complete."), scope, receive, answer)
        except Exception as problem:  # the last place before Uvicorn, whose answer would have no headers and no words
            if answer.started and not answer.lasts:
                raise  # what has a length must not look complete
            refusal = _mistake(problem)
            if refusal is None:
                refusal = Refused(500, UNEXPECTED)
                quiet.say(f"{type(problem).__name__} {_place(problem)}", "A request failed.", problem)
            await self._refuse(refusal, scope, receive, answer)

    async def _refuse(self, refusal: Refused, scope: Scope, receive: Receive, answer: Answer) -> None:
        """The refusal as the answer; the end of one that lasts and has begun."""
        if answer.started:
            await answer.send({"type": "http.response.body", "body": b""})
            return
        answer.drop()
        response = JSONResponse({"detail": str(refusal), "error": str(refusal)}, status_code=refusal.status)
        await response(scope, receive, answer.send)
        await answer.release()

    @contextlib.contextmanager
    def _counted_stream(self, scope: Scope) -> Iterator[None]:
        """Counts an answer that lasts. Raises Refused for one too many: of its session, its address, of all."""
        match = _STREAM.fullmatch(scope["path"])
        if not match or scope["method"] != "GET":
            yield
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        session = (
            match["heartbeat"] or match["event"] or "".join(query.get("session_hash", query.get("upload_id", [])))
        )
        all_of_them = self.connections - self.connections // SHARE
        counted = {("all", ""): all_of_them, ("session", session[:200]): MAX_STREAMS}
        if address := counted_as(scope["client"][0] if scope["client"] else ""):
            counted["address", address] = max(1, self.connections // SHARE)
        for (what, name), most in counted.items():
            if self._streams[what, name] >= most:
                quiet.say(f"streams {what}", f"Listeners were refused: there are {most} already ({what}).")
                raise Refused(503, "There are too many who listen already; close a tab, or try again in a moment.")
        self._streams.update(counted.keys())
        try:
            yield
        finally:
            self._streams -= Counter(counted.keys())

    def _check_origin(self, scope: Scope, headers: dict[bytes, str]) -> None:
        """Raises Refused for a page of another site that would act here, and for a name that is not ours.

        A name of another's that leads to this machine (DNS rebinding) would make that other's page one of ours.
        """
        host = headers.get(b"host", "")
        name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
        if not self.ours(name):
            reason = f"This page is not served as {name[:80]!r}: open it by this machine's own name or address, or"
            raise Refused(421, f"{reason} start it with --allow-host and that name.")
        if scope["method"] in ("GET", "HEAD"):
            return
        if site := headers.get(b"sec-fetch-site"):
            foreign = site not in ("same-origin", "none")
        else:
            ours = {host.lower(), headers.get(b"x-forwarded-host", host).lower()}
            foreign = b"origin" in headers and headers[b"origin"].lower().partition("://")[2] not in ours
        if foreign:
            raise Refused(403, "Pages of other sites may not do anything here; open this page itself.")

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """The `receive` from which the app may read the request. Raises Refused."""
        path = scope["path"]
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_origin(scope, headers)
        if self.public:
            if not re.fullmatch(OPEN, path, re.DOTALL):
                raise Refused(404, "There is nothing here.")
            named = path.partition("/file=")[2]
            if _ADDRESS.match(unquote(named)):
                raise Refused(403, "Files are not fetched from addresses here.")
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        if _UPLOAD.fullmatch(path):
            return receive  # counted as it arrives, see uploads.py
        body = await self._whole(receive, MAX_BODY)
        if not headers.get(b"content-type", "").startswith("multipart/"):
            _check_json(body, addresses=not self.public)
        return _replayed(body, receive)

    async def _whole(self, receive: Receive, most: int) -> bytes:
        """The body of a request. Raises Refused for one above `most` bytes, or above what all together may hold."""
        body = bytearray()  # and not a list to be counted: it may come byte by byte
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "The request ended before it was complete.")
                part = message.get("body", b"")
                body += part
                self._held += len(part)
                if len(body) > most:
                    raise Refused(413, f"The request is longer than {most:,} bytes.")
                if self._held > MAX_BODIES:
                    raise Refused(503, "The server is reading too much already; try again in a moment.")
                if not message.get("more_body"):
                    return bytes(body)
        finally:
            self._held -= len(body)


def _mistake(problem: Exception) -> Refused | None:
    """The refusal for a session, a name or an argument that a visitor made up; None for a failure."""
    module = _frame(problem).f_globals["__name__"]
    if isinstance(problem.__cause__, HTTPException):  # in an answer that lasts, which has told it already
        return Refused(problem.__cause__.status_code, str(problem.__cause__.detail))
    if isinstance(problem, FnIndexInferError) or (isinstance(problem, KeyError) and module.startswith("gradio.")):
        return Refused(404, "There is no such function here.")
    if isinstance(problem, TypeError) and module == "gradio_client.utils":
        return Refused(400, sentence(problem))
    return None


def _place(problem: BaseException) -> str:
    """File and line at which it was raised."""
    frame = _frame(problem)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _frame(problem: BaseException) -> FrameType:
    """The frame in which it was raised."""
    traceback = problem.__traceback__
    assert traceback is not None  # it was caught
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame


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
