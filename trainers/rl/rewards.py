"""Rewards: plain functions from a response and the example that it answers to a number.

A reward is the weighted sum of its parts, see `Reward`; what cannot be judged is an error, never a number.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from latent_core import answers
from latent_core.example import Example
from trainers.rl.rollouts import Rollout

Part = Callable[[Rollout, Example], float]

_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")


def same(answer: str, truth: str) -> bool:
    """Whether two answers are equal: as words without case and outer punctuation, or as numbers (1,000 = 1000.0)."""
    first, second = (text.strip().strip(".").casefold() for text in (answer, truth))
    if first == second:
        return True
    numbers = _number(first), _number(second)
    return None not in numbers and numbers[0] == numbers[1]


def _number(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.rstrip("%").replace(",", "")) / (100 if text.endswith("%") else 1)
    except InvalidOperation:
        return None


def accuracy(rollout: Rollout, example: Example) -> float:
    """1 where the response's last answer is the example's."""
    found = answers.extract(rollout.text)
    return float(found is not None and same(found, example.answer))


def boxed(rollout: Rollout, example: Example) -> float:
    """1 where the response has any `\\boxed{…}`."""
    return float("\\boxed{" in rollout.text and answers.extract(rollout.text) is not None)


def invocation(rollout: Rollout, example: Example) -> float:
    """1 where the response opened a latent block: a bonus that DeepLatent's authors tried and dropped."""
    return float(bool(rollout.latents))


@dataclass(frozen=True, slots=True)
class Reward:
    """Weighted parts."""

    parts: tuple[tuple[float, Part], ...]

    def __call__(self, rollout: Rollout, example: Example) -> float:
        """Σ weight · part."""
        return sum(weight * part(rollout, example) for weight, part in self.parts if weight)
