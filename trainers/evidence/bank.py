"""`python -m trainers bank`: a checkpoint's reference bank, from greedy runs on the val split of Glyphs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from random import Random

import torch
from rich.progress import track

from latent_core import glyphs, load
from latent_core.analysis.geometry import adjacent_cosine, effective_rank, instance_similarity, rank_at
from latent_core.analysis.statistics import mean
from latent_core.evaluation.reference_bank import FILE, KINDS, Bank, lay_out
from latent_core.events import TokenEvent
from latent_core.example import Example
from latent_core.glyphs.scene import CELL, SIZE, Scene
from latent_core.reasoner import Reasoner
from latent_core.trace import Trace
from trainers.evidence.measurements import beside_weights

EACH = 700
"""Vectors of every kind in the bank."""


def bank(checkpoint: str, *, n: int = 100, seed: int = 0) -> Path:
    """Runs seeds 0…n−1 of every family; returns the file, beside the weights, for one from the Hub in runs/bank/.

    Raises ValueError for a checkpoint without latents and for n below 2.
    """
    if n < 2:
        raise ValueError(f"n is {n}; at least 2 samples of each family are needed.")
    reasoner = load(checkpoint)
    if reasoner.method.open_id is None:
        raise ValueError(f"{checkpoint} has no latents, so there are no trajectories to draw.")
    examples = [glyphs.sample(family, index, "val") for family in glyphs.FAMILIES for index in range(n)]
    traces = _run(reasoner, examples, "Runs")
    pad = reasoner.backbone.embed(torch.tensor([reasoner.method.pad_id])).detach()
    finds = examples[:n]
    dummies = _run(reasoner, finds, "Dummy blocks", lambda feed: replace(feed, embeds=pad.expand_as(feed.embeds)))
    vectors, kinds, labels = _vectors(examples, traces, Random(f"bank/{seed}"))
    command = f"python -m trainers bank {checkpoint} --n {n}"
    notes = {
        "command": command,
        "fingerprint": reasoner.config.provenance.get("fingerprint", "unknown"),
        "latents": reasoner.config.latents.default,
        "runs": len(traces),
        "seed": seed,
        "versions": {name: version(name) for name in ("torch", "umap-learn")},
        "measured": measure(examples, traces, dummies),
    }
    out = beside_weights(checkpoint, "bank")
    lay_out(vectors, kinds, labels, notes, seed=seed).save(out / FILE)
    Bank.load(out / FILE)
    return out / FILE


def _run(reasoner: Reasoner, examples: Sequence[Example], what: str, intervene=None, batch: int = 50) -> list[Trace]:
    traces = []
    for start in track(range(0, len(examples), batch), description=what):
        some = examples[start : start + batch]
        traces += reasoner.run_batch(
            [list(example.images) for example in some],
            [example.question for example in some],
            temperature=0.0,
            max_blocks=4,
            intervene=intervene,
        )
    return traces


def _vectors(
    examples: Sequence[Example], traces: Sequence[Trace], rng: Random
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """EACH patches, words and latents, all after the final norm."""
    by_kind: dict[str, list[tuple[torch.Tensor, str]]] = {kind: [] for kind in KINDS}
    for example, trace in zip(examples, traces, strict=True):
        rows, columns = trace.start.grids[0]
        for cell, state in enumerate(trace.start.image_states[-1]):
            row, column = divmod(cell, columns)
            by_kind["patch"].append(
                (state, _shown(example.metadata["scene"], (row + 0.5) / rows, (column + 0.5) / columns))
            )
        for event in trace.steps:
            if isinstance(event, TokenEvent) and event.kind == "text" and event.text.strip():
                by_kind["word"].append((event.hidden, event.text.strip()))
        for number, block in enumerate(trace.blocks, 1):
            name = f"{example.metadata['family']}, block {number}"
            by_kind["latent"] += [(z, f"{name}, latent {t}") for t, z in enumerate(block.latents, 1)]
    chosen = [(kind, *item) for kind in KINDS for item in rng.sample(by_kind[kind], min(EACH, len(by_kind[kind])))]
    kinds = torch.tensor([KINDS.index(kind) for kind, _, _ in chosen], dtype=torch.uint8)
    return torch.stack([state for _, state, _ in chosen]), kinds, tuple(label for _, _, label in chosen)


def _shown(scene: Scene, y: float, x: float) -> str:
    """The label of a place of a scene: the thing there or the ground, in shares of its height and width."""
    thing = scene.at(int(y * SIZE) // CELL, int(x * SIZE) // CELL)
    return f"{thing.colour} {thing.shape}, {thing.mark}" if thing else "ground"


def measure(examples: Sequence[Example], traces: Sequence[Trace], dummies: Sequence[Trace]) -> list[dict[str, object]]:
    """Homogeneity, similarity between instances, and rank, each with what it is of, its n and 95% interval.

    The dummy block feeds the padding token's embedding in place of every latent of `find`; its states are compared.
    """
    finds = [trace for e, trace in zip(examples, traces, strict=True) if e.metadata["family"] == "find"]
    blocks = [trace.blocks[0].latents for trace in finds if trace.blocks]
    count = min(map(len, blocks), default=0)
    whole = torch.stack([block[:count] for block in blocks])
    words = [_words(trace) for trace in finds]
    patches = torch.cat([trace.start.image_states[-1] for trace in finds])
    rows = [
        _mean("adjacent cosine", "latents", (adjacent_cosine(block) for block in blocks)),
        _mean("adjacent cosine", "words of the same runs", (adjacent_cosine(states) for states in words)),
        _mean("adjacent cosine", "a dummy block", (adjacent_cosine(t.blocks[0].hidden) for t in dummies if t.blocks)),
    ]
    rows += [
        {"quantity": "similarity between instances", "of": f"latent {t}", "value": round(s, 4), "n": len(whole)}
        for t, s in enumerate(instance_similarity(whole).tolist(), 1)
    ]
    for name, vectors in (("latents", whole.flatten(0, 1)), ("words", torch.cat(words)), ("patches", patches)):
        rows.append(
            {"quantity": "effective rank", "of": name, "value": round(effective_rank(vectors), 2), "n": len(vectors)}
        )
        rows.append({"quantity": "rank at 90%", "of": name, "value": rank_at(vectors), "n": len(vectors)})
    return rows


def _words(trace: Trace) -> torch.Tensor:
    return torch.stack([e.hidden for e in trace.tokens if e.kind == "text"])


def _mean(quantity: str, of: str, values: Iterable[float | None]) -> dict[str, object]:
    interval = mean(torch.tensor([value for value in values if value is not None]))
    bounds = [round(interval.low, 4), round(interval.high, 4)]
    return {"quantity": quantity, "of": of, "value": round(interval.value, 4), "interval": bounds, "n": interval.n}
