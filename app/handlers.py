"""The page's events as Gradio calls them: values of components in, values of components out. Wired in page.py."""

import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from app import pictures, traces
from app.ask import FAILURES, Scene, answer_stream, model_failed, new_scene, place_for
from app.components import SHOWN, Files, as_file, as_files, inside, paths, showable
from app.controls import CONTROLS, by_name, k_label
from app.errors import as_user_errors, sentence
from app.fields import with_settings
from app.forms import Form
from app.formulas import formulas
from app.gradio_private import data_of
from app.history import History, SavedRun
from app.inspect_run import compared, inspected, run_again
from app.limits import MAX_NAME
from app.runner import Runner
from app.workers import PICTURES, TRACES
from latent_core import glyphs
from latent_core.config import Sampling

PHOTO = (
    "This model only knows Glyphs scenes; its answer means nothing here. "
    "Choose a GPU checkpoint to ask about other pictures."
)

MOST_SEEDS = 2**31
"""Scenes of a family that can be asked for by number."""
MOST_REMEMBERED = 4096
"""Uploaded pictures of which it is remembered whether they could be scenes."""


SAMPLING = tuple(Sampling.__dataclass_fields__)
"""Settings that follow the chosen checkpoint, as K does."""


class Handlers:
    """The Ask page's events, bound to one runner."""

    def __init__(self, runner: Runner, history: History) -> None:
        self.runner, self.history = runner, history
        self._scenes: OrderedDict[str, bool] = OrderedDict()  # uploaded pictures by path

    @as_user_errors
    @with_settings(CONTROLS)
    def ask(
        self, at: float | None, files: Files, question: str, scene: Scene | None, checkpoint: str, *values: Any
    ) -> Iterator[dict[str, Any]]:
        """The run that was asked for, and every one that is asked for until it ends.

        `at`: when, in milliseconds of the page's clock; none: now; negative: nothing was asked for after all.
        `values`: those of CONTROLS, then the request.
        """
        *chosen, request = values
        settings, session = by_name(chosen), session_of(request)
        self.history.admit(session)
        work = Form(files=files, question=question, scene=scene), checkpoint, settings
        for turn in self.runner.turns(session, at or now(), work):
            form, checkpoint, settings = turn.work
            runs = answer_stream(
                self.runner, session, **form, checkpoint=checkpoint, cancelled=turn.cancelled, **settings
            )
            for value, path in runs:
                if path:
                    self.history.add(session, value["run"], value["name"], path, form)
                    value |= {"trace": as_file(path)}
                yield value | {"at": turn.at}

    @as_user_errors
    def settle(self, checkpoint: str, latents: int | None, chosen: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """K of a newly chosen checkpoint, as it was left or else as the checkpoint was taught; the K of each, to come
        back to.
        """
        reasoner = self.runner.reasoner(checkpoint)
        allowed, by_checkpoint = reasoner.config.latents, {**chosen["k"], chosen["now"]: latents}
        update = {"maximum": allowed.max, "label": k_label(reasoner.method.num_latents_is_maximum)}
        k = by_checkpoint.get(checkpoint)
        k = k if k is not None and allowed.min <= k <= allowed.max else allowed.default
        if k != latents:
            update["value"] = k
        return gr.update(**update), {"now": checkpoint, "k": by_checkpoint}

    @as_user_errors
    def sample(self, checkpoint: str, former: dict[str, float], *values: float | None) -> tuple[Any, ...]:
        """The fields of SAMPLING for a newly chosen checkpoint, its own but for those that the visitor has set; and
        its own, to compare with next time.
        """
        defaults = dataclasses.asdict(self.runner.reasoner(checkpoint).config.sampling)
        updated = [
            defaults[name] if value == former[name] else value for name, value in zip(SAMPLING, values, strict=True)
        ]
        return *updated, defaults

    @as_user_errors
    def interrupt(self, at: float | None, request: gr.Request) -> None:
        """Stops what runs, to make room for what is asked for at the time `at` as in `ask`."""
        self.runner.interrupt(session_of(request), at or now())

    @as_user_errors
    def stop(self, at: float | None, request: gr.Request) -> None:
        """The Stop button, at the time `at` of the page's clock."""
        self.runner.stop(session_of(request), at)

    @as_user_errors
    def forget(self, request: gr.Request) -> None:
        """The tab is closed or has lost its connection: what it runs ends; its runs stay, for it may come back."""
        self.runner.forget(session_of(request))

    @as_user_errors
    def region(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """The words and latents that look into the region painted on a run's image, or a sentence."""
        data = asked_with(event)
        try:
            self.runner.inspections.take(session_of(request))
            run = self.history.find(session_of(request), str(data["run"]))
            box = tuple(float(edge) for edge in data["box"])
            where = {name: int(data[name]) for name in ("image", "level", "layer", "head")}
            centred = data["centred"] is True
            with self.runner.in_order(session_of(request)):
                figures = TRACES.run(
                    self.runner.limits, traces.region, str(run.path), box=box, centred=centred, **where
                )
        except ValueError as problem:
            return {"problem": sentence(problem)}
        except (TypeError, KeyError, OverflowError):
            return {"problem": "That is not a region of a run; paint one on its image."}
        return {
            "run": str(data["run"]),
            "box": list(box),
            "image": where["image"],
            **figures,
            "formulas": formulas("region"),
        }

    @as_user_errors
    def scene(self, family: str) -> tuple[Files, Files, str, Scene, str]:
        """A new scene."""
        return self.made(loaded(family))

    @as_user_errors
    def example(self, event: gr.EventData) -> tuple[Files, Files, str, Scene, str, str]:
        """The example scene that was clicked, and its family."""
        family, seed = asked_with(event).get("family"), asked_with(event).get("seed")
        if family not in list(glyphs.FAMILIES) or type(seed) is not int or not 0 <= seed < MOST_SEEDS:
            raise gr.Error("That example does not exist; choose another.")
        return *self.made(loaded(family, seed)), family

    @as_user_errors
    def check(self, files: Files, usable: Files, checkpoint: str, request: gr.Request) -> tuple[Files, Files, str]:
        """New images: those that can be used (else the ones before), the same to remember, and a notice."""
        with self.runner.in_order(session_of(request)):
            return self._checked(files, usable, checkpoint)

    def _checked(self, files: Files, usable: Files, checkpoint: str) -> tuple[Files, Files, str]:
        good, problems = [], []
        limits = self.runner.limits
        for file in (files if isinstance(files, list) else [])[: limits.images]:
            try:
                (path,) = paths([file])
                picture = PICTURES.run(limits, pictures.looked_at, path, limits.pixels, SHOWN)
                self._remember(path, picture.glyphs)
                good.append(showable(file, picture.png))
            except ValueError as problem:
                problems.append(f'<p class="ins-problem" role="alert">{escape(str(problem))}</p>')
        use = good or (usable if problems else [])
        return use, use, "".join(problems) + self.photo_notice(use, checkpoint)

    @as_user_errors
    def photo_notice(self, files: Files, checkpoint: str) -> str:
        """HTML that says so where a picture is shown to a model that cannot know such pictures."""
        if (
            self.runner.config(checkpoint).world != "glyphs"
        ):  # without waiting for a model: later news would come first
            return ""
        if all(self._is_scene(path) for path in paths(files)[: self.runner.limits.images]):
            return ""
        return f'<p class="ins-notice" role="status">{PHOTO}</p>'

    def _is_scene(self, path: str) -> bool:
        """Whether an uploaded picture could be a Glyphs scene; what was found is kept, for files do not change."""
        remembered = self._scenes.get(path)
        if remembered is not None:
            return remembered
        limits = self.runner.limits
        picture = PICTURES.run(limits, pictures.looked_at, path, limits.pixels, SHOWN)
        self._remember(path, picture.glyphs)
        return picture.glyphs

    def made(self, fresh: tuple[Files, Files, str, Scene, str]) -> tuple[Files, Files, str, Scene, str]:
        """What `loaded` gave, its images remembered as scenes, for they were made here."""
        for file in fresh[0]:
            self._remember(file["path"], True)
        return fresh

    def _remember(self, path: str, scene: bool) -> None:
        self._scenes[path] = scene
        while len(self._scenes) > MOST_REMEMBERED:
            self._scenes.popitem(last=False)


class Inspecting:
    """The Inspect page's events."""

    def __init__(self, runner: Runner, history: History) -> None:
        self.runner, self.history = runner, history

    @as_user_errors
    def enter(self, shown: object, entered: str, request: gr.Request) -> tuple[Any, str]:
        """The page is opened: the run that Ask shows, unless it was opened from there already."""
        run, token = _run_shown(self.history, session_of(request), shown)
        if run is None or token == entered:
            return {"runs": self.history.choices(session_of(request))}, entered
        return self._value(request, run.id), token

    @as_user_errors
    def open(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """A run is chosen."""
        return self._value(request, asked_with(event).get("id"))

    @as_user_errors
    def read(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """The chosen run with its latents read by layer, which needs its model."""
        return self._value(request, asked_with(event).get("id"), model=True)

    @as_user_errors
    def rename(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """A run gets another name."""
        session, id = session_of(request), asked_with(event).get("id")
        try:
            self.history.rename(session, id, str(asked_with(event).get("name", "")))
        except ValueError as problem:
            return self._problem(request, problem)
        return self._value(request, id)

    @as_user_errors
    def remove(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """A run is deleted; the next one takes its place."""
        try:
            self.history.remove(session_of(request), asked_with(event).get("id"))
        except (ValueError, OSError) as problem:
            return self._problem(request, problem)
        runs = self.history.runs(session_of(request))
        return self._value(request, runs[0].id) if runs else self._problem(request, ValueError("There is no run."))

    @as_user_errors
    def upload(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """A trace file of a visitor's own: read, and kept like a run."""
        session = session_of(request)
        try:
            self.runner.inspections.take(session)
            path, number = inside(asked_with(event).get("path")), self.runner.next_run()
            with place_for(number, self.runner.limits) as target:
                heading = TRACES.run(self.runner.limits, traces.adopted, path, target)
            run = self.history.add(session, number, f"Opened: {heading.name}", target)
        except (ValueError, OSError) as problem:
            return self._problem(request, problem)
        return self._value(request, run.id, heading=heading)

    def _value(
        self, request: gr.Request, id: object, *, model: bool = False, heading: traces.Heading | None = None
    ) -> dict[str, Any]:
        session = session_of(request)
        try:
            self.runner.inspections.take(session)
            with self.runner.in_order(session):
                value = inspected(self.runner, self.history, session, id, model=model, heading=heading)
        except ValueError as problem:
            return self._problem(request, problem)
        return value | {"runs": self.history.choices(session)}

    def _problem(self, request: gr.Request, problem: Exception) -> dict[str, Any]:
        """A sentence beside what is shown already."""
        return {"problem": sentence(problem), "runs": self.history.choices(session_of(request))}


class Comparing:
    """The Compare page's events."""

    def __init__(self, runner: Runner, history: History) -> None:
        self.runner, self.history = runner, history

    @as_user_errors
    def enter(self, shown: object, entered: str, request: gr.Request) -> tuple[Any, str]:
        """The page is opened: the run that Ask shows as A, the newest other one as B, unless that was done before."""
        session = session_of(request)
        run, token = _run_shown(self.history, session, shown)
        if run is None or token == entered:
            return self._listed(request, {}), entered
        others = [other for other in self.history.runs(session) if other.id != run.id]
        return self._value(request, run.id, (others or [run])[0].id), token

    @as_user_errors
    def pair(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Two runs are chosen."""
        return self._value(request, asked_with(event).get("a"), asked_with(event).get("b"))

    @as_user_errors
    def again(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """A's question once more with another setting, as B."""
        session, id, changes = session_of(request), asked_with(event).get("id"), asked_with(event).get("changes")
        try:
            if not isinstance(changes, dict):
                raise ValueError("Name the setting that should change.")
            run = run_again(self.runner, self.history, session, id, changes)
        except ValueError as problem:
            return self._listed(request, {"problem": sentence(problem)})
        except FAILURES as failure:
            return self._listed(request, {"problem": model_failed(failure)})
        if run is None:
            return self._listed(request, {"problem": "The run was stopped."})
        return self._value(request, id, run.id)

    def _value(self, request: gr.Request, first: object, second: object) -> dict[str, Any]:
        session = session_of(request)
        try:
            self.runner.inspections.take(session)
            with self.runner.in_order(session):
                value = compared(self.runner, self.history, session, first, second)
            return self._listed(request, value)
        except ValueError as problem:
            return self._listed(request, {"problem": sentence(problem)})

    def _listed(self, request: gr.Request, value: dict[str, Any]) -> dict[str, Any]:
        return value | {"runs": self.history.choices(session_of(request)), "checkpoints": list(self.runner.known)}


def asked_with(event: gr.EventData) -> dict[str, Any]:
    """The named values that the browser sent with an event; none where it sent no object."""
    data = data_of(event)
    return data if isinstance(data, dict) else {}


def _run_shown(history: History, session: str, shown: object) -> tuple[SavedRun | None, str]:
    """The run that the Ask page shows, and a word for this way of coming to it; the newest where none is kept of it.

    `shown` is what the browser says: the run's id, and when the way was taken.
    """
    data = shown if isinstance(shown, dict) else {}
    runs = history.runs(session)
    for run in runs:
        if run.id == data.get("run"):
            return run, f"{run.id} {str(data.get('at'))[:40]}"
    return (runs[0], runs[0].id) if runs else (None, "")


def now() -> float:
    """Milliseconds as the page's clock counts them, for programs, which have none."""
    return 1000 * time.time()


def loaded(family: str, seed: int | None = None) -> tuple[Files, Files, str, Scene, str]:
    """Images, the same to remember, question, identity of a scene, and no notice."""
    images, question, scene = new_scene(family, seed)
    files = as_files(images)
    return files, files, question, scene, ""


def session_of(request: gr.Request) -> str:
    """Gradio's name of the browser tab or API client; a name of its own for a request that gives none.

    Raises ValueError for a name longer than any of Gradio's.
    """
    name = request.session_hash or secrets.token_hex(8)
    if len(name) > MAX_NAME:
        raise ValueError(f"The session's name has {len(name):,} characters; at most {MAX_NAME} are accepted.")
    return name
