"""Studies of a checkpoint: examples × conditions → a table with intervals.

A condition is a way to decode (K, mode, attention rule), an intervention on the fed vectors, or a wrong image.
Rows are appended to a JSONL file as they finish (study_rows.py), so that a stopped study goes on where it was.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import torch

from latent_core.analysis.statistics import Interval, wilson
from latent_core.decoding import interventions
from latent_core.evaluation import grading
from latent_core.evaluation.grading import equal
from latent_core.evaluation.identity import checkpoint_hash, examples_hash
from latent_core.events import LatentEvent
from latent_core.example import Example
from latent_core.reasoner import Reasoner
from latent_core.trace import Trace

REPLACEMENTS = ("sham", "zero", "noise", "permute", "donor")
"""Interventions on the fed vectors. `sham` feeds a run its own latents again and must change nothing."""

MAX_BLOCKS = 4
"""Blocks that a run of a study may open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition: what a study does to the runs of a family."""

    family: str
    latents: int = 8
    mode: str = "latent"
    rule: str = "causal"
    replace: str = ""
    """One of REPLACEMENTS, or empty."""
    wrong_image: bool = False
    """The question is asked about the next sample's image."""

    @property
    def clean(self) -> "Condition":
        """The same without intervention: what a replacement is compared with."""
        return dataclasses.replace(self, replace="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The results of one condition; shares in 0…1, the intervals are Wilson's."""

    condition: Condition
    n: int
    accuracy: Interval
    trigger: float
    """Share of runs that opened a block."""
    tokens: float
    """Mean generated tokens, markers included."""
    latents: float
    """Mean fed latents."""
    cosine: float | None
    """Mean cosine between neighbouring latents of a block."""
    changed: Interval | None = None
    """Share of answers that differ from the clean run's; replacements only."""
    text_changed: float | None = None
    """Share of whole texts that differ; 0 under a destructive replacement means that the hook does not fire."""
    donor: Interval | None = None
    """Share of answers equal to the donor's."""


def donors(answers: Sequence[str]) -> list[int]:
    """For every sample the next one, cyclically, with another true answer.

    Raises ValueError where a sample has none.
    """
    donor_of = []
    for i, answer in enumerate(answers):
        others = (j % len(answers) for j in range(i + 1, i + len(answers)))
        donor = next((j for j in others if not equal(answers[j], answer)), None)
        if donor is None:
            raise ValueError(
                f"All {len(answers)} samples have the answer {answer[:60]!r}, but a donor needs another one; "
                "raise n until the answers differ."
            )
        donor_of.append(donor)
    return donor_of


class Study:
    """Runs conditions on one checkpoint; the last clean run is kept, because replacements need its latents."""

    def __init__(self, reasoner: Reasoner, sample: Callable[[str, int], Example], *, n: int, batch: int = 64) -> None:
        """`sample(family, index)` gives the examples 0…n−1 of a family; `batch` of them are decoded at once."""
        if n < 2:
            raise ValueError(f"n is {n}; a study needs at least 2 samples per family.")
        if batch < 1:
            raise ValueError(f"batch is {batch}; at least 1 sample is decoded at once.")
        self.reasoner, self.sample, self.n, self.batch = reasoner, sample, n, batch
        self._examples: dict[str, list[Example]] = {}
        self._hashes: dict[str, str] = {}
        self._clean: tuple[Condition, list[Trace]] | None = None

    def examples(self, family: str) -> list[Example]:
        if family not in self._examples:
            self._examples[family] = [self.sample(family, index) for index in range(self.n)]
        return self._examples[family]

    def made_with(self, condition: Condition) -> dict[str, object]:
        """All that decides the row of `condition` besides it, as JSON values.

        Not `batch`, for a row of a batch gives what it gives alone: a study that ran out of memory goes on with fewer.
        """
        family, backbone = condition.family, self.reasoner.backbone
        if family not in self._hashes:
            self._hashes[family] = examples_hash(self.examples(family))
        return {
            "n": self.n,
            "examples": self._hashes[family],
            "checkpoint": self._checkpoint,
            "settings": dataclasses.asdict(self.reasoner.settings(**_settings(condition), max_blocks=MAX_BLOCKS)),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "device": backbone.device.type,
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "grading": grading.VERSION,
        }

    @cached_property
    def _checkpoint(self) -> str:
        return checkpoint_hash(self.reasoner)

    def run(self, condition: Condition) -> Row:
        """Decodes every example under `condition`, greedily, and counts."""
        examples = self.examples(condition.family)
        truth = [example.answer for example in examples]
        if not condition.replace:
            traces = self._decode(condition)
            if not condition.wrong_image:
                self._clean = condition, traces
            return self._row(condition, traces, truth)
        if self._clean is None or self._clean[0] != condition.clean:
            self._clean = condition.clean, self._decode(condition.clean)
        clean = self._clean[1]
        others = donors(truth) if condition.replace == "donor" else []
        chosen, hooks = [], []
        for i, trace in enumerate(clean):
            shape = [len(block.latents) for block in trace.blocks]
            source = clean[others[i]] if condition.replace == "donor" else trace
            # runs without a block, cut off inside one, or whose donor has others cannot be replaced and do not count
            whole = all(shape) and not isinstance(trace.steps[-1], LatentEvent)
            if shape and whole and shape == [len(block.latents) for block in source.blocks]:
                chosen.append(i)
                hooks.append(_hook(condition.replace, source, seed=i))
        # a run that was led astray may not open more blocks than there are latents for
        blocks = {i: len(clean[i].blocks) for i in chosen}
        traces = self._decode(condition, hooks, chosen, blocks)
        row = self._row(condition, traces, [truth[i] for i in chosen])
        n = len(chosen)
        changed = sum(not equal(trace.answer, clean[i].answer) for i, trace in zip(chosen, traces, strict=True))
        rewritten = sum(trace.text != clean[i].text for i, trace in zip(chosen, traces, strict=True))
        row = dataclasses.replace(row, changed=wilson(changed, n), text_changed=rewritten / max(n, 1))
        if condition.replace == "donor":
            taken = sum(equal(trace.answer, clean[others[i]].answer) for i, trace in zip(chosen, traces, strict=True))
            row = dataclasses.replace(row, donor=wilson(taken, n))
        return row

    def _decode(
        self,
        condition: Condition,
        hooks: Sequence[interventions.Intervention | None] | None = None,
        chosen: Sequence[int] | None = None,
        max_blocks: dict[int, int] | None = None,
    ) -> list[Trace]:
        examples = self.examples(condition.family)
        chosen = range(self.n) if chosen is None else chosen
        traces = []
        for start in range(0, len(chosen), self.batch):
            part = chosen[start : start + self.batch]
            shift = int(condition.wrong_image)
            traces += self.reasoner.run_batch(
                [list(examples[(i + shift) % self.n].images) for i in part],
                [examples[i].question for i in part],
                intervene=None if hooks is None else hooks[start : start + self.batch],
                max_blocks=[max_blocks[i] if max_blocks else MAX_BLOCKS for i in part],
                **_settings(condition),
            )
        return traces

    def _row(self, condition: Condition, traces: list[Trace], truth: list[str]) -> Row:
        n = len(traces)
        right = sum(equal(trace.answer, answer) for trace, answer in zip(traces, truth, strict=True))
        cosines = [
            torch.cosine_similarity(block.latents[:-1], block.latents[1:], dim=-1).mean().item()
            for trace in traces
            for block in trace.blocks
            if len(block.latents) > 1
        ]
        return Row(
            condition=condition,
            n=n,
            accuracy=wilson(right, n),
            trigger=sum(bool(trace.finish.blocks) for trace in traces) / max(n, 1),
            tokens=sum(trace.finish.tokens for trace in traces) / max(n, 1),
            latents=sum(trace.finish.latents for trace in traces) / max(n, 1),
            cosine=sum(cosines) / len(cosines) if cosines else None,
        )


def _settings(condition: Condition) -> dict[str, object]:
    """The settings of a condition's runs."""
    return {"latents": condition.latents, "mode": condition.mode, "rule": condition.rule, "temperature": 0.0}


def _hook(name: str, trace: Trace, seed: int) -> interventions.Intervention:
    match name:
        case "zero":
            return interventions.zero()
        case "noise":
            return interventions.noise(seed=seed)
        case "permute":
            return interventions.permute(trace.blocks, seed=seed)
        case "sham" | "donor":
            return interventions.donor(trace.blocks)
        case _:
            raise ValueError(f"Unknown replacement {name!r}; choose one of {', '.join(REPLACEMENTS)}.")


def conditions(reasoner: Reasoner, families: Sequence[str]) -> Iterator[Condition]:
    """The conditions of a full study of one checkpoint, ordered so that replacements follow their clean run."""
    config = reasoner.config
    for family in families:
        if reasoner.method.open_id is None:
            yield Condition(family=family, latents=0, mode="text")
            yield Condition(family=family, latents=0, mode="text", wrong_image=True)
            continue
        default = config.latents.default
        for rule in dict.fromkeys((config.rule, "causal")):
            base = Condition(family=family, latents=default, rule=rule)
            yield base
            for name in REPLACEMENTS:
                yield dataclasses.replace(base, replace=name)
            yield dataclasses.replace(base, wrong_image=True)
            yield dataclasses.replace(base, mode="text")
            yield dataclasses.replace(base, mode="markers")
        sweep = {*range(1, 17)} if family == "find" else {1, 2, 4, 6, 8, 10, 12, 16}
        for latents in sorted(sweep | {k for k in (25, 36) if k <= config.latents.max}):
            if latents != default:
                yield Condition(family=family, latents=latents, rule=config.rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of single runs, medians over `n` runs after one to warm up."""

    n: int
    latent: float | None
    """Per fed latent."""
    thought: float | None
    """Per run: all its latents together."""
    token: float
    """Per generated token."""
    run: float
    """Per run, prompt included."""


def timing(study: Study, family: str = "find", n: int = 20) -> Timing:
    """The timing of the first n samples of a family, run one by one, as a visitor would, without recording."""
    latent, all_latents, token, whole = [], [], [], []
    for example in study.examples(family)[:1] + study.examples(family)[:n]:
        trace = study.reasoner.run(list(example.images), example.question, record=False)
        finish = trace.finish
        if finish.latents:
            latent.append(1000 * finish.latent_seconds / finish.latents)
            all_latents.append(1000 * finish.latent_seconds)
        token.append(1000 * finish.text_seconds / max(finish.tokens, 1))
        whole.append(1000 * (trace.start.seconds + finish.text_seconds + finish.latent_seconds))
    return Timing(
        n=n,
        latent=statistics.median(latent[1:]) if latent[1:] else None,
        thought=statistics.median(all_latents[1:]) if all_latents[1:] else None,
        token=statistics.median(token[1:]),
        run=statistics.median(whole[1:]),
    )
