"""The page: layout and wiring. What the events do is in handlers.py, how things look in assets/app/ and theme.py."""

from html import escape
from typing import Any

import gradio as gr

from app.api import add_endpoints
from app.ask import new_scene, opening
from app.choosing import Choosing
from app.components import (
    Files,
    as_files,
    compare_view,
    examples_row,
    image_well,
    inspect_view,
    read,
    region_view,
    run_view,
    static,
)
from app.controls import CONTROLS
from app.fields import page_field
from app.gradio_private import leave_line
from app.handlers import SAMPLING, Comparing, Handlers, Inspecting, loaded
from app.history import History
from app.limits import Limits
from app.names import method_label
from app.payload import data_url
from app.runner import Runner
from app.waiting import in_turns

FAMILIES = {"find": "find: visual search", "relate": "relate: two hops", "count": "count", "trace": "trace: a line"}
FIRST_SEED = 22
"""Seed of the scene in view when the page opens, and of the examples: the embedded glyph-monet gets all four right."""
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(runner: Runner, history: History) -> gr.Blocks:
    """The whole page. Models are not loaded here."""
    limits = runner.limits
    handlers = Handlers(runner, history)
    cache = (60, round(limits.keep_seconds))  # Gradio's own sweep, which also clears its lists of files
    with gr.Blocks(title="Inscape", fill_width=True, analytics_enabled=False, delete_cache=cache) as page:
        static(read("header.html"), read("header.js", "offline.js"))
        places = groups(limits)
        add_endpoints(runner, **places)  # before the page's own events, which would take the names
        with gr.Tabs(elem_id="ins-tabs"):
            with gr.Tab("Ask", id="ask"):
                _ask(runner, handlers, Choosing(history, limits, handlers.photo_notice))
            with gr.Tab("Inspect", id="inspect") as tab:
                _inspect(tab, Inspecting(runner, history), {**places["look"], **QUIET})
            with gr.Tab("Compare", id="compare") as tab:
                _compare(tab, Comparing(runner, history), *({**places[name], **QUIET} for name in ("look", "model")))
        static(f'<p class="ins-small ins-kept">{escape(limits.retention_notice)}</p>')
        page.unload(handlers.forget)

        async def leave(request: gr.Request) -> None:
            """The tab is closed: what it still waits for leaves the queue; what is under way, as this is, goes on."""
            if request.session_hash:
                await leave_line(page, request.session_hash)

        page.unload(leave)
    # what queues is only taken from the queue: Gradio's other routes would run any number at once
    page.queue(api_open=False)
    in_turns(page, limits.queue)
    return page


def groups(limits: Limits) -> dict[str, dict[str, Any]]:
    """Concurrency settings by group: `model` for questions, `look` for what is made of runs, `light` for the rest.

    A group's limit is the lowest that any of its events gives, and who gives none gives 1: every event names both.
    """
    most = {"model": limits.at_once, "look": limits.inspections_at_once, "light": limits.light_at_once}
    return {name: {"concurrency_id": name, "concurrency_limit": count} for name, count in most.items()}


def first_files() -> Files:
    """The image that the page opens with; every visitor's page names it, so it is never swept away."""
    return loaded("find", FIRST_SEED)[0]


def _ask(runner: Runner, handlers: Handlers, choosing: Choosing) -> None:
    files, _, first_question, first_scene, _ = handlers.made(loaded("find", FIRST_SEED))
    model, look, quick = ({**places, **QUIET} for places in groups(runner.limits).values())
    scene = gr.State(first_scene)
    usable = gr.State(files)  # images that could be used, for when new ones cannot
    with gr.Row(elem_classes="ins-ask"):
        with gr.Column(elem_classes=["ins-io", "ins-panel"]):
            well, family, another, examples = _image_column(files)
            notice, question, back, run, stop = _question_bar(first_question)
        with gr.Column(elem_classes="ins-work"):
            view = run_view(elem_id="ins-run-view")
            looking = region_view(elem_id="ins-region-view")
        with gr.Column(elem_classes=["ins-settings", "ins-panel"]):
            settings = _settings_column(runner)
    method, mode, latents = settings["checkpoint"], settings["mode"], settings["latents"]

    at = _told_by_page(gr.Number)  # when something was asked for
    inputs = [at, well, question, scene, *settings.values()]
    # An event goes through its handlers one after the other. What makes room comes first and does not queue. What runs
    # is sent even while it answers to an earlier event: then it only hands over, and one dropped would be a lost run.
    room = {"fn": handlers.interrupt, "inputs": at, "queue": False, **QUIET}
    running = {"fn": handlers.ask, "inputs": inputs, "outputs": view, "js": page_tells("again"), **model}
    run.click(trigger_mode="multiple", js=page_tells("run"), **room)
    run.click(trigger_mode="multiple", **running)
    view.region(handlers.region, outputs=looking, **look)
    stop.click(handlers.stop, at, queue=False, trigger_mode="multiple", js=page_tells("stop"), **QUIET)
    view.force(lambda: "forced", outputs=mode, **quick).then(trigger_mode="multiple", **running)
    changed = [field.input for name, field in settings.items() if name != "checkpoint"]
    gr.on(changed, trigger_mode="always_last", **room | {"js": page_tells("change")})
    gr.on(changed, trigger_mode="always_last", **running | {"js": page_tells("changed")})
    chosen = gr.State({"now": method.value, "k": {}})  # the checkpoint in view, and K of those that were
    settled = method.input(
        handlers.settle,
        [method, latents, chosen],
        [latents, chosen],
        trigger_mode="always_last",
        js="(...values) => { inscape.change(); return values; }",  # though the run may end before all is settled
        **quick,
    )
    sampling = [settings[name] for name in SAMPLING]
    own_sampling = gr.State({name: settings[name].value for name in SAMPLING})  # the chosen checkpoint's sampling
    settled = settled.then(
        handlers.sample,
        [method, own_sampling, *sampling],
        [*sampling, own_sampling],
        trigger_mode="always_last",
        **quick,
    )
    settled = settled.then(trigger_mode="multiple", js=page_tells("again"), **room)
    settled.then(trigger_mode="multiple", **running)

    fresh = [well, usable, question, scene, notice]
    another.click(handlers.scene, inputs=family, outputs=fresh, **quick)
    examples.pick(handlers.example, outputs=[*fresh, family], **quick)
    drafts = gr.State([])  # what was being written when an earlier run was chosen
    # one after the other, for each puts aside what the one before filled in
    filled = {"outputs": [*fresh, family, drafts, back], "concurrency_id": "choose", "concurrency_limit": 1, **QUIET}
    view.choose(choosing.choose, [well, question, scene, drafts, method], trigger_mode="multiple", **filled)
    back.click(choosing.resume, [drafts, method], **filled)
    checked = {"inputs": [well, usable, method], "outputs": [well, usable, notice], **quick}
    well.input(handlers.check, trigger_mode="multiple", **checked)  # one dropped would be files that nobody looked at
    # a refused image is no news any more once the run is about the ones that were kept
    gr.on([run.click, method.change], handlers.photo_notice, inputs=[well, method], outputs=notice, **quick)


def page_tells(what: str) -> str:
    """Script before an event is sent: its first input is what `inscape` of assets/app/asking.js says."""
    return f"(_, ...rest) => inscape.tell({what!r}, rest)"


def _told_by_page(kind: type[gr.components.Component]) -> gr.components.Component:
    """An input whose value `page_tells`."""
    return kind(visible=False)


def _inspect(tab: gr.Tab, handlers: Inspecting, quiet: dict[str, Any]) -> None:
    view = inspect_view(elem_id="ins-inspect-view", elem_classes="ins-page")
    shown, entered = _told_by_page(gr.JSON), gr.State("")  # the run that Ask shows, and the one last opened from there
    tab.select(handlers.enter, [shown, entered], [view, entered], js=page_tells("shown"), **quiet)
    for event, handler in (
        (view.open, handlers.open),
        (view.read, handlers.read),
        (view.rename, handlers.rename),
        (view.remove, handlers.remove),
        (view.upload, handlers.upload),
    ):
        event(handler, outputs=view, **quiet)


def _compare(tab: gr.Tab, handlers: Comparing, look: dict[str, Any], model: dict[str, Any]) -> None:
    view = compare_view(elem_id="ins-compare-view", elem_classes="ins-page")
    shown, entered = _told_by_page(gr.JSON), gr.State("")
    tab.select(handlers.enter, [shown, entered], [view, entered], js=page_tells("shown"), **look)
    view.pair(handlers.pair, outputs=view, **look)
    view.again(handlers.again, outputs=view, **model)


def _image_column(files: Files) -> tuple[gr.components.Component, ...]:
    static('<header class="ins-head"><h2>Image</h2></header>')
    well = image_well(files, elem_id="ins-well")
    with gr.Row(elem_classes="ins-scene"):
        choices = [(words, name) for name, words in FAMILIES.items()]
        family = gr.Dropdown(choices, value="find", label="Family of the new scene", container=False, filterable=False)
        another = gr.Button("New scene", size="md", elem_id="ins-another")
    return well, family, another, examples_row([_thumbnail(name) for name in FAMILIES])


def _question_bar(asked: str) -> tuple[gr.components.Component, ...]:
    """What stays in view while the column does."""
    with gr.Column(elem_classes="ins-bar"):
        notice = gr.HTML("", apply_default_css=False, elem_id="ins-notice")
        question = gr.Textbox(asked, label="Question", lines=2, max_lines=6, submit_btn=False, elem_id="ins-question")
        back = gr.Button("Back to what you were writing", visible=False, size="sm", elem_id="ins-back")
        with gr.Row(elem_classes="ins-runrow"):
            run = gr.Button("Run", variant="primary", elem_id="ins-run")
            stop = gr.Button("Stop", interactive=False, elem_id="ins-stop")  # asking.js enables it during runs
    return notice, question, back, run, stop


def _settings_column(runner: Runner) -> dict[str, gr.components.Component]:
    """Component of each setting by its name, in the order in which handlers get them."""
    methods = [(method_label(name), name) for name in runner.names]
    k, sampling = opening(runner.names[0], runner.folders.get(runner.names[0]))
    fields: dict[str, gr.components.Component] = {
        "checkpoint": gr.Radio(methods, value=runner.names[0], label="Method", elem_classes="ins-seg ins-methods"),
    }
    fields |= {each.name: page_field(each, k, sampling) for each in CONTROLS if not each.folded}
    with (
        gr.Accordion("Sampling, limits, attention rule", open=False, elem_id="ins-more"),
        gr.Row(elem_classes="ins-sampling"),
    ):
        fields |= {each.name: page_field(each, k, sampling) for each in CONTROLS if each.folded}
    return fields


def _thumbnail(family: str) -> dict[str, Any]:
    images, question, scene = new_scene(family, FIRST_SEED)
    (file,) = as_files(images)
    return {**scene, "question": question, "image": data_url(images[0]), "file": file}
