"""Grounding: how often a latent looks at the region that its latent step is about, where the true region is known.

A vector looks at the image token that it resembles most, or that it attends to most. It hits if that token lies in
the true region of the latent step. The rule (which level, raw or centred; which layer and head) is chosen on one
split and reported on another. Beside the latents stand the text tokens of the same runs, and a random region of
the same size.

Shapes: n runs, K latents of a block, N image tokens, D model width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from latent_core.analysis.regions import tokens_in
from latent_core.analysis.similarity import Grid, nearest_patch
from latent_core.analysis.statistics import Interval, is_share, mean_share
from latent_core.events import AttentionSummary, StartEvent, TokenEvent
from latent_core.example import Example
from latent_core.records import checked_report
from latent_core.settings import check
from latent_core.trace import Trace

if TYPE_CHECKING:
    from latent_core.reasoner import Reasoner  # brings transformers, which who only reads a report does not wait for

FILE = "grounding.json"
"""Beside a checkpoint's weights: what `python -m trainers ground` measured."""
KINDS = ("similarity", "attention")
MOST_NUMBER = 10_000
"""Above every level, layer and head."""


@dataclass(frozen=True, slots=True, order=True)
class LookRule:
    """A rule that says which image token a vector looks at."""

    kind: str
    """similarity or attention."""
    level: int
    """Of the image tokens' states, 0 the merger's output; or the decoder layer, 0-based."""
    part: int
    """Of similarity 0 for raw, 1 for centred; of attention the head, −1 for the mean of all."""

    def __str__(self) -> str:
        if self.kind == "similarity":
            return f"cosine with the image states at level {self.level}, {'centred' if self.part else 'raw'}"
        # counted from 1, as the page does
        head = "mean of all heads" if self.part < 0 else f"head {self.part + 1}"
        return f"attention of layer {self.level + 1}, {head}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """The shares of hits under one rule on one split."""

    rule: LookRule
    latents: Interval
    by_latent: tuple[Interval, ...]
    """Latent 1, 2, … of the block."""
    words: Interval
    """The same for the text tokens outside blocks."""
    elsewhere: Interval
    """The latents, and a random region of the same size in place of the true one."""


Hits = dict[LookRule, dict[str, torch.Tensor]]
"""Rule → latents (n, K), words (n,) and elsewhere (n,): 0 or 1, or a run's share; NaN where a block was shorter."""


def collect(reasoner: "Reasoner", examples: Sequence[Example], *, latents: int, batch: int = 32) -> Hits:
    """Runs every example; the hits of its first block's latents and of its text under every rule.

    Examples need a region in their first step. Runs without a block count as if all latents had missed.
    """
    rows: dict[LookRule, dict[str, list[torch.Tensor]]] = {}
    longest = 0
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        traces = reasoner.run_batch(
            [list(example.images) for example in part],
            [example.question for example in part],
            latents=latents,
            temperature=0.0,
            attention=True,
        )
        for number, (example, trace) in enumerate(zip(part, traces, strict=True), start):
            longest = max(longest, len(trace.blocks[0].events) if trace.blocks else 0)
            for rule, run in _hits(example, trace, latents, seed=number):
                runs = rows.setdefault(rule, {name: [] for name in run})
                for name, values in run.items():
                    runs[name].append(values)
    hits = {rule: {name: torch.stack(values) for name, values in runs.items()} for rule, runs in rows.items()}
    for tensors in hits.values():  # what no block reached says nothing
        tensors["latents"] = tensors["latents"][:, : longest or latents]
    return hits


def _hits(
    example: Example, trace: Trace, latents: int, seed: int
) -> Iterator[tuple[LookRule, dict[str, torch.Tensor]]]:
    grids, step = trace.start.grids, example.steps[0]
    inside = _over_all_images(grids, step.image_index, tokens_in(step.region, grids[step.image_index]))
    other = _over_all_images(grids, step.image_index, _random_region(step.region, grids[step.image_index], seed))
    first = [n for n, event in enumerate(trace.steps) if getattr(event, "block", -1) == 0][:latents]
    words = [n for n, event in enumerate(trace.steps) if isinstance(event, TokenEvent) and event.kind == "text"]
    chosen = [*first, *words]
    states = trace.start.image_states
    vectors = torch.stack([s.hidden if isinstance(s, TokenEvent) else s.fed for s in (trace.steps[n] for n in chosen)])
    for centred in (False, True):
        tokens = nearest_patch(vectors, states, centred=centred, reference=states[-1]).argmax(-1)  # (chosen, levels)
        for column, level in enumerate(trace.start.levels):
            yield (
                LookRule("similarity", level, int(centred)),
                _count(tokens[:, column], len(first), latents, inside, other),
            )
    attention = trace.attention
    place = {step: row for row, step in enumerate(attention.steps)}
    image = attention.image[[place[n] for n in chosen]].float()  # (chosen, E, H, N)
    maps = torch.cat([image.mean(2, keepdim=True), image], 2).argmax(-1)
    for row, layer in enumerate(attention.layers):
        for column in range(maps.shape[2]):
            yield (
                LookRule("attention", layer, column - 1),
                _count(maps[:, row, column], len(first), latents, inside, other),
            )


def _count(
    tokens: torch.Tensor, first: int, latents: int, inside: torch.Tensor, other: torch.Tensor
) -> dict[str, torch.Tensor]:
    """One run's hits. tokens: the image tokens that `first` latents and then text tokens look at."""
    # a run without a block has missed; a block of fewer latents than K, the most, has not
    hits = torch.full((latents,), float("nan") if first else 0.0)
    hits[:first] = inside[tokens[:first]].float()
    elsewhere = other[tokens[:first]].float().mean() if first else torch.tensor(0.0)
    return {"latents": hits, "words": inside[tokens[first:]].float().mean(), "elsewhere": elsewhere}


def _over_all_images(grids: Sequence[Grid], image: int, inside: torch.Tensor) -> torch.Tensor:
    """(N,) bool over all images, from that of one."""
    parts = [inside if i == image else torch.zeros(r * c, dtype=torch.bool) for i, (r, c) in enumerate(grids)]
    return torch.cat(parts)


def _random_region(box: Sequence[float], grid: Grid, seed: int) -> torch.Tensor:
    """(N,) bool: a region as tall and wide as the box, anywhere on the grid."""
    region = tokens_in(tuple(box), grid).reshape(grid)
    tall, wide = int(region.any(1).sum()), int(region.any(0).sum())
    rng = Random(f"grounding/{seed}")
    row, column = rng.randrange(grid[0] - tall + 1), rng.randrange(grid[1] - wide + 1)
    inside = torch.zeros(grid, dtype=torch.bool)
    inside[row : row + tall, column : column + wide] = True
    return inside.flatten()


def looked_at(
    rule: LookRule, start: StartEvent, vector: torch.Tensor | None, look: AttentionSummary | None
) -> torch.Tensor | None:
    """The map (N,) of where one vector (D,) looks under a rule: cosines in −1…1 or attention in 0…1.

    None where the run did not record that. look: the attention of the vector's state.
    """
    if rule.kind == "attention":
        if look is None or rule.level not in start.layers or rule.part >= look.image.shape[1]:
            return None
        weights = look.image[start.layers.index(rule.level)].float()  # (H, N)
        return weights.mean(0) if rule.part < 0 else weights[rule.part]
    if vector is None or rule.level not in start.levels or not len(start.image_states):
        return None
    states, place = start.image_states, start.levels.index(rule.level)
    centred = rule.part == 1
    return nearest_patch(vector[None], states[place : place + 1], centred=centred, reference=states[-1])[0, 0]


def unmeasured(start: StartEvent) -> LookRule:
    """The rule where none was measured: centred, at the level before the final norm.

    That is where most embedded checkpoints' latents hit oftenest, and centred for most raw maps are alike.
    """
    return LookRule("similarity", start.levels[-2:][0] if start.levels else 0, 1)


def read_report(path: Path) -> dict[str, Any]:
    """The content of a grounding.json, for readers that trust it. Raises ValueError for one that cannot be used."""
    return checked_report(path, _check_report)


def measured_rules(report: dict[str, Any]) -> tuple[LookRule, ...]:
    """The rules of a report, the one whose latents hit oftenest first."""
    rows = sorted(report["rows"], key=lambda row: -row["latents"]["value"])
    return tuple(LookRule(**row["rule"]) for row in rows)


def _check_report(report: object) -> None:
    check(isinstance(report, dict), "it is no object of named values")
    assert isinstance(report, dict)
    rows = report.get("rows")
    check(isinstance(rows, list) and 0 < len(rows) <= 16, "it has no rows, or more than 16")
    for name in ("command", "family"):
        check(isinstance(report.get(name), str) and len(report[name]) <= 1000, f"its {name} is no short text")
    for row in rows:
        check(isinstance(row, dict) and isinstance(row.get("rule"), dict), "a row of it has no rule")
        rule = row["rule"]
        numbers = (rule.get("level"), rule.get("part"))
        least, most = (-1, MOST_NUMBER) if rule.get("kind") == "attention" else (0, 1)
        check(
            set(rule) == {"kind", "level", "part"}
            and rule["kind"] in KINDS
            and all(type(number) is int for number in numbers)
            and 0 <= rule["level"] <= MOST_NUMBER
            and least <= rule["part"] <= most,
            f"{str(rule)[:80]} is no rule",
        )
        for name in ("latents", "words", "elsewhere"):
            check(is_share(row.get(name)), f"{name} of a row is no share of runs")


def best(hits: Hits, kind: str) -> LookRule:
    """The rule of a kind whose latents hit oftenest; the smallest of equal ones."""
    rules = sorted(rule for rule in hits if rule.kind == kind)
    return max(rules, key=lambda rule: hits[rule]["latents"].nanmean().item())


def report(hits: Hits, rule: LookRule) -> Grounding:
    """The shares of hits under a rule, with their intervals."""
    shares = hits[rule]
    return Grounding(
        rule=rule,
        latents=mean_share(shares["latents"].nanmean(1)),
        by_latent=tuple(mean_share(column[~column.isnan()]) for column in shares["latents"].unbind(1)),
        words=mean_share(shares["words"]),
        elsewhere=mean_share(shares["elsewhere"]),
    )
