"""Our own components: gr.HTML with a static template and a script from assets/app/. Model text is never HTML.

Functions, not subclasses: Gradio writes a .pyi file beside every module that subclasses a component.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from app import visitor
from app.folder import make
from app.gradio_private import get_upload_folder, save_bytes_to_cache, save_pil_to_cache
from app.store import store
from latent_core.assets import ASSETS

PAGE = ASSETS / "app"

SHOWN = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
"""Formats of images.FORMATS that browsers show."""

Files = Sequence[dict[str, Any]]
"""Gradio's FileData as JSON: what an image well holds."""


def read(*names: str) -> str:
    """The files of assets/app/, one after the other."""
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)


def static(template: str, script: str | None = None, **options: Any) -> gr.HTML:
    """A fixed part of the page."""
    return gr.HTML(html_template=template, js_on_load=script, apply_default_css=False, **options)


def image_well(value: Files, **options: Any) -> gr.HTML:
    """Up to four images: upload, drop, paste, remove. Event: `input`."""
    return static(read("well.html"), read("well.js"), value=list(value), **options)


def run_view(**options: Any) -> gr.HTML:
    """A run: text, strips of cards, answer, status, and the panel of the selected item. Takes `payload()` values.

    Events: `force`, the button offered where no block was opened; `region`, a region painted on the image; `choose`,
    an earlier run is shown again. Its script asking.js gives the page `inscape`, by which events tell the time.
    """
    scripts = ("heat.js", "maps.js", "link.js", "asking.js", "transcript.js", "panel.js", "region.js", "run.js")
    return static(read("run.html"), read(*scripts), **options)


def region_view(**options: Any) -> gr.HTML:
    """The words and latents that look into a painted region.

    Takes `traces.region()` values with the run they are of; hidden without one.
    """
    return static(read("region.html"), read("heat.js", "link.js", "region_view.js"), **options)


def inspect_view(**options: Any) -> gr.HTML:
    """All figures of one run. Takes `inspection()` values with the session's runs, or those and a `problem`.

    Events: `open`, `rename`, `remove`, `read` with the run's id; `upload` with the path of a trace.
    """
    scripts = (
        "heat.js",
        "maps.js",
        "link.js",
        "track.js",
        "figures.js",
        "inspect_figures.js",
        "inspect_response.js",
        "inspect_readings.js",
        "inspect.js",
    )
    return static(read("inspect.html"), read(*scripts), **options)


def compare_view(**options: Any) -> gr.HTML:
    """Two runs side by side. Takes `compared()` values with the session's runs and the checkpoints to run with.

    Events: `pair` with two ids; `again` with an id and changed settings.
    """
    return static(read("compare.html"), read("heat.js", "maps.js", "link.js", "track.js", "compare.js"), **options)


def examples_row(value: Sequence[dict[str, Any]], **options: Any) -> gr.HTML:
    """Thumbnails of {family, seed, question, image (data URL), file}. Event: `pick`, with family and seed."""
    return static('<div class="ins-examples"></div>', read("examples.js"), value=list(value), **options)


def as_file(path: str) -> dict[str, Any]:
    """A file of ours that the page can fetch, in a value of a component."""
    return gr.FileData(path=path).model_dump()


def as_files(images: Sequence[Image.Image]) -> Files:
    """Images of ours as files that the page can show and send back."""
    folder = get_upload_folder()
    make(folder)
    saved = [save_pil_to_cache(image, cache_dir=folder, format="png") for image in images]
    return [_entered(path) for path in saved]


def showable(file: dict[str, Any], png: bytes | None) -> dict[str, Any]:
    """An uploaded file as browsers can show it: `png`, the same picture, where they cannot."""
    if png is None:
        return file
    path = save_bytes_to_cache(png, "image.png", get_upload_folder())
    return {**_entered(path), "orig_name": file.get("orig_name")}


def _entered(path: str) -> dict[str, Any]:
    """A new file of ours as `as_file`, counted among those of the visitor for whom it was made."""
    store().add(path, visitor.of_handler())
    return as_file(path)


def paths(files: object) -> list[str]:
    """Where the files of a well lie. Raises ValueError for any that was not uploaded to this page."""
    if files is None:
        return []
    if not isinstance(files, (list, tuple)) or not all(isinstance(file, dict) for file in files):
        raise ValueError("The images are not a list of uploaded files; upload them again.")
    return [inside(file.get("path")) for file in files]


def inside(path: object) -> str:
    """The path of an uploaded file. Raises ValueError for what was not uploaded to this page, or is not kept any more.

    The answer is the same for a file elsewhere that exists and for one that does not.
    """
    folder = Path(get_upload_folder()).resolve()
    refused = ValueError("A file was not uploaded to this page, or is no longer kept; upload it again.")
    if not isinstance(path, str):
        raise refused
    try:
        resolved = Path(path).resolve()
        uploaded = folder in resolved.parents and resolved.is_file()
    except (OSError, ValueError, RuntimeError) as problem:  # names too long, with zero bytes, links in circles
        raise refused from problem
    if not uploaded:
        raise refused
    return str(resolved)
