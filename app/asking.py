"""One question from the outside in: check it, run it, fold its events, yield what the page shows."""

import logging
import math
import random
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from app.components import Files, paths
from app.fold import View, answer, fold
from app.limits import OWN, Limits
from app.payload import payload
from app.retention import check_room
from app.runner import Ask, Overtime, Runner, own_config, throttled
from latent_core import glyphs
from latent_core.config import LatentRange, Sampling
from latent_core.events import Event
from latent_core.images import load_image
from latent_core.settings import Settings
from latent_core.trace import Trace

Scene = Mapping[str, Any]
"""family and seed of the generated scene that was loaded last; JSON, kept in gr.State."""

OWN_RULE = "own"
"""Stands for the checkpoint's own attention rule where a field needs a value."""
WHOLE = ("latents", "max_new_tokens", "max_blocks", "top_k", "seed")
"""Settings that are whole numbers; a browser may send 8.0."""
FRACTIONS = ("temperature", "top_p", "repetition_penalty")
"""Settings that are other numbers."""

SPELLED = {"lvr": "LVR", "valr": "VaLR", "deeplatent": "DeepLatent", "rl": "RL"}
"""Methods whose names are not written as other words."""
MODES = {"latent": "K {}", "text": "text only", "forced": "forced K {}", "markers": "markers only"}
"""How a run's name tells its mode."""

log = logging.getLogger("inscape")


def k_label(caps: bool) -> str:
    """What K is called: `caps` where a block may hold fewer."""
    return "K, most latents per block" if caps else "K, latents per block"


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
    """(value of the run view, path of the finished run's trace or None), at most ten a second.

    `settings` are those of `latent_core.Settings` and `speed` ("real" or "slow"); `cancelled` is that of
    `Runner.stream`. What goes wrong becomes a sentence in the last value. A run stopped before its prompt was read has
    the state "stopped", and no finish.
    """
    number, label, problem = runner.next_run(), "", None
    view = View(checkpoint="", question="", settings=Settings(), opens=False)  # nothing of the visitor's unchecked
    try:
        ask = make_ask(paths(files), question, checkpoint, limits=runner.limits, **settings)
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
        truth = true_answer(scene, ask)
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
    files: Sequence[str],
    question: str,
    checkpoint: str,
    *,
    speed: str = "real",
    limits: Limits = OWN,
    **settings: Any,
) -> Ask:
    """What came from outside, decoded; raises ValueError with a sentence for the person. The model checks the rest."""
    settings = {name: _setting(name, value) for name, value in settings.items()}
    if settings.get("rule") == OWN_RULE:
        settings["rule"] = None
    limits.check_settings(settings)
    question = limits.check_question(question)
    limits.check_images(len(files))
    images = [load_image(file, max_pixels=limits.pixels) for file in files]
    return Ask(images=images, question=question, checkpoint=checkpoint, settings=settings, slow=speed == "slow")


def opening(checkpoint: str, folder: str | None = None) -> tuple[LatentRange, Sampling]:
    """K and sampling to begin with, before a model is loaded: the checkpoint's own, as far as they are known by then.

    Those of a checkpoint from the Hub that is no published one are not. Raises ValueError for a method.json that
    cannot be used.
    """
    config = own_config(checkpoint, folder)
    return (config.latents, config.sampling) if config else (LatentRange(), Sampling())


def _setting(name: str, value: Any) -> Any:
    """The value of a setting as the type that it has. Raises ValueError for any other."""
    words = name.replace("_", " ")
    if value is None:
        raise ValueError(f"The setting {words} is empty; write a number.")
    number = name in WHOLE or name in FRACTIONS
    if number and (type(value) not in (int, float) or (type(value) is float and not math.isfinite(value))):
        raise ValueError(f"The setting {words} is {str(value)[:40]!r}; write a number.")
    return int(value) if name in WHOLE else value


def first_view(runner: Runner, ask: Ask) -> View:
    """The view before the first event; loads the model. Raises ValueError for settings out of range."""
    reasoner = runner.reasoner(ask.checkpoint)
    return View(
        checkpoint=ask.checkpoint,
        question=ask.question,
        settings=reasoner.settings(**ask.settings),
        opens=reasoner.config.open_token is not None,
        measured=runner.companions.rules(ask.checkpoint),
    )


def folded(view: View, events: Iterator[Event], seen: list[Event]) -> Iterator[View]:
    """The view after each event, which is appended to `seen`."""
    for event in events:
        seen.append(event)
        view = fold(view, event)
        yield view


def true_answer(scene: Scene | None, ask: Ask) -> str | None:
    """The answer of the loaded scene, provided that its image and its question are the ones asked."""
    if scene is None:
        return None
    example = glyphs.sample(scene["family"], scene["seed"], split="test")
    same = len(ask.images) == len(example.images) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(ask.images, example.images, strict=True)
    )
    return example.answer if same and ask.question.strip() == example.question else None


def save_trace(trace: Trace, number: int, limits: Limits = OWN) -> str:
    """Where the trace was saved: a folder that cannot be guessed, a name that no person wrote. Raises OSError."""
    check_room(limits.disk_bytes)
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"inscape-run-{number}.safetensors"
    try:
        trace.save(path)
    except OSError:
        folder.rmdir()
        raise
    return str(path)


FAILURES = (RuntimeError, OSError, MemoryError)
"""What a model raises that is nobody's mistake: torch's own errors, a checkpoint whose files are gone."""


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


def run_name(view: View) -> str:
    """What a run is called until it is given a name: method, mode, answer."""
    found = answer(view)
    mode = f", {MODES[view.settings.mode].format(view.settings.latents)}" if view.opens else ""
    return f"{method_label(view.checkpoint)}{mode}: {found[0] if found else 'no answer'}"


def method_label(checkpoint: str) -> str:
    """`glyph-monet-faithful` → `Monet faithful`; `owner/Monet-SFT-7B/stage3` → `Monet SFT 7B stage 3`."""
    *_, folder, last = ["", *checkpoint.rstrip("/").split("/")]
    stage = re.fullmatch(r"stage(\d)", last)
    if stage:
        last = f"{folder}-stage-{stage[1]}"
    first, *rest = last.removeprefix("glyph-").split("-")
    return " ".join([SPELLED.get(first.lower(), first.capitalize()), *(SPELLED.get(word, word) for word in rest)])
