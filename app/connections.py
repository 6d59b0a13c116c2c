"""Connections of the server: how many there may be, and how long one may take to say what it wants.

Uvicorn waits for a request without end; whoever opens connections and says nothing would soon have them all.
"""

import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from app.quiet import Quiet
from app.visitor import network

HEAD_SECONDS = 10.0
"""For the head of a request, from the connection's beginning or the end of the answer before."""
BODY_SECONDS = 60.0
"""For its body, and further seconds for every BODY_RATE bytes that have come."""
BODY_RATE = 4000
"""Bytes a second that a body has to come with, at least: an upload over a slow line."""
STALLED_SECONDS = 60.0
"""That a client may leave its answer unread."""
SWEEP_SECONDS = 1.0
SHARE = 4
"""One address may have one in SHARE of the connections. Behind a proxy on this machine or in a private network all
visitors have the proxy's, so those are not counted."""

_NO_PLACE = b"This server has no place left; try again in a moment."
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 10\r\nx-content-type-options: nosniff\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n\r\n%b" % (len(_NO_PLACE), _NO_PLACE)
)
"""The answer to a connection that is one too many."""

quiet = Quiet(logging.getLogger("inscape"))


class Door:
    """The connections that are open, `most` at once, and those of them that wait for a request.

    Where all are taken, the one that has waited longest without a request makes room: a client that has something to
    say is served however many say nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.open: set[Connection] = set()
        self.waiting: OrderedDict[Connection, None] = OrderedDict()
        self.addresses: Counter[str] = Counter()
        self._sweeping = False

    def admits(self, connection: "Connection") -> bool:
        """Takes the connection in unless there is no place for it."""
        if connection.address and self.addresses[connection.address] >= max(1, self.most // SHARE):
            quiet.say("address", "Connections were refused: one address has as many as it may.")
            return False
        if len(self.open) >= self.most:
            quiet.say("connections", f"All {self.most} connections were taken; those without a request make room.")
            if not self.waiting:
                return False
            next(iter(self.waiting)).end()
        self.open.add(connection)
        self.waiting[connection] = None
        if connection.address:
            self.addresses[connection.address] += 1
        if not self._sweeping:
            self._sweeping = True
            connection.loop.call_later(SWEEP_SECONDS, self.sweep, connection.loop)
        return True

    def leaves(self, connection: "Connection") -> None:
        """Forgets a connection that has ended or is about to."""
        if connection in self.open:
            self.open.remove(connection)
            self.waiting.pop(connection, None)
            if connection.address:
                self.addresses -= Counter({connection.address: 1})

    def sweep(self, loop: Any) -> None:
        """Ends what has taken too long, again and again while there are connections."""
        now = time.monotonic()
        for connection in [connection for connection in self.open if connection.overdue(now)]:
            connection.end()
        self._sweeping = bool(self.open)
        if self._sweeping:
            loop.call_later(SWEEP_SECONDS, self.sweep, loop)


class Connection(H11Protocol):
    """One connection, which ends when its client takes too long. See `Door`."""

    def __init__(self, *arguments: Any, door: Door, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.door = door
        self.address = ""
        self._since = time.monotonic()  # of the wait for a request, or of the request
        self._received = 0  # bytes of it
        self._phase: tuple[Any, bool] = (None, False)
        self._stalled: float | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.address = counted_as(self.client[0]) if self.client else ""
        if not self.door.admits(self):
            transport.write(BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.leaves(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._settle()

    def _settle(self) -> None:
        """Notices where a request begins or an answer ends."""
        phase = self.cycle, self._busy
        if phase == self._phase:
            return
        self._phase, self._since, self._received = phase, time.monotonic(), 0
        self.door.waiting.pop(self, None)
        if not self._busy and self in self.door.open:
            self.door.waiting[self] = None

    @property
    def _busy(self) -> bool:
        """Whether a request is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    def pause_writing(self) -> None:
        self._stalled = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled = None
        super().resume_writing()

    def overdue(self, now: float) -> bool:
        """Whether the client has taken too long."""
        if self._stalled is not None:
            return now - self._stalled > STALLED_SECONDS
        if not self._busy:
            return now - self._since > HEAD_SECONDS
        reading = self.cycle.more_body and not self.flow.read_paused
        return reading and now - self._since > BODY_SECONDS + self._received / BODY_RATE

    def end(self) -> None:
        """Ends it at once, whatever is not sent yet."""
        self.door.leaves(self)
        self.transport.abort()


def counted_as(host: str) -> str:
    """What an address is counted as, see `visitor.network`; nothing for this machine and private networks."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    return network(host) if address.is_global else ""
