"""Starts the page with safe settings, and says how it is doing at /health."""

from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from gradio.utils import LRUCache, get_upload_folder
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

from app import workers
from app.components import paths, read
from app.guard import Guard
from app.limits import OWN, PUBLIC
from app.page import build, first_files
from app.retention import sweeper
from app.runner import Runner
from app.theme import make_theme

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
) -> gr.Blocks:
    """Serves the page; returns at once unless `wait`. `port` None: the first free one from 7860.

    `public`: for visitors whom nobody knows. The limits are PUBLIC's unless the runner was given others, routes that
    the page does not need are closed, and no file is fetched from an address. Nothing is shared, looked up or recorded
    outside this machine.
    """
    if public and not workers.FORKS:
        raise OSError(
            "this system cannot stop what a visitor starts (Python has no fork server here); use Linux or macOS."
        )
    workers.prepare()
    if public and runner.limits is OWN:
        runner.limit(PUBLIC)
    Path(get_upload_folder()).mkdir(mode=0o700, parents=True, exist_ok=True)

    async def health(_: Request) -> JSONResponse:
        # async, for the threads may all be taken
        return JSONResponse(
            {"status": "ok", "checkpoints": runner.names, "loaded": runner.loaded, "running": runner.running}
        )

    page = build(runner)
    # what Gradio has to say to tabs that do not listen, up to a megabyte each, it would keep for 2,000 of them
    page._queue.pending_messages_per_session = LRUCache(runner.limits.sessions)
    options: dict[str, Any] = {
        "routes": [Route("/health", health), Route("/plotly.min.js", drawing_library)],
        "middleware": [Middleware(Guard, limits=runner.limits, public=public)],
    }
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        inbrowser=open_browser,
        share=False,
        max_file_size=runner.limits.file_bytes,
        state_session_capacity=runner.limits.states,
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
        css=read("app.css", "run.css", "inspect.css"),
    )
    keep = runner.limits.keep_seconds
    sweeper(get_upload_folder(), keep, paths(first_files()), lambda: page.is_running)
    if wait:
        page.block_thread()
    return page
