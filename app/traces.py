"""Work on recorded runs, done by workers: the path of a trace in, values for the page out.

Nothing here knows a visitor: whose file a path is, and whether it may be read, is settled before.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diff_match_patch import diff_match_patch
from PIL import Image

from app.artifacts import Artifacts
from app.budget import ANSWER, size
from app.inspect_payload import inspection, view_of
from app.names import method_label, run_name
from app.payload import payload, summary
from app.reread import Reread
from app.trace_upload import WORD, open_trace
from latent_core.analysis import regions
from latent_core.analysis.attention import over_heads
from latent_core.analysis.geometry import paired_cosine
from latent_core.events import LatentEvent
from latent_core.settings import Settings
from latent_core.trace import Trace

LISTED = 16
"""Words and latents that a painted region lists."""
DIFFERENCE = 2.0
"""Seconds for the difference of two texts."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Name, checkpoint and length of a run, before it is inspected."""

    name: str
    """What it is called until somebody gives it a name."""
    checkpoint: str
    steps: int
    whole: bool
    """Whether every step's vector was recorded, so that a model can read the run again."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The question of a run, with its images and settings."""

    images: list[Image.Image]
    """As the model saw them."""
    question: str
    checkpoint: str
    settings: Settings


def heading(path: str) -> Heading:
    """The heading of a run. Raises ValueError for a file that cannot be opened, as all functions here do."""
    return _heading(open_trace(path))


def adopted(path: str, target: str) -> Heading:
    """Writes a visitor's file anew to `target`, with nothing in it but what was checked."""
    trace = open_trace(path)
    try:
        trace.save(target)
    except OSError as failure:
        origin = failure.__cause__ if isinstance(failure.__cause__, OSError) else failure
        raise ValueError(f"The run could not be kept: {origin.strerror or 'it could not be written'}.") from failure
    return _heading(trace)


def _heading(trace: Trace) -> Heading:
    return Heading(
        name=run_name(view_of(trace)),
        checkpoint=trace.source.checkpoint,
        steps=len(trace.steps),
        whole=all(step.hidden is not None for step in trace.steps),
    )


def asked(path: str) -> Asked:
    """The question of a run, to ask it again."""
    trace = open_trace(path)
    return Asked(
        images=[Image.fromarray(image.numpy()) for image in trace.images],
        question=trace.question,
        checkpoint=trace.source.checkpoint,
        settings=trace.settings,
    )


def figures(
    path: str, artifacts: Artifacts, *, run: str, name: str, own: bool, replayed: Reread | None = None
) -> dict[str, Any]:
    """The `inspection` of a run, with its checkpoint's artifacts."""
    trace = open_trace(path)
    checkpoint = trace.source.checkpoint
    return inspection(
        trace,
        run=run,
        name=name,
        label=method_label(checkpoint),
        own=own,
        bank=artifacts.bank(checkpoint),
        depicter=artifacts.depicter(checkpoint),
        measured=artifacts.measured(checkpoint),
        replayed=replayed,
    )


def region(
    path: str,
    *,
    image: int,
    box: tuple[float, float, float, float],
    level: int,
    centred: bool,
    layer: int,
    head: int,
) -> dict[str, Any]:
    """Words and latents that look into a painted region, by attention and by similarity, and enrichment by layer.

    Args:
        box: (x0, y0, x1, y1) as shares of the image, in 0…1.
        level: a recorded level of the image states; layer: a recorded decoder layer; head: 1-based, 0 their mean.

    Raises ValueError for an image, level, layer or head that the run does not have.
    """
    trace = open_trace(path)
    start = trace.start
    if not 0 <= image < len(start.grids) or level not in start.levels:
        raise ValueError(f"The run has no image {image + 1} with states of level {level}.")
    grid = start.grids[image]
    first = sum(rows * columns for rows, columns in start.grids[:image])
    of_image = slice(first, first + grid[0] * grid[1])
    inside = regions.tokens_in(box, grid)
    whole = torch.zeros(start.image_states.shape[1], dtype=torch.bool)
    whole[of_image] = inside
    steps = [
        (n, step, step.fed if isinstance(step, LatentEvent) else step.hidden)
        for n, step in enumerate(trace.steps)
        if isinstance(step, LatentEvent) or step.kind == "text"
    ]
    steps = [(n, step, vector) for n, step, vector in steps if vector is not None]
    if not steps:
        raise ValueError("The run has no words or latents whose states were recorded.")
    states = start.image_states[start.levels.index(level)]
    vectors = torch.stack([vector for *_, vector in steps])
    cosines = regions.similarity(vectors, states, whole, centred=centred, reference=start.image_states[-1])
    rows = {
        n: {"n": n, "latent": isinstance(step, LatentEvent), "cosine": round(c, 3)}
        for (n, step, _), c in zip(steps, cosines.tolist(), strict=True)
    }
    value: dict[str, Any] = {"tokens": int(inside.sum()), "of": len(inside), "enrichment": None}
    recorded = trace.attention
    if recorded is not None:
        if layer not in recorded.layers or not 0 <= head <= recorded.summaries[0].image.shape[1]:
            raise ValueError(f"The run recorded no attention of layer {layer + 1}, head {head}.")
        weights = torch.stack([over_heads(summary.image.float()) for summary in recorded.summaries])  # (Q, E, N)
        place = recorded.layers.index(layer)
        chosen = torch.stack([one.image[place, head - 1] for one in recorded.summaries]) if head else weights[:, place]
        for step, mass in zip(recorded.steps, regions.total(chosen, whole).tolist(), strict=True):
            if step in rows:
                rows[step]["attention"] = round(mass, 4)
        kinds = {
            "latents": [q for q, step in enumerate(recorded.steps) if isinstance(trace.steps[step], LatentEvent)],
            "words": [q for q, step in enumerate(recorded.steps) if step in rows and not rows[step]["latent"]],
        }
        value["enrichment"] = {
            "layers": list(recorded.layers),
            **{
                kind: [
                    round(ratio, 3)
                    for ratio in regions.mean_enrichment(weights[at][..., of_image], box, grid).tolist()
                ]
                for kind, at in kinds.items()
                if at
            },
        }
    order = sorted(rows.values(), key=lambda row: (-row.get("attention", 0.0), -row["cosine"]))
    nearest = sorted(rows.values(), key=lambda row: -row["cosine"])
    return value | {"by_attention": order[:LISTED] if recorded else [], "by_cosine": nearest[:LISTED]}


def compared(first: str, second: str, artifacts: Artifacts) -> dict[str, Any]:
    """Two runs: their views, the difference of their words, the cosines of their latents, their figures."""
    traces = [open_trace(path) for path in (first, second)]
    views = [view_of(trace, artifacts.rules(trace.source.checkpoint)) for trace in traces]
    value = {
        "same": traces[0].question == traces[1].question,
        "words": difference(*(view.text for view in views)),
        "pairs": pairs(*traces),
        "summaries": [summary(view) for view in views],
    }
    budget = (ANSWER - size(value)) // 2
    return value | {"views": [payload(view, 0, label=method_label(view.checkpoint), budget=budget) for view in views]}


def difference(first: str, second: str) -> list[list[dict[str, Any]]]:
    """Both texts as stretches {text, same}, word by word; coarser where the finest takes longer than `DIFFERENCE`."""
    numbers: dict[str, int] = {}  # the library tells letters apart: each word becomes one
    coded = [
        "".join(chr(numbers.setdefault(word, len(numbers))) for word in WORD.findall(text)) for text in (first, second)
    ]
    words = list(numbers)
    differ = diff_match_patch()
    differ.Diff_Timeout = DIFFERENCE
    sides: list[list[dict[str, Any]]] = [[], []]
    for kind, letters in differ.diff_main(*coded, checklines=False):
        text = "".join(words[ord(letter)] for letter in letters)
        for side, changed in zip(sides, (differ.DIFF_DELETE, differ.DIFF_INSERT), strict=True):
            if kind in (changed, differ.DIFF_EQUAL):
                side.append({"text": text, "same": kind == differ.DIFF_EQUAL})
    return sides


def pairs(first: Trace, second: Trace) -> list[dict[str, Any]]:
    """Cosine of the latents at the same place of both runs; none where their models are of different width."""
    rows = []
    if first.start.image_states.shape[-1] != second.start.image_states.shape[-1]:
        return rows
    for number, (a, b) in enumerate(zip(first.blocks, second.blocks, strict=False)):
        cosines = paired_cosine(a.latents, b.latents) if len(a.latents) and len(b.latents) else torch.empty(0)
        rows += [{"block": number, "index": t, "cosine": round(c, 3)} for t, c in enumerate(cosines.tolist())]
    return rows
