"""The settings of one run's decoding, checked where they are made, so that nothing downstream has to."""

import numbers
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["latent", "text", "forced", "markers"]
"""latent: the model opens blocks itself. text: the opening token is banned. forced: one block is opened at the start
of the response (off-policy). markers: blocks hold no latents (K = 0), only the opening and closing token."""

Rule = Literal["causal", "no_image", "latents_only", "sealed"]
"""What text after a block may attend to, see attention.py."""

FORMER_NAMES = {"everything": "causal"}
"""What older traces, checkpoints, recipes and scripts call a rule, and what it is called now."""

MAX_LATENTS = 576
"""A grid of 24 × 24; the published methods use at most 256."""
MAX_TOKENS = 8192
"""Generated tokens of a response; latents do not count."""
MAX_RUN_LATENTS = 8192
"""Latents of a response in all blocks together; a block that might not fit does not open."""


def check(condition: bool, sentence: str) -> None:
    """Raises ValueError(sentence) unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


def short(value: object) -> str:
    """A value as a sentence may name it: its first 80 characters, in one line."""
    if isinstance(value, int) and abs(value) >= 10**79:
        return "a number of 80 digits or more"  # Python writes no longer ones than some thousand digits
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def counted(number: int, noun: str) -> str:
    """`1 value`, `2 values`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(value: object, kind: type[int] | type[float]) -> object:
    """Numbers of other kinds, such as NumPy's, as Python's own; everything else as it is, truth values included."""
    accepted = numbers.Integral if kind is int else numbers.Real
    return value if type(value) in (int, float, bool) or not isinstance(value, accepted) else kind(value)


def _within(value: object, kind: type, low: float, high: float) -> bool:
    """Whether a value is a number of this kind, int for whole ones, from low to high."""
    return type(value) in ((int,) if kind is int else (int, float)) and low <= value <= high


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of one sequence's decoding. Two sequences of one batch may differ in every field."""

    latents: int = 8
    """K, fed latents per block, or the most of them, 0…576."""
    mode: Mode = "latent"
    rule: Rule | None = None
    """None: the checkpoint's own rule."""
    max_new_tokens: int = 128
    """Generated tokens, 1…8192. Latents do not count: a short answer may follow long blocks."""
    max_blocks: int = 8
    """Blocks per response; then the opening token is banned, as it is where all latents might exceed MAX_RUN_LATENTS.
    0…64."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rule, str):
            object.__setattr__(self, "rule", FORMER_NAMES.get(self.rule, self.rule))
        for name in ("latents", "max_new_tokens", "max_blocks", "top_k", "seed"):
            object.__setattr__(self, name, plain(getattr(self, name), int))
        for name in ("temperature", "top_p", "repetition_penalty"):
            object.__setattr__(self, name, plain(getattr(self, name), float))
        check(
            _within(self.latents, int, 0, MAX_LATENTS),
            f"K is {short(self.latents)}, but a block holds 0 to {MAX_LATENTS} latents; choose such a number.",
        )
        check(
            isinstance(self.mode, str) and self.mode in get_args(Mode),
            f"Mode is {short(self.mode)}; choose one of {', '.join(get_args(Mode))}.",
        )
        check(
            self.rule is None or (isinstance(self.rule, str) and self.rule in get_args(Rule)),
            f"Attention rule is {short(self.rule)}; choose one of {', '.join(get_args(Rule))}.",
        )
        check(
            _within(self.max_new_tokens, int, 1, MAX_TOKENS),
            f"max_new_tokens is {short(self.max_new_tokens)}; choose a whole number from 1 to {MAX_TOKENS}.",
        )
        check(
            _within(self.max_blocks, int, 0, 64),
            f"max_blocks is {short(self.max_blocks)}; choose a whole number from 0 to 64.",
        )
        check(
            _within(self.temperature, float, 0, 10),
            f"Temperature is {short(self.temperature)}; choose 0 (greedy) or a number up to 10.",
        )
        check(
            _within(self.top_p, float, 0, 1) and self.top_p > 0,
            f"top_p is {short(self.top_p)}; choose a number above 0 and at most 1.",
        )
        check(
            _within(self.top_k, int, 0, 2**31 - 1),
            f"top_k is {short(self.top_k)}; choose 0 (off) or a positive whole number below 2^31.",
        )
        check(
            _within(self.repetition_penalty, float, 0.1, 10),
            f"repetition_penalty is {short(self.repetition_penalty)}; choose a number from 0.1 to 10 (1 is off).",
        )
        check(
            _within(self.seed, int, 0, 2**63 - 1),
            f"Seed is {short(self.seed)}; choose a whole number from 0 to 2^63 − 1.",
        )
