"""The parts of Gradio beside its documented interface that this app uses; nothing else here may know Gradio's insides.

Written against Gradio 6.31; requirements.txt admits 6.24 and later. Of each thing: what it is, and why the documented
interface is not enough. Imports none of the app's modules.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableSet
from typing import Any

import gradio as gr
from fastapi import Request
from gradio import http_server
from gradio.context import LocalContext
from gradio.data_classes import PredictBodyInternal
from gradio.processing_utils import save_bytes_to_cache, save_pil_to_cache
from gradio.queueing import Queue
from gradio.route_utils import FnIndexInferError, GradioMultiPartParser, GradioUploadFile, get_fn
from gradio.server_messages import EventMessage, ProcessCompletedMessage, ProcessGeneratingMessage
from gradio.state_holder import SessionState
from gradio.utils import get_upload_folder
from gradio_client.utils import strip_invalid_filename_characters

__all__ = [
    # where uploads lie, and how files of ours are put there: only what lies in this folder is served
    "get_upload_folder",
    "save_bytes_to_cache",
    "save_pil_to_cache",
    # what its upload route is made of, for ours reads, names and places files as it does (uploads.py)
    "GradioMultiPartParser",
    "GradioUploadFile",
    "strip_invalid_filename_characters",
    # what its queue says to a session, which is counted in bytes while it waits (waiting.py)
    "EventMessage",
    "ProcessCompletedMessage",
    "ProcessGeneratingMessage",
    # what its routes raise for a function that does not exist: a visitor's mistake, no failure (guard.py)
    "FnIndexInferError",
    # what a session's components hold (listening.py)
    "SessionState",
    # what is written below
    "Server",
    "data_of",
    "is_answering",
    "keep_messages",
    "keep_no_values",
    "keep_states",
    "known_files",
    "leave_line",
    "order_lines",
    "request_of_handler",
    "started_by",
    "unfinished_files",
    "uploaded",
]

Server = http_server.Server
"""Uvicorn's server in a thread, as Gradio starts and closes it; ours adds a socket of its own."""
Start = Callable[..., tuple[str, int, str, Server]]
"""`http_server.start_server`: starts to serve an ASGI app → host, port, address of the page, server."""


def data_of(event: gr.EventData) -> object:
    """What the browser sent with an event, as JSON.

    EventData shows it only as attributes, which fail for names that are missing and for what is no object.
    """
    return event._data


def request_of_handler() -> gr.Request | None:
    """The request for which Gradio calls a function of ours at this moment; None outside of one.

    Handlers are given it, but what they call far below is not.
    """
    return LocalContext.request.get(None)


async def leave_line(page: gr.Blocks, session: str) -> None:
    """Takes what a session still waits for out of the queue.

    Gradio itself sees to that only for tabs that listen at the moment at which they are closed.
    """
    lines = page._queue.event_queue_per_concurrency_id.values()
    for event in [event for line in lines for event in line.queue if event.session_hash == session]:
        await page._queue.clean_events(event_id=event._id)


def order_lines(
    page: gr.Blocks, most: int, refusal: str, order: Callable[[list[Request], list[Request]], list[int]]
) -> None:
    """Lets `most` events of each group wait, and puts them into another order whenever one comes.

    Gradio counts all groups together, so that many inspections would refuse a question, and serves whoever came first.
    `Queue.push` is replaced: the one place that every event passes.

    Args:
        refusal: the sentence for an event that is one too many.
        order: requests under way and requests that wait, both of one group → the new order of those that wait.
    """
    queue: Queue = page._queue
    push = queue.push

    async def pushed(body: PredictBodyInternal, request: Request, username: str | None) -> tuple[bool, Any, str]:
        group = get_fn(queue.blocks, None, body).concurrency_id
        line = queue.event_queue_per_concurrency_id.get(group)
        if line is not None and len(line.queue) >= most:
            return False, refusal, "queue_full"
        outcome = await push(body, request, username)
        line = queue.event_queue_per_concurrency_id[group]
        under_way = [event for job in queue.active_jobs for event in job or () if event.concurrency_id == group]
        places = order([event.request for event in under_way], [event.request for event in line.queue])
        line.queue[:] = [line.queue[place] for place in places]
        return outcome

    queue.push = pushed


def keep_messages(page: gr.Blocks, table: Callable[[dict[str, set[str]]], OrderedDict[str, Any]]) -> None:
    """Puts a table of ours in the place of the one in which Gradio keeps what sessions have not listened to yet.

    Gradio's counts messages and not bytes. Before the page is launched.

    Args:
        table: is given Gradio's table of the events that each session has not heard the end of.
    """
    queue: Queue = page._queue
    queue.pending_messages_per_session = table(queue.pending_event_ids_session)


def keep_states(page: gr.Blocks, table: OrderedDict[str, SessionState]) -> None:
    """Puts a table of ours in the place of the one in which Gradio keeps sessions' states.

    Gradio's drops the session that was not heard of for longest, open or not. After the page is launched.
    """
    page.app.state_holder.session_data = table


def keep_no_values(state: SessionState) -> None:
    """Lets a session's state keep no copy of the last value of every component.

    Gradio would keep it for links that lead back to a state, which this page has not: megabytes of each inspection.
    """
    state.config_values = _Unkept()


class _Unkept(dict[int, dict[str, Any]]):
    """Has an empty entry for whatever is asked for, and keeps none."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: int) -> dict[str, Any]:
        return {}

    def __setitem__(self, key: int, value: dict[str, Any]) -> None:
        pass


def is_answering(page: gr.Blocks) -> bool:
    """Whether any event is under way."""
    return any(page._queue.active_jobs)


def known_files(page: gr.Blocks) -> list[MutableSet[str]]:
    """The lists in which Gradio keeps files that it will delete; what we delete ourselves would stay in them."""
    return page.temp_file_sets


def uploaded(app: Any, paths: Iterable[str]) -> None:
    """Notes files that our own upload route has taken, for Gradio to delete when the server ends."""
    app.get_blocks().upload_file_set.update(paths)


def unfinished_files(parser: GradioMultiPartParser) -> list[Any]:
    """The files of a request that its parser has opened, and leaves behind where something else fails."""
    return parser._files_to_close_on_error


@contextlib.contextmanager
def started_by(start: Start) -> Iterator[None]:
    """Within it `launch` serves by `start`: Gradio's own takes no options for Uvicorn, and no socket."""
    before, http_server.start_server = http_server.start_server, start
    try:
        yield
    finally:
        http_server.start_server = before
