"""The server of the page, with safe settings and a report of its state at /health."""

import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

from app import processes
from app.address import listen, ours
from app.components import paths, read
from app.folder import claim
from app.gradio_private import get_upload_folder, is_answering, keep_messages, keep_states, known_files
from app.guard import Guard
from app.headers import Pages
from app.heap import give_back
from app.history import History
from app.limits import OWN, PUBLIC
from app.listening import Attending, States
from app.page import build, first_files
from app.retention import SWEEP_SECONDS, every
from app.runner import Runner
from app.serving import files, serving
from app.store import store
from app.theme import make_theme
from app.uploads import Uploads
from app.waiting import AllWaiting

TOLD_SECONDS = 3.0
"""For a run under way to hear of the server's end."""
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def drawing_library(_: Request) -> FileResponse:
    """The plotly.js that comes with plotly.py, so that figures ask nothing of other machines."""
    return FileResponse(PLOTLY, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


def serve(
    runner: Runner,
    *,
    host: str,
    port: int | None,
    wait: bool = True,
    open_browser: bool = False,
    public: bool = False,
    allowed_hosts: Collection[str] = (),
) -> gr.Blocks:
    """Serves the page; returns at once unless `wait`, and else when it is interrupted. Raises OSError with a sentence.

    `port` None: the first free one from 7860. `allowed_hosts`: further names to be asked for by, see `address.ours`.
    `public`: for visitors whom nobody knows. The limits are PUBLIC's unless the runner was given others, routes that
    the page does not need are closed, and no file is fetched from an address. Nothing is shared, looked up or recorded
    outside this machine. Raises OSError where the port or the folder for visitors' files cannot be had.
    """
    if public and not processes.FORKS:
        raise OSError(
            "this system cannot stop what a visitor starts (Python has no fork server here); use Linux or macOS."
        )
    processes.prepare()
    if public and runner.limits is OWN:
        runner.limit(PUBLIC)
    claim(get_upload_folder())
    limits, listening = runner.limits, runner.listening
    history = History(limits=limits, listening=listening)
    is_ours, listener = ours(host, allowed_hosts, public=public), listen(host, port)
    connections = min(limits.connections, files() // 2)

    async def health(_: Request) -> JSONResponse:
        # async, for the threads may all be taken
        return JSONResponse(
            {"status": "ok", "checkpoints": runner.names, "loaded": runner.loaded, "running": runner.running}
        )

    page = build(runner, history)
    keep_messages(page, partial(AllWaiting, limits, listening))
    options: dict[str, Any] = {
        "routes": [Route("/health", health), Route("/plotly.min.js", drawing_library)],
        "middleware": [
            Middleware(Attending, listening=listening),
            Middleware(Uploads, limits=limits),
            Middleware(Pages),
        ],
    }
    guard = partial(Guard, limits=limits, public=public, ours=is_ours, connections=connections)
    launch = partial(
        page.launch,
        prevent_thread_lock=True,
        inbrowser=open_browser,
        share=False,
        max_file_size=limits.file_bytes,
        state_session_capacity=limits.states,
        run_history=False,
        enable_monitoring=False,
        strict_cors=True,
        ssr_mode=False,
        pwa=False,
        allowed_paths=[],
        footer_links=["api"],
        quiet=not wait,
        app_kwargs=options,
        theme=make_theme(),
        css=read("app.css", "ask.css", "run.css", "panel.css", "inspect.css"),
    )
    with serving(listener, connections, guard):
        launch()
    keep_states(page, States(listening))
    stored, first = store(), {*paths(first_files())}
    stored.protected = lambda: first | history.held()

    def sweep() -> None:
        stored.sweep(limits)
        for listed in known_files(page):
            listed.difference_update([path for path in list(listed) if path not in stored])
        give_back()

    every(min(SWEEP_SECONDS, limits.keep_seconds / 4), sweep, lambda: page.is_running)
    every(limits.away_seconds / 4, history.expire, lambda: page.is_running)
    if wait:
        try:
            while page.is_running:
                time.sleep(0.1)
        except KeyboardInterrupt:
            farewell(page, runner)
    return page


def farewell(page: gr.Blocks, runner: Runner) -> None:
    """Ends the server: runs under way are told, then the connections close."""
    print("The page is closed.", flush=True)
    runner.close(TOLD_SECONDS)
    end = time.monotonic() + 1
    while is_answering(page) and time.monotonic() < end:  # what they were told is on its way
        time.sleep(0.05)
    time.sleep(0.2)
    page.close(verbose=False)
