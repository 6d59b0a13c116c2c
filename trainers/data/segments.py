"""Example → what the assistant says: words, then a visual thought, then what it showed, … and the answer.

Every collator derives from this one layout (Monet's order: text · block · observation).
"""

from dataclasses import dataclass
from typing import Literal

from latent_core.example import Example, Step


@dataclass(frozen=True, slots=True)
class Words:
    text: str
    role: Literal["text", "observation", "answer"]


@dataclass(frozen=True, slots=True, eq=False)
class Thought:
    """The place of a visual thought."""

    step: Step


def segments(example: Example) -> list[Words | Thought]:
    """The response in order. Texts carry their leading space, so that they can be encoded one by one.

    Questions with steps end in `\\boxed{answer}`; without steps (captions) the answer stands alone.
    """
    parts: list[Words | Thought] = []
    for number, step in enumerate(example.steps):
        if step.text:
            parts.append(Words(f" {step.text}" if number else step.text, "text"))
        parts.append(Thought(step))
        if step.observation:
            parts.append(Words(f" {step.observation}", "observation"))
    parts.append(Words(f" \\boxed{{{example.answer}}}" if parts else example.answer, "answer"))
    return parts
