"""A recorded run → what the Inspect page is sent: places, matrices, shares, readings, pictures. All of it once.

No more than app/budget.py says; what is left out is named. Everything is computed by latent_core.analysis; here it is
put into a shape that the browser can draw.
"""

from dataclasses import asdict, replace
from itertools import starmap, zip_longest
from typing import Any

import torch
from PIL import Image

from app.budget import ANSWER, FIGURE, leading, size, spread
from app.payload import NUMBER, as_bytes, data_url, packed, payload
from app.reread import Reread
from app.view import View, fold_all
from latent_core.analysis import geometry, lens, plane
from latent_core.analysis.attention import over_heads
from latent_core.analysis.compact import layout_steps, rounded
from latent_core.analysis.reported import REPORTED
from latent_core.evaluation.grounding import LookRule, measured_rules
from latent_core.evaluation.image_decoder import Depicter
from latent_core.evaluation.reference_bank import AXES, KINDS, Bank
from latent_core.events import SEGMENTS, LatentEvent, TokenEvent
from latent_core.trace import Trace

SHOWN_STEPS = 600
"""Steps of a run that figures draw; a longer run is cut there, and says so."""


def view_of(trace: Trace, measured: tuple[LookRule, ...] = ()) -> View:
    """The view that a recorded run folds to, with the rules that were measured of its checkpoint."""
    opens = trace.source.method != "text"
    view = View(
        checkpoint=trace.source.checkpoint,
        question=trace.question,
        settings=trace.settings,
        opens=opens,
        measured=measured,
    )
    return fold_all(view, trace.events())


def inspection(
    trace: Trace,
    *,
    run: str,
    name: str,
    label: str,
    own: bool,
    bank: Bank | None,
    depicter: Depicter | None,
    measured: dict[str, Any],
    replayed: Reread | None,
) -> dict[str, Any]:
    """The value of the Inspect view.

    Args:
        run: the run's id in the history.
        own: whether it may be renamed and deleted.
        measured: what was measured of the checkpoint, by name: `grounding`, `depict`.
        replayed: the run once more through its model; None where no model is at hand.

    Raises ValueError for a run whose states are not finite.
    """
    rules = measured_rules(measured["grounding"]) if "grounding" in measured else ()
    steps = trace.steps[:SHOWN_STEPS]
    whole, trace = trace, replace(trace, steps=steps)
    vectors = [step.hidden if isinstance(step, TokenEvent) else step.fed for step in steps]
    chosen = [n for n, vector in enumerate(vectors) if vector is not None and _is_shown(steps[n])]
    value = {
        "id": run,
        "name": name,
        "own": own,
        "cut": len(whole.steps) - len(steps),
        "blind": not chosen or not trace.start.image_states.numel(),
    }
    if value["blind"]:
        return value | {"view": payload(view_of(whole, rules), 0, label=label)}
    states = torch.stack([vectors[n] for n in chosen])
    if not (states.isfinite().all() and trace.start.image_states.isfinite().all()):
        raise ValueError("The run holds numbers that are not finite, so its states cannot be laid out.")
    bank = bank if bank is not None and bank.vectors.shape[1] == states.shape[1] else None
    left: dict[str, int] = {}
    value |= {
        "of": chosen,
        "space": _space(trace, states, bank),
        "homogeneity": _homogeneity(trace, bank, left),
        "norms": _norms(trace, states),
        "shares": _shares(trace, left),
        "lens": _lens(states, bank, replayed, left),
        "rollout": _rollout(replayed, chosen, left),
        "depict": _depict(trace, depicter, left),
        "measured": measured,
    }
    missing = [f"{count:,} {what}" for what, count in left.items() if count]
    value["left"] = f"The run is too long to send everything; left out: {', '.join(missing)}." if missing else None
    return value | {"view": payload(view_of(whole, rules), 0, label=label, budget=ANSWER - size(value))}


def _is_shown(step: TokenEvent | LatentEvent) -> bool:
    """Words and latents; markers' states are those of the words and latents before them."""
    return isinstance(step, LatentEvent) or step.kind == "text"


def _space(trace: Trace, states: torch.Tensor, bank: Bank | None) -> dict[str, Any]:
    """Coordinates of the run's states and patches, and of the bank's, on every layout."""
    patches = trace.start.image_states[-1]
    layouts = []
    for scaled in (False, True):
        seen = plane.unit if scaled else torch.Tensor.float
        if bank is not None:
            axes, background = bank.axes(scaled=scaled), bank.seen(bank.vectors, scaled=scaled)
        else:
            background = seen(torch.cat([states, patches]))
            axes = geometry.principal_axes(background, min(AXES, *background.shape))
        names = [f"PC {i}, {100 * share:.0f}% of the variance" for i, share in enumerate(axes.explained.tolist(), 1)]
        places = (
            axes.place(background) if bank is not None else None,
            axes.place(seen(states)),
            axes.place(seen(patches)),
        )
        layouts.append({"key": f"pca.{'unit' if scaled else 'raw'}", "axes": names, **_places(*places)})
        for count in (2, 3) if bank is not None else ():
            places = (
                bank.layouts[f"umap{count}.{'unit' if scaled else 'raw'}"],
                bank.umap(states, count, scaled=scaled),
                bank.umap(patches, count, scaled=scaled),
            )
            names = [f"UMAP {i}" for i in range(1, count + 1)]
            layouts.append({"key": f"umap{count}.{'unit' if scaled else 'raw'}", "axes": names, **_places(*places)})
    return {
        "layouts": layouts,
        "kinds": [] if bank is None else [KINDS[kind] for kind in bank.kinds.tolist()],
        "labels": [] if bank is None else list(bank.labels),
        "note": None
        if bank is None
        else f"{len(bank.labels):,} states from {bank.notes['runs']} runs (`{bank.notes['command']}`)",
    }


def _places(bank: torch.Tensor | None, items: torch.Tensor, patches: torch.Tensor) -> dict[str, Any]:
    """Coordinates as base64 of int16 (points, axes), with middle and unit of the whole layout."""
    groups = {"items": items, "patches": patches}
    groups = groups if bank is None else {"bank": bank, **groups}
    layout = layout_steps(list(groups.values()))
    coded = {name: packed(steps) for name, steps in zip(groups, layout.groups, strict=True)}
    return {**coded, "middle": layout.middle.tolist(), "unit": layout.unit.item()}


def _homogeneity(trace: Trace, bank: Bank | None, left: dict[str, int]) -> dict[str, Any]:
    """Of blocks whose matrices do not fit, only the mean cosine of neighbours; counted in `left`."""
    numbered = [(number, block.latents) for number, block in enumerate(trace.blocks) if len(block.latents)]
    blocks = [latents for _, latents in numbered]
    matrices = leading((rounded(geometry.cosine_matrix(latents)) for latents in blocks), 2 * FIGURE)
    left["matrices of blocks"] = len(blocks) - len(matrices)
    measured = [] if bank is None else bank.notes["measured"]
    words = [step.hidden for step in trace.tokens if step.kind == "text" and step.hidden is not None]
    latents = torch.cat(blocks) if blocks else torch.empty(0, 1)
    return {
        "blocks": [
            {
                "number": number,
                "matrix": matrix,
                "adjacent": geometry.adjacent_cosine(latents),
            }
            for (number, latents), matrix in zip_longest(numbered, matrices)
        ],
        "words": geometry.adjacent_cosine(torch.stack(words)) if len(words) > 1 else None,
        "rank": geometry.effective_rank(latents) if len(latents) > 1 else None,
        "rank90": geometry.rank_at(latents) if len(latents) > 1 else None,
        "latents": len(latents) if blocks else 0,
        "measured": measured,
        "command": None if bank is None else bank.notes["command"],
        "reported": [asdict(reported) for reported in REPORTED],
    }


def _norms(trace: Trace, states: torch.Tensor) -> dict[str, Any]:
    """Norms over the mean text state's and over the image states' at level 0 (embeddings) and at the last."""
    levels = trace.start.image_states
    words = [step.hidden for step in trace.tokens if step.kind == "text" and step.hidden is not None]
    references = {
        "mean text state, after the final norm": torch.stack(words) if words else None,
        "mean image state, after the final norm": levels[-1],
        "mean image embedding (the merger’s output)": levels[0],
    }
    return {
        name: rounded(geometry.norm_ratio(states, reference))
        for name, reference in references.items()
        if reference is not None and geometry.mean_norm(reference) > 0
    }


def _shares(trace: Trace, left: dict[str, int]) -> dict[str, Any] | None:
    """Attention by segment, mean of the heads, per recorded layer and position; layers thinned out where need be."""
    recorded = trace.attention
    if recorded is None:
        return None
    kept = [row for row, step in enumerate(recorded.steps) if _is_shown(trace.steps[step])]
    layers = spread(len(recorded.layers), max(2, FIGURE // (NUMBER * (1 + len(SEGMENTS)) * max(1, len(kept)))))
    left["layers of attention"] = len(recorded.layers) - len(layers)
    return {
        "of": [recorded.steps[row] for row in kept],
        "layers": [recorded.layers[layer] for layer in layers],
        "segments": list(SEGMENTS),
        "shares": rounded(over_heads(recorded.shares[kept][:, layers], heads=2), 3),
        "entropy": rounded(over_heads(recorded.entropy[kept][:, layers], heads=2), 2),
    }


def _lens(states: torch.Tensor, bank: Bank | None, replayed: Reread | None, left: dict[str, int]) -> dict[str, Any]:
    """Nearest words of the bank for every state; the vocabulary by layer for latents, where a model read them."""
    found: dict[str, Any] = {"nearest": None, "layers": None}
    if bank is not None:
        rows = bank.rows("word")
        cosines, places = lens.neighbours(states, bank.vectors[rows], centred=True, count=24)
        found["nearest"] = [
            _distinct([(bank.labels[rows[place]], round(c, 2)) for c, place in zip(values, these, strict=True)])
            for values, these in zip(cosines.tolist(), places.tolist(), strict=True)
        ]
    if replayed is not None:
        read = [(str(step), layers) for step, layers in replayed.words.items()]
        found["layers"] = dict(leading(read, FIGURE))
        left["latents read by layer"] = len(read) - len(found["layers"])
    return found


def _distinct(words: list[tuple[str, float]], count: int = 5) -> list[tuple[str, float]]:
    """The first `count` different words."""
    best: dict[str, float] = {}
    for word, value in words:
        best.setdefault(word, value)
    return list(best.items())[:count]


def _rollout(replayed: Reread | None, chosen: list[int], left: dict[str, int]) -> dict[str, Any] | None:
    """`maps` is base64 of uint8 (Q, N), 255 for the largest of each row in `peaks` (Q,)."""
    if replayed is None:
        return None
    rows = torch.from_numpy(replayed.rollout[chosen])
    kept = rows[: 2 * FIGURE // (2 * rows.shape[1] + NUMBER)]
    left["rollouts"] = len(rows) - len(kept)
    return dict(zip(("maps", "peaks"), as_bytes(kept.float()), strict=True))


def _depict(trace: Trace, depicter: Depicter | None, left: dict[str, int]) -> list[dict[str, Any]] | None:
    """What each block depicts, whole and latent by latent, as pictures."""
    if depicter is None or any(
        len(block.latents) and block.latents.shape[1] != depicter.width for block in trace.blocks
    ):
        return None
    blocks = [(number, block.latents) for number, block in enumerate(trace.blocks) if 0 < len(block.latents) <= 16]

    def painted(number: int, latents: torch.Tensor) -> dict[str, Any]:
        whole, *each = [data_url(Image.fromarray(picture.numpy())) for picture in depicter.pictures(latents)]
        return {"number": number, "whole": whole, "each": each}

    found = leading(starmap(painted, blocks), FIGURE)
    left["pictures of blocks"] = len(blocks) - len(found)
    return found
