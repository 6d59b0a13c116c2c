"""The Inspect and Compare pages from the outside in: a run's id in, a value for the page out."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from app.asking import first_view, folded, method_label, run_name, save_trace, unsaved
from app.budget import ANSWER, size
from app.companions import Companions
from app.components import as_file
from app.fold import View
from app.history import History, Kept
from app.inspection import Reread, inspection, view_of
from app.payload import payload
from app.runner import Ask, Runner
from latent_core.analysis import regions
from latent_core.analysis.similarity import nearest_patch
from latent_core.events import Event, LatentEvent
from latent_core.trace import Trace

MOST_STEPS = 600
"""Steps of a run that can be read by a model again for the page."""
LISTED = 16
"""Words and latents that a painted region lists."""
AT_ONCE = 512
"""Words and latents that are compared with all patches at once."""


def inspected(
    runner: Runner, history: History, companions: Companions, session: str, id: object, *, model: bool = False
) -> dict[str, Any]:
    """The Inspect view of a run; `model` loads its model where that is not loaded yet, to read latents by layer.

    Raises ValueError for a run that is not kept, a broken file, or a model that does not fit.
    """
    kept = history.find(session, id)
    trace = Trace.load(kept.path)
    checkpoint = trace.source.checkpoint
    ready = checkpoint in runner.known and (model or checkpoint in runner.loaded)
    replayed = _reread(runner, trace) if ready else None
    own = not kept.id.startswith("recorded:")
    value = figures(trace, companions, run=kept.id, name=kept.name, own=own, replayed=replayed)
    return value | {"known": checkpoint in runner.known, "trace": as_file(str(kept.path)) if own else None}


def figures(
    trace: Trace, companions: Companions, *, run: str, name: str, own: bool, replayed: Reread | None = None
) -> dict[str, Any]:
    """`inspection` with what lies beside the run's checkpoint. Raises ValueError for a broken file."""
    checkpoint = trace.source.checkpoint
    return inspection(
        trace,
        run=run,
        name=name,
        label=method_label(checkpoint),
        own=own,
        bank=companions.bank(checkpoint),
        depicter=companions.depicter(checkpoint),
        measured=companions.measured(checkpoint),
        replayed=replayed,
    )


def _reread(runner: Runner, trace: Trace) -> Reread | None:
    """The run once more through its model; None where it has no vectors or is too long for that."""
    vectors = [step.hidden for step in trace.steps]
    if any(vector is None for vector in vectors) or len(trace.steps) > MOST_STEPS:
        return None
    return runner.reread(trace)


def region_ranks(
    trace: Trace,
    *,
    image: int,
    box: tuple[float, float, float, float],
    level: int,
    centred: bool,
    layer: int,
    head: int,
) -> dict[str, Any]:
    """Who looks into a painted region: words and latents by attention and by similarity, and enrichment by layer.

    Args:
        box: (x0, y0, x1, y1) as shares of the image, in 0…1.
        level: a recorded level of the image states; layer: a recorded decoder block; head: 1-based, 0 their mean.

    Raises ValueError for an image, level, layer or head that the run does not have.
    """
    start = trace.start
    if not 0 <= image < len(start.grids) or level not in start.levels:
        raise ValueError(f"The run has no image {image + 1} with states of level {level}.")
    grid = start.grids[image]
    first = sum(rows * columns for rows, columns in start.grids[:image])
    own = slice(first, first + grid[0] * grid[1])
    inside = regions.tokens_in(box, grid)
    whole = torch.zeros(start.image_states.shape[1], dtype=torch.bool)
    whole[own] = inside
    steps = [
        (n, step, step.fed if isinstance(step, LatentEvent) else step.hidden)
        for n, step in enumerate(trace.steps)
        if isinstance(step, LatentEvent) or step.kind == "text"
    ]
    steps = [(n, step, vector) for n, step, vector in steps if vector is not None]
    if not steps:
        raise ValueError("The run has no words or latents whose states were recorded.")
    states = start.image_states[start.levels.index(level)][None]
    vectors = torch.stack([vector for *_, vector in steps])
    cosines = torch.cat(
        [
            nearest_patch(part, states, centred=centred, reference=start.image_states[-1])[:, 0, whole].mean(1)
            for part in vectors.split(AT_ONCE)
        ]
    )
    rows = {
        n: {"n": n, "latent": isinstance(step, LatentEvent), "cosine": round(c, 3)}
        for (n, step, _), c in zip(steps, cosines.tolist(), strict=True)
    }
    found: dict[str, Any] = {"tokens": int(inside.sum()), "of": len(inside), "enrichment": None}
    recorded = trace.attention
    if recorded is not None:
        if layer not in recorded.layers or not 0 <= head <= recorded.looks[0].image.shape[1]:
            raise ValueError(f"The run recorded no attention of block {layer + 1}, head {head}.")
        weights = torch.stack([look.image.float().mean(1) for look in recorded.looks])  # (Q, E, N)
        place = recorded.layers.index(layer)
        chosen = torch.stack([look.image[place, head - 1] for look in recorded.looks]) if head else weights[:, place]
        for step, mass in zip(recorded.steps, chosen[:, whole].float().sum(1).tolist(), strict=True):
            if step in rows:
                rows[step]["attention"] = round(mass, 4)
        by_layer = regions.enrichment(weights[..., own], box, grid)  # (Q, E)
        kinds = {
            "latents": [q for q, step in enumerate(recorded.steps) if isinstance(trace.steps[step], LatentEvent)],
            "words": [q for q, step in enumerate(recorded.steps) if step in rows and not rows[step]["latent"]],
        }
        found["enrichment"] = {
            "layers": list(recorded.layers),
            **{kind: _listed(by_layer[at].mean(0)) for kind, at in kinds.items() if at},
        }
    order = sorted(rows.values(), key=lambda row: (-row.get("attention", 0.0), -row["cosine"]))
    nearest = sorted(rows.values(), key=lambda row: -row["cosine"])
    return found | {"by_attention": order[:LISTED] if recorded else [], "by_cosine": nearest[:LISTED]}


def _listed(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def compared(history: History, companions: Companions, session: str, first: object, second: object) -> dict[str, Any]:
    """The Compare view of two runs. Raises ValueError for a run that is not kept or a broken file."""
    kept = [history.find(session, id) for id in (first, second)]
    traces = [Trace.load(each.path) for each in kept]
    views = [view_of(trace, companions.rules(trace.source.checkpoint)) for trace in traces]
    value = {
        "same": traces[0].question == traces[1].question,
        "words": difference(*(view.text for view in views)),
        "pairs": pairs(*traces),
    }
    budget = (ANSWER - size(value)) // 2
    return value | {"sides": [_side(each, view, budget) for each, view in zip(kept, views, strict=True)]}


def _side(kept: Kept, view: View, budget: int) -> dict[str, Any]:
    value = payload(view, 0, label=method_label(view.checkpoint), budget=budget)
    return {"id": kept.id, "name": kept.name, "view": value}


def difference(first: str, second: str) -> list[list[dict[str, Any]]]:
    """Both texts as stretches {text, same}, word by word."""
    words = [words_of(first), words_of(second)]
    sides: list[list[dict[str, Any]]] = [[], []]
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, part in enumerate((words[0][a0:a1], words[1][b0:b1])):
            if part:
                sides[side].append({"text": "".join(part), "same": tag == "equal"})
    return sides


def words_of(text: str) -> list[str]:
    """Words with the space before them."""
    return re.findall(r"\s*\S+|\s+", text)


def pairs(first: Trace, second: Trace) -> list[dict[str, Any]]:
    """Cosine of the latents at the same place of both runs; none where their models are of different width."""
    found = []
    if first.start.image_states.shape[-1] != second.start.image_states.shape[-1]:
        return found
    for number, (a, b) in enumerate(zip(first.blocks, second.blocks, strict=False)):
        count = min(len(a.latents), len(b.latents))
        if count:
            cosines = torch.cosine_similarity(a.latents[:count].float(), b.latents[:count].float(), dim=-1)
            found += [{"block": number, "index": t, "cosine": round(c, 3)} for t, c in enumerate(cosines.tolist())]
    return found


CHANGES = {"latents": int, "mode": str, "checkpoint": str}


def run_again(runner: Runner, history: History, session: str, id: object, changes: Mapping[str, Any]) -> Kept | None:
    """The question of a run once more with other settings; None where it was stopped.

    Raises ValueError for a run that is not kept, for settings that do not exist, and where the disk is full.
    """
    trace = history.open(session, id)
    wrong = [name for name, value in changes.items() if type(value) is not CHANGES.get(name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be changed to {changes[wrong[0]]!r}.")
    checkpoint = changes.get("checkpoint", trace.source.checkpoint)
    old = trace.settings
    settings = {name: getattr(old, name) for name in old.__dataclass_fields__} | {"rule": None}
    if checkpoint == trace.source.checkpoint:
        settings["rule"] = old.rule
    else:
        settings["latents"] = runner.reasoner(checkpoint).config.latents.default  # what it was taught with
    settings |= {name: value for name, value in changes.items() if name != "checkpoint"}
    images = [Image.fromarray(image.numpy()) for image in trace.images]
    runner.limits.check_settings(settings)
    runner.limits.check_images(len(images))
    question = runner.limits.check_question(trace.question)
    ask = Ask(images=images, question=question, checkpoint=checkpoint, settings=settings)
    view, events = first_view(runner, ask), list[Event]()
    for view in folded(view, runner.stream(session, ask), events):  # noqa: B007, B020, the last view is the whole run
        pass
    if view.finish is None:
        return None
    number = runner.next_run()
    try:
        path = save_trace(runner.trace(ask, events), number, runner.limits)
    except OSError as failure:
        raise ValueError(unsaved(failure)) from failure
    return history.add(session, number, run_name(view), path)
