"""Endpoints for gradio_client: whatever the page does, a program can do.

client.predict([handle_file("scene.png")], "Which mark is on the blue square?", api_name="/ask")
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from app import traces
from app.ask import (
    FAILURES,
    first_view,
    folded,
    make_ask,
    model_failed,
    new_scene,
    opening,
    save_trace,
    unsaved,
)
from app.components import as_files, inside, paths
from app.controls import PARAMETERS, by_name
from app.errors import as_user_errors
from app.fields import program_field, with_settings
from app.formulas import all_formulas
from app.handlers import MOST_SEEDS, session_of
from app.names import method_label
from app.payload import summary
from app.runner import Runner, throttled
from app.view import fold
from app.workers import TRACES
from latent_core import glyphs
from latent_core.analysis.similarity import nearest_patch, top


def add_endpoints(runner: Runner, model: Mapping[str, Any], look: Mapping[str, Any], light: Mapping[str, Any]) -> None:
    """Adds /ask, /inspect, /region, /compare, /scene and /checkpoints to the Blocks being built.

    `model`, `look` and `light` are the concurrency settings of page.groups.
    """

    @with_settings(PARAMETERS)
    def ask(
        images: list[str], question: str, checkpoint: str, *values: Any
    ) -> Iterator[tuple[dict[str, Any], str | None]]:
        """One question about one to four images: the answer with its figures, and the trace as a file.

        Before them comes the text so far, for who listens: `job.outputs()`. `job.cancel()` ends the run.
        """
        *setting_values, request = values
        yield from _answer(
            runner, session_of(request), images, question, checkpoint, by_name(setting_values, PARAMETERS)
        )

    def scene(family: str, seed: int) -> tuple[list[str], dict[str, Any]]:
        """A Glyphs scene of the test split: all its images, as /ask takes them, and question, answer, family, seed.

        A negative seed draws one.
        """
        if type(seed) is not int or seed >= MOST_SEEDS:
            raise ValueError(f"The seed is not a whole number from 0 to {MOST_SEEDS - 1}; choose another.")
        images, question, identity = new_scene(family, None if seed < 0 else seed)
        example = glyphs.sample(family, identity["seed"], split="test")
        return paths(as_files(images)), {"question": question, "answer": example.answer, **identity}

    def checkpoints() -> list[dict[str, Any]]:
        """The checkpoints that /ask takes, the default first."""
        return [{"name": name, "method": method_label(name), "loaded": name in runner.loaded} for name in runner.names]

    def inspect(trace: str, request: gr.Request) -> dict[str, Any]:
        """The figures of a run, from its trace as /ask gives it: places, matrices, shares, nearest words, norms."""
        runner.inspections.take(session_of(request))
        value = TRACES.run(runner.limits, traces.figures, inside(trace), runner.artifacts, run="", name="", own=True)
        figures = {key: part for key, part in value.items() if key not in ("id", "name", "own", "view")}
        return figures | {"formulas": all_formulas()}

    def region(
        trace: str,
        image: int,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        level: int,
        layer: int,
        head: int,
        request: gr.Request,
    ) -> dict[str, Any]:
        """Who looks into a region (shares of the image, 0…1): words and latents by attention and by raw cosine."""
        runner.inspections.take(session_of(request))
        if any(value is None for value in (image, x0, y0, x1, y1, level, layer, head)):
            raise ValueError("A number of the region is missing; give all four.")
        box = (x0, y0, x1, y1)
        where = {"image": image, "level": level, "layer": layer, "head": head}
        return TRACES.run(runner.limits, traces.region, inside(trace), box=box, centred=False, **where)

    def compare(first: str, second: str, request: gr.Request) -> dict[str, Any]:
        """Two traces: the difference of their words, the cosines of their latents, their figures."""
        runner.inspections.take(session_of(request))
        comparison = TRACES.run(runner.limits, traces.compared, inside(first), inside(second), runner.artifacts)
        return {"words": comparison["words"], "pairs": comparison["pairs"], "runs": comparison["summaries"]}

    hidden = {"visible": False}
    _, sampling = opening(runner.names[0], runner.folders.get(runner.names[0]))
    inputs = [
        gr.File(file_count="multiple", label="images", **hidden),
        gr.Textbox(label="question", **hidden),
        gr.Textbox(runner.names[0], label="checkpoint", **hidden),
        *(program_field(each, sampling) for each in PARAMETERS),
    ]
    outputs = [gr.JSON(label="answer", **hidden), gr.File(label="trace", **hidden)]
    gr.Button(**hidden).click(as_user_errors(ask), inputs, outputs, api_name="ask", **model)
    family = gr.Textbox("find", label="family", **hidden)
    seed = gr.Number(-1, precision=0, label="seed", **hidden)
    drawn = [gr.File(file_count="multiple", label="images", **hidden), gr.JSON(label="scene", **hidden)]
    gr.Button(**hidden).click(as_user_errors(scene), [family, seed], drawn, api_name="scene", **light)
    files = [gr.File(label=label, **hidden) for label in ("trace", "first", "second")]
    numbers = [
        gr.Number(value, label=label, precision=None if label[0] in "xy" else 0, **hidden)
        for label, value in {"image": 0, "x0": 0, "y0": 0, "x1": 1, "y1": 1, "level": 0, "layer": 0, "head": 0}.items()
    ]
    result = gr.JSON(label="found", **hidden)
    gr.Button(**hidden).click(as_user_errors(inspect), files[0], result, api_name="inspect", **look)
    gr.Button(**hidden).click(as_user_errors(region), [files[0], *numbers], result, api_name="region", **look)
    gr.Button(**hidden).click(as_user_errors(compare), files[1:], result, api_name="compare", **look)
    listed = gr.JSON(label="checkpoints", **hidden)
    gr.Button(**hidden).click(as_user_errors(checkpoints), None, listed, api_name="checkpoints", **light)


def _answer(
    runner: Runner, session: str, files: object, question: str, checkpoint: str, settings: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The text so far, a few times a second; at the end the answer, and the trace unless the disk is full.

    Gradio can end a run only where it yields. Raises ValueError with a sentence.
    """
    uploads = files if isinstance(files, list) else []
    ask = make_ask(runner, [inside(file) for file in uploads], question, checkpoint, **settings)
    events = []
    try:
        view = first_view(runner, ask)
        for view in throttled(folded(view, runner.stream(session, ask), events)):  # noqa: B020, it goes on from it
            yield {"text": view.text}, None
    except FAILURES as failure:
        raise ValueError(model_failed(failure)) from failure
    trace = runner.trace(ask, events)
    view = view if view.finish else fold(view, trace.finish)
    assert view.start is not None
    looks = [
        {"block": item.block, "index": item.index, "image": patch.image, "row": patch.row, "column": patch.column}
        | {"cosine": round(patch.value, 4)}
        for item in view.items
        if item.kind == "latent" and item.vector is not None and len(view.start.image_states)
        for patch in top(
            nearest_patch(item.vector[None], view.start.image_states[:1], centred=False)[0, 0], view.start.grids, 1
        )
    ]
    result = {**summary(view), "looks": looks}
    try:
        yield result, save_trace(trace, runner.next_run(), runner.limits)
    except OSError as failure:
        yield {**result, "problem": unsaved(failure)}, None
