"""A question on its way through the app: checked, run, its events folded into the values that the page shows."""

import logging
import random
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
from PIL import Image

from app import controls, pictures, visitor
from app.components import Files, paths
from app.limits import OWN, Limits
from app.names import method_label, run_name
from app.payload import payload
from app.runner import Ask, Overtime, Runner, own_config, throttled
from app.store import store
from app.view import View, fold
from app.workers import PICTURES
from latent_core import glyphs
from latent_core.config import LatentRange, Sampling
from latent_core.events import Event
from latent_core.model.fitting import Fit
from latent_core.settings import Settings
from latent_core.trace import Trace

Scene = Mapping[str, Any]
"""family and seed of the generated scene that was loaded last; JSON, kept in gr.State."""

log = logging.getLogger("inscape")


def answer_stream(
    runner: Runner,
    session: str,
    files: Files,
    question: str,
    checkpoint: str,
    scene: Scene | None,
    *,
    cancelled: threading.Event | None = None,
    **settings: Any,
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """A run as pairs (value of the run view, path of the finished run's trace or None), at most ten a second.

    `settings` are those of `latent_core.Settings` and `speed` ("real" or "slow"); `cancelled` is that of
    `Runner.stream`. What goes wrong becomes a sentence in the last value. A run stopped before its prompt was read has
    the state "stopped", and no finish.
    """
    number, label, problem = runner.next_run(), "", None
    view = View(checkpoint="", question="", settings=Settings(), opens=False)  # nothing of the visitor's unchecked
    try:
        ask = make_ask(runner, paths(files), question, checkpoint, **settings)
        view = first_view(runner, ask)
        label = method_label(checkpoint)
        yield payload(view, number, label=label), None
        events: list[Event] = []
        try:
            for view in throttled(folded(view, runner.stream(session, ask, cancelled), events)):  # noqa: B020
                if view.finish is None:
                    yield payload(view, number, label=label), None
        except Overtime as overtime:
            problem = str(overtime)
            view = reduce(fold, events, first_view(runner, ask))  # throttled() may have held the last one back
        if not events:
            yield payload(view, number, label=label, problem=problem) | {"state": "stopped"}, None
            return
        trace = runner.trace(ask, events)
        view = view if view.finish else fold(view, trace.finish)
        truth = true_answer(scene, ask, runner.reasoner(checkpoint).fit)
    except ValueError as wrong:
        yield payload(view, number, label=label, problem=str(wrong)), None
        return
    except FAILURES as failure:
        yield payload(view, number, label=label, problem=model_failed(failure)), None
        return
    done = payload(view, number, label=label, truth=truth) | {"name": run_name(view), "problem": problem}
    yield done, None
    try:
        path = save_trace(trace, number, runner.limits)
    except OSError as failure:
        yield done | {"problem": " ".join(filter(None, [problem, unsaved(failure)]))}, None
    else:
        yield done, path


def new_scene(family: str, seed: int | None = None) -> tuple[list[Image.Image], str, Scene]:
    """Images, question and identity of a scene of `family`; a random one without `seed`.

    Raises ValueError for an unknown family or a negative seed.
    """
    chosen = random.randrange(1_000_000) if seed is None else seed
    example = glyphs.sample(family, chosen, split="test")
    return list(example.images), example.question, {"family": family, "seed": chosen}


def make_ask(
    runner: Runner, files: Sequence[str], question: str, checkpoint: str, *, speed: str = "real", **settings: Any
) -> Ask:
    """What came from outside as an `Ask`, with images as the model sees them; loads the model, which checks the rest.

    Raises ValueError with a sentence for the person.
    """
    limits = runner.limits
    settings = controls.read(settings)
    limits.check_settings(settings)
    question = limits.check_question(question)
    limits.check_images(len(files))
    fit = runner.reasoner(checkpoint).fit
    images = [PICTURES.run(limits, pictures.opened, file, limits.pixels, fit) for file in files]
    return Ask(images=images, question=question, checkpoint=checkpoint, settings=settings, slow=speed == "slow")


def opening(checkpoint: str, folder: str | None = None) -> tuple[LatentRange, Sampling]:
    """K and sampling to begin with, before a model is loaded: the checkpoint's own, as far as they are known by then.

    Those of a checkpoint from the Hub that is no published one are not. Raises ValueError for a method.json that
    cannot be used.
    """
    config = own_config(checkpoint, folder)
    return (config.latents, config.sampling) if config else (LatentRange(), Sampling())


def first_view(runner: Runner, ask: Ask) -> View:
    """The view before the first event; loads the model. Raises ValueError for settings out of range."""
    reasoner = runner.reasoner(ask.checkpoint)
    return View(
        checkpoint=ask.checkpoint,
        question=ask.question,
        settings=reasoner.settings(**ask.settings),
        opens=reasoner.config.open_token is not None,
        measured=runner.artifacts.rules(ask.checkpoint),
    )


def folded(view: View, events: Iterator[Event], received: list[Event]) -> Iterator[View]:
    """The view after each event, which is appended to `seen`."""
    for event in events:
        received.append(event)
        view = fold(view, event)
        yield view


def true_answer(scene: Scene | None, ask: Ask, fit: Fit | None) -> str | None:
    """The answer of the loaded scene, provided that its image, as `fit` makes it, and its question are those asked."""
    if scene is None:
        return None
    example = glyphs.sample(scene["family"], scene["seed"], split="test")
    images = [fit(image) for image in example.images] if fit else example.images
    same = len(ask.images) == len(images) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(ask.images, images, strict=True)
    )
    return example.answer if same and ask.question.strip() == example.question else None


def save_trace(trace: Trace, number: int, limits: Limits = OWN) -> str:
    """Saves a trace in the store and returns its path. Raises OSError."""
    with place_for(number, limits) as path:
        trace.save(path)
    return path


@contextmanager
def place_for(number: int, limits: Limits = OWN) -> Iterator[str]:
    """A path for the trace of a run: a folder that cannot be guessed, a name that no person wrote.

    What is written there is entered in the store; nothing stays where that fails. Raises OSError where there is no
    room.
    """
    owner = visitor.of_handler()
    store().make_room(owner, limits)
    path = store().folder / secrets.token_hex(16) / f"inscape-run-{number}.safetensors"
    path.parent.mkdir(parents=True)
    try:
        yield str(path)
    except (OSError, ValueError, RuntimeError):
        shutil.rmtree(path.parent, ignore_errors=True)  # what stays is swept away later
        raise
    store().add(path, owner)


FAILURES = (RuntimeError, OSError, MemoryError)
"""Errors of a model that are nobody's mistake: torch's own, and those of a checkpoint whose files are gone."""


def model_failed(failure: Exception) -> str:
    """Logs what happened to the model; the sentence for the visitor, without the names of folders."""
    log.error("A run failed.", exc_info=failure)
    reason = "its files cannot be read" if isinstance(failure, OSError) else (str(failure) or "memory ran out")
    return f"The model could not answer ({reason.splitlines()[0]}). The server's log says more."


def unsaved(failure: OSError) -> str:
    """Logs why a trace could not be saved; the sentence for the visitor, without the names of folders."""
    log.warning("A trace could not be saved: %s", failure)
    origin = failure.__cause__ if isinstance(failure.__cause__, OSError) else failure
    return f"The answer is complete, but its trace could not be saved: {origin.strerror or origin}"
