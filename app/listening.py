"""Sessions whose page is open: they keep what is kept for them, and those that somebody invented make room first."""

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from app import visitor
from app.gradio_private import SessionState, keep_no_values
from app.limits import MAX_NAME

_HEARTBEAT = re.compile(r".*/heartbeat/([^/]+)/?")


class Listening:
    """The names of sessions that listen at this moment, at most `most`, and of one address at most `share` of them.

    Further ones are served like the others, and are forgotten first. Safe to use from several threads.
    """

    def __init__(self, most: int, share: float = 1.0) -> None:
        self.most, self.share = most, share
        self._open: Counter[str] = Counter()  # connections of each session
        self._addresses: dict[str, str] = {}  # of each session, the one that it was first heard from
        self._lock = threading.Lock()

    def __contains__(self, session: object) -> bool:
        return session in self._open

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def open(self, session: str, address: str) -> Iterator[None]:
        """The session listens until this is left."""
        counted = self._begin(session, address)
        try:
            yield
        finally:
            if counted:
                self._end(session)

    def _begin(self, session: str, address: str) -> bool:
        with self._lock:
            if session not in self._open:
                of_address = sum(other == address for other in self._addresses.values())
                if len(session) > MAX_NAME or len(self._open) >= self.most or of_address >= self.share * self.most:
                    return False
                self._addresses[session] = address
            self._open[session] += 1
            return True

    def _end(self, session: str) -> None:
        with self._lock:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session], self._addresses[session]


class Attending:
    """ASGI middleware: a session listens while its heartbeat or its events are read."""

    def __init__(self, app: ASGIApp, *, listening: Listening) -> None:
        self.app, self.listening = app, listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        session = _session(scope)
        if session is None:
            await self.app(scope, receive, send)
            return
        with self.listening.open(session, visitor.of(scope)):
            await self.app(scope, receive, send)


class Remembered(OrderedDict[str, Any]):
    """A table with an entry for each session; what belongs to no open page goes before what does, the oldest first,
    the newest never."""

    def __init__(self, listening: Listening) -> None:
        super().__init__()
        self._listening = listening

    def popitem(self, last: bool = True) -> tuple[str, Any]:
        """Raises KeyError where there is nothing."""
        if last or not self:
            return super().popitem(last)
        newest, oldest = next(reversed(self)), next(iter(self))
        key = next((key for key in self if key not in self._listening and key != newest), oldest)
        value = self[key]
        del self[key]
        return key, value


class States(Remembered):
    """Gradio's states of sessions, without a copy of the last value of every component."""

    def __setitem__(self, session: str, state: SessionState) -> None:
        keep_no_values(state)
        super().__setitem__(session, state)


def _session(scope: Scope) -> str | None:
    """Whose heartbeat or events a request asks for."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    if match := _HEARTBEAT.fullmatch(scope["path"]):
        return unquote(match[1])
    if scope["path"].rstrip("/").endswith("/queue/data"):
        return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])), None)
    return None
