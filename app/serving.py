"""Uvicorn as Gradio starts it, but at a socket that listens already, with limits on connections and a time to end."""

import contextlib
import functools
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from app import gradio_private
from app.address import url_of
from app.connections import Connection, Door
from app.quiet import Quiet, Silenced

BACKLOG = 128
"""Connections that are taken in one after the other before any of them is looked at."""
PENDING = 2048
"""Connections that wait in the system to be taken in; one that finds no room there is tried again seconds later."""
MOST_FILES = 65_536
"""Files that the process asks the system for, at most."""
GRACE = 2
"""Seconds for answers that are being sent when the server ends."""

quiet = Quiet(logging.getLogger("inscape"))
SILENCED = {
    "asyncio": Silenced(
        "socket.accept() out of system resource", quiet, "The system has no file left for a further connection."
    ),
    "uvicorn.error": Silenced("Cancel ", quiet),  # streams that go on for as long as the server does
}
"""Lines of others' logs that visitors could repeat without end, or that say nothing to anybody."""


class Server(gradio_private.Server):
    """Gradio's, at a socket of its own."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self.listener = listener

    def run_in_thread(self) -> None:
        """Returns once it serves, however slow the machine is. Raises OSError where it cannot."""
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        while not self.started:
            if not self.thread.is_alive():
                raise OSError("the server did not start.")
            time.sleep(0.001)
        self.listener.listen(PENDING)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until `close`."""
        super().run([self.listener])


@contextlib.contextmanager
def serving(listener: socket.socket, most: int, around: Callable[[ASGIApp], ASGIApp]) -> Iterator[None]:
    """Within it Gradio's launch serves `around` its app at `listener`, `most` connections at once."""

    def start(app: ASGIApp, **_: Any) -> tuple[str, int, str, Server]:
        config = uvicorn.Config(
            around(app),
            http=functools.partial(Connection, door=Door(most)),  # type: ignore[arg-type]  # called, never looked into
            ws="none",
            backlog=min(BACKLOG, most),
            timeout_graceful_shutdown=GRACE,
            log_level="error",
        )
        server = Server(config, listener)
        server.run_in_thread()
        host, port = listener.getsockname()[:2]
        return f"[{host}]" if ":" in host else host, port, url_of(listener), server

    for name, silenced in SILENCED.items():
        logging.getLogger(name).addFilter(silenced)
    with gradio_private.started_by(start):
        yield


def files() -> int:
    """Files that this process may have open, as many as the system lets it; half of them are for connections."""
    if sys.platform == "win32":  # which counts none
        return MOST_FILES
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft
