"""The value of the run view, from a View. While a run streams: the last items. At its end: all items and maps, once.

No more than app/budget.py says, however long the run and large its images.

Shapes: Q items with a vector, S levels, N image tokens, D model width.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image

from app.budget import ANSWER, PICTURES, UPDATE, size, spread
from app.view import Item, View, answer
from latent_core.analysis.attention import baseline, with_mean
from latent_core.analysis.compact import byte_maps, cosine_steps, rounded
from latent_core.analysis.geometry import mean_norm, norms
from latent_core.analysis.similarity import nearest_patch
from latent_core.events import StartEvent

LAST = 64
"""Items in a streamed update. At ten updates a second none is missed below 640 items/s, and the end sends all."""
MAP_BUDGET = 1_000_000
"""Numbers in the maps of one run (2 bytes each); above it levels are thinned out."""
ATTENTION_BUDGET = 1_500_000
"""Bytes of attention maps of one run; 16 latents and 50 words of the embedded models need 60,000."""
SHOWN_SIDES = (768, 512, 384, 256, 128)
"""Pixels of the longer side of an image in the browser: the first with which all of a run are within their budget."""
NUMBER = 9
"""Bytes of a number with four decimals in JSON, at most."""


def payload(
    view: View,
    run: int,
    *,
    label: str,
    truth: str | None = None,
    problem: str | None = None,
    budget: int = ANSWER,
) -> dict[str, Any]:
    """The value of the run view component.

    Args:
        run: number of the run; larger is later, the page drops updates of earlier ones.
        label: the method's name for the list of earlier runs.
        truth: the scene's own answer where the image is a generated scene.
        problem: a sentence that says why the run could not be made or finished.
        budget: bytes of the value of a finished run.
    """
    items = view.items if view.finish else view.items[-LAST:]
    budget = budget if view.finish else UPDATE
    value: dict[str, Any] = {
        "run": run,
        "label": label,
        "checkpoint": view.checkpoint,
        "question": view.question,
        "mode": view.settings.mode,
        "k": view.settings.latents,
        "rule": view.settings.rule,
        "opens": view.opens,
        "state": "failed" if problem else "finished" if view.finish else "running",
        "problem": problem,
        "n": len(view.items),
        "items": [_item(item) for item in items],
    }
    if view.start:
        value["images"] = pictures(view.start)
        value["sizes"] = [[image.shape[1], image.shape[0]] for image in view.start.images]
        value["grids"] = [list(grid) for grid in view.start.grids]
        value["looks"] = [asdict(rule) | {"measured": rule in view.measured} for rule in view.rules]
    if view.finish:
        value |= {"finish": summary(view), "truth": truth}
        value["maps"] = maps(view, budget - size(value))
    if not value.get("maps"):  # they hold what the glows do
        _add_glows(value["items"], items, budget - size(value))
    return value


def summary(view: View) -> dict[str, Any]:
    """Answer, counts and timings of a finished run, as the status line and the API give them."""
    assert view.finish is not None
    finish, final = view.finish, answer(view)
    prompt = view.start.seconds if view.start else 0.0
    return {
        "answer": final[0] if final else None,
        "probability": round(final[1], 4) if final else None,
        "text": view.text,
        "reason": finish.reason,
        "tokens": finish.tokens,
        "latents": finish.latents,
        "blocks": finish.blocks,
        "forced": any(item.forced and item.kind == "open" for item in view.items),
        "tokens_per_second": round(finish.tokens / finish.text_seconds, 1) if finish.text_seconds else None,
        "ms_per_latent": round(1000 * finish.latent_seconds / finish.latents, 2) if finish.latents else None,
        "prompt_seconds": round(prompt, 4),
        "seconds": round(prompt + finish.text_seconds + finish.latent_seconds, 4),
        "max_p_open": round(finish.max_p_open, 4),
    }


def maps(view: View, budget: int = ANSWER) -> dict[str, Any] | None:
    """Similarity of every item with every image token, by level, raw and centred; norms; cosine to the latent before.

    None where the run recorded no states. Maps are base64 of int16 (Q, S, N), little-endian, `COSINE_UNITS` per 1. In
    a long run levels are thinned out (`MAP_BUDGET`); what does not fit into `budget` bytes even so loses all levels
    but the best, and then items, words first; `left` is the sentence that says so.
    """
    every = [n for n, item in enumerate(view.items) if item.vector is not None]
    if not every or view.start is None or not view.start.image_states.numel():
        return None
    attention_maps = attention(view, budget // 2)
    budget -= size(attention_maps)
    tokens = view.start.image_states.shape[1]
    levels = _levels(len(every), *view.start.image_states.shape[:2])
    rules = [rule for rule in view.rules if rule.kind == "similarity"]
    best = [view.start.levels.index(rule.level) for rule in rules]
    levels = sorted({*levels, *(best[:1] if rules[0] in view.measured else [])})  # never left out

    def most(levels: list[int]) -> int:
        """Items whose maps fit, each with its place, norm and cosine."""
        return budget // (2 * _coded(2 * len(levels) * tokens) + 3 * NUMBER)

    levels = levels if most(levels) >= len(every) else best[:1]
    chosen = _first(view.items, every, most(levels))
    if not chosen:
        return None
    vectors = torch.stack([view.items[n].vector for n in chosen])  # (Q, D)
    states = view.start.image_states[levels]  # (S, N, D)
    text = [view.items[n].vector for n in every if view.items[n].kind == "text"]
    attending = [n for n, item in enumerate(view.items) if item.attention is not None] if attention_maps else []
    whole = set(every).union(attending)
    without_attention = set(attending).difference(attention_maps["of"] if attention_maps else ())
    left = set(every).difference(chosen).union(without_attention)
    return {
        "of": chosen,
        "levels": [view.start.levels[level] for level in levels],
        "raw": packed(cosine_steps(nearest_patch(vectors, states, centred=False))),
        "centred": packed(cosine_steps(nearest_patch(vectors, states, centred=True, reference=states[-1]))),
        "norms": rounded(norms(vectors)),
        "text_norm": rounded(mean_norm(torch.stack(text))) if text else None,
        "image_norms": rounded(mean_norm(states)),
        "previous": [_to_previous(view.items, n) for n in chosen],
        "attention": attention_maps,
        "left": f"The run is too long to send all maps: {len(left):,} of its {len(whole):,} words and latents lack "
        "some, late words first."
        if left
        else None,
    }


def attention(view: View, budget: int = ANSWER) -> dict[str, Any] | None:
    """Attention on every image token by layer, for the mean of all heads and each head; None where not recorded.

    `maps` is base64 of uint8 (Q, E, 1 + H, N), 255 for the largest of each row in `peaks` (Q, E, 1 + H); `baseline`
    (E, 1 + H, N) is the mean of the run's words, None where it has none (see analysis.attention.minus_baseline). Above
    `ATTENTION_BUDGET` single heads are left out, then layers thinned out; above `budget` bytes items, words first.
    """
    every = [n for n, item in enumerate(view.items) if item.attention is not None]
    if not every or view.start is None:
        return None
    layers, heads, tokens = view.items[every[0]].attention.image.shape
    numbers = len(every) * (tokens + NUMBER)
    single = layers * (1 + heads) * numbers <= ATTENTION_BUDGET
    sent_layers = spread(layers, max(2, ATTENTION_BUDGET // max(1, (1 + heads if single else 1) * numbers)))
    row = len(sent_layers) * (1 + heads if single else 1) * (_coded(tokens) + NUMBER)
    chosen = _first(view.items, every, (budget - row) // (row + NUMBER))  # the baseline takes a row
    if not chosen:
        return None

    def shown(n: int) -> torch.Tensor:
        weights = with_mean(view.items[n].attention.image[sent_layers].float())  # (E, 1 + H, N)
        return weights if single else weights[:, :1]

    weights = torch.stack([shown(n) for n in chosen])  # (Q, E, 1 + H, N)
    maps, peaks = as_bytes(weights)
    words = weights[[view.items[n].kind == "text" for n in chosen]]
    base, base_peaks = as_bytes(baseline(words)) if len(words) else (None, None)
    return {
        "of": chosen,
        "layers": [view.start.layers[layer] for layer in sent_layers],
        "heads": weights.shape[2],
        "maps": maps,
        "peaks": peaks,
        "baseline": base,
        "base_peaks": base_peaks,
    }


def as_bytes(weights: torch.Tensor) -> tuple[str, list[float]]:
    """Weights (…, N) as base64 of uint8, 255 for the largest of each row, and those largest, flat."""
    maps, peaks = byte_maps(weights)
    return packed(maps), rounded(peaks.flatten(), 5)


def packed(values: torch.Tensor) -> str:
    """Base64 of integers (…), little-endian, row by row."""
    array = values.numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


_shown: WeakKeyDictionary[StartEvent, list[str]] = WeakKeyDictionary()


def pictures(start: StartEvent) -> list[str]:
    """Data URLs of what the model saw, made once a run; smaller than usual where that many are that large."""
    if start not in _shown:
        for side in SHOWN_SIDES:
            urls = [image_url(image, side) for image in start.images]
            if size(urls) <= PICTURES:
                break
        _shown[start] = urls
    return _shown[start]


def image_url(image: torch.Tensor, side: int = SHOWN_SIDES[0]) -> str:
    """A data URL of an uint8 (H, W, 3) image of at most `side` pixels a side: JPEG, but exact for small ones that need
    not be made smaller."""
    picture = Image.fromarray(image.numpy())
    small = max(picture.size) <= 256 and side == SHOWN_SIDES[0]
    picture.thumbnail((side, side))
    return data_url(picture, "PNG" if small else "JPEG")


def data_url(picture: Image.Image, format: str = "PNG") -> str:
    """The picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format=format, quality=88)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _item(item: Item) -> dict[str, Any]:
    """Short names, because hundreds of these travel: k kind, t text, b block, i index, p probability, o p_open, m glow
    (added where there is room, see `_add_glows`)."""
    if item.kind == "latent":
        grid = {"c": item.columns} if item.columns else {}
        return {"k": "latent", "b": item.block, "i": item.index, "m": None, **grid}
    probability = math.exp(item.logprob)
    short = {"k": item.kind, "t": item.text, "p": round(probability, 4), "o": round(item.p_open, 4)}
    if item.kind != "text":
        short |= {"b": item.block, "f": item.forced}
    return short | ({"a": True} if item.after_block else {})


def _add_glows(values: list[dict[str, Any]], items: Sequence[Item], budget: int) -> None:
    """Adds glows, the newest first: those before came with an earlier update, and all maps come with the last."""
    for value, item in zip(reversed(values), reversed(items), strict=True):
        if item.glow is not None:
            budget -= NUMBER * len(item.glow)
            if budget < 0:
                return
            value["m"] = rounded(item.glow)


def _first(items: Sequence[Item], chosen: list[int], most: int) -> list[int]:
    """At most `most` of the chosen items, in their order: latents before words, early ones before late ones."""
    ranked = sorted(chosen, key=lambda n: items[n].kind != "latent")
    return sorted(ranked[: max(0, most)])


def _coded(count: int) -> int:
    """Bytes of so many in base64, within a longer one."""
    return math.ceil(4 * count / 3)


def _levels(items: int, levels: int, tokens: int) -> list[int]:
    """Evenly spaced level numbers, first and last included, that keep the maps within `MAP_BUDGET`."""
    return spread(levels, max(2, MAP_BUDGET // max(1, 2 * items * tokens)))


def _to_previous(items: tuple[Item, ...], n: int) -> float | None:
    """Cosine of a latent with the one before it in its block."""
    item = items[n]
    before = items[n - 1] if n else item
    if item.kind != "latent" or item.index == 0 or before.vector is None:
        return None
    return rounded(nearest_patch(item.vector.unsqueeze(0), before.vector[None, None], centred=False).flatten()[0])
