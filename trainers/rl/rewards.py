"""Rewards: plain functions from a response and the example that it answers to a number.

A recipe weighs them by name (`rl.rewards: {accuracy: 0.9, boxed: 0.1}`). A name with a colon is an import path, so
that your own function is one line: `rl.rewards: {accuracy: 1, "my_rewards:brief": 0.2}`. What cannot be judged is an
error, never a number.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from latent_core import answers
from latent_core.decoding.sequence import Block
from latent_core.evaluation.grading import equal
from latent_core.example import Example
from latent_core.records import nearest
from latent_core.settings import check
from latent_core.spelling import blank
from trainers.rl.judge import Judge
from trainers.rl.options import RlOptions
from trainers.rl.rollouts import SampledResponse

Part = Callable[[SampledResponse, Example], float]

_TAGGED = re.compile(r"\s*<answer>.*</answer>\s*", re.DOTALL)


def accuracy(rollout: SampledResponse, example: Example) -> float:
    """1 where the response's last answer is the example's, by the rules of latent_core/evaluation/grading.py."""
    extracted = answers.extract(rollout.text)
    return float(extracted is not None and equal(extracted, example.answer))


def boxed(rollout: SampledResponse, example: Example) -> float:
    """1 where the response has any complete `\\boxed{…}` that says something (Monet, DeepLatent)."""
    return float(any(not blank(rollout.text[slice(*span)]) for span in answers.boxes(rollout.text)))


def answer_tags(rollout: SampledResponse, example: Example) -> float:
    """1 where the response has a complete `<answer>…</answer>` that says something."""
    return float(any(not blank(rollout.text[slice(*span)]) for span in answers.tags(rollout.text)))


def block_then_answer(rollout: SampledResponse, example: Example) -> float:
    """1 where the response is a closed block followed by `<answer>…</answer>` and nothing else (LVR)."""
    segments = rollout.row.segments
    begins = bool(segments) and isinstance(segments[0], Block) and segments[0].closed and segments[0].latents > 0
    once = sum(isinstance(segment, Block) for segment in segments) == 1
    alone = _TAGGED.fullmatch(rollout.text) and answers.extract(rollout.text) is not None
    return float(begins and once and rollout.reason == "stop" and bool(alone))


def invocation(rollout: SampledResponse, example: Example) -> float:
    """1 where the response opened a latent block: a bonus that DeepLatent's authors tried and dropped."""
    return float(bool(rollout.latents))


def finished(rollout: SampledResponse, example: Example) -> float:
    """1 where the response came to its end before the limit on its length."""
    return float(rollout.reason == "stop")


def length(rollout: SampledResponse, example: Example) -> float:
    """Sampled ids in hundreds; a negative weight makes responses shorter."""
    return len(rollout.ids) / 100


def repetition(rollout: SampledResponse, example: Example) -> float:
    """Share of runs of four words that stood in the response before, 0…1; a negative weight makes it vary."""
    words = rollout.text.split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (
        accuracy,
        boxed,
        answer_tags,
        block_then_answer,
        invocation,
        finished,
        length,
        repetition,
    )
}
JUDGE = "judge"
"""1 where a judge takes the answer for the true one; see judge.py."""


def load_part(name: str) -> Part:
    """A reward by its name in PARTS, or by import path `package.module:function`. Raises ValueError for neither."""
    if name in PARTS:
        return PARTS[name]
    module, colon, function = name.partition(":")
    check(
        bool(colon), f"There is no reward {name!r}{nearest(name, [*PARTS, JUDGE])} Your own is named module:function."
    )
    try:
        part = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The reward {name!r} cannot be imported: {error}.") from error
    check(callable(part), f"The reward {name!r} is no function.")
    return part


@dataclass(frozen=True, slots=True)
class Reward:
    """A recipe's reward: weighted parts, and what counts as right, the judge's verdict if any, else `accuracy`."""

    parts: Mapping[str, tuple[float, Part]]
    judge: Judge | None = None

    @classmethod
    def build(cls, options: RlOptions, judge: Judge | None) -> "Reward":
        """Raises ValueError for unknown names and for a judge that is named, but not described, or the reverse."""
        names_judge = JUDGE in options.rewards
        check(
            names_judge == (judge is not None),
            f"rl.rewards names {'a' if names_judge else 'no'} judge, judge.url {'none' if judge is None else 'one'}; "
            "set both or neither.",
        )
        return cls(
            {
                name: (weight, judge.verdict if name == JUDGE else load_part(name))
                for name, weight in options.rewards.items()
            },
            judge,
        )

    def __call__(
        self, rollouts: Sequence[SampledResponse], examples: Sequence[Example]
    ) -> tuple[list[float], list[bool]]:
        """Σ weight · part, and whether it is right, per response.

        Raises ValueError for a part that gives no finite number.
        """
        pairs = list(zip(rollouts, examples, strict=True))
        if self.judge is not None:
            self.judge.ask(pairs)
        right = self.judge.verdict if self.judge is not None else accuracy
        return [self._total(*pair) for pair in pairs], [right(*pair) > 0 for pair in pairs]

    def _total(self, rollout: SampledResponse, example: Example) -> float:
        total = 0.0
        for name, (weight, part) in self.parts.items():
            value = part(rollout, example)
            number = isinstance(value, (int, float)) and math.isfinite(value)
            check(number, f"The reward {name!r} gave {value!r} for {example.name}; it has to be a finite number.")
            total += weight * value
        return total
