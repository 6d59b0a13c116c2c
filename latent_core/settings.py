"""How one run is decoded. Checked where it is made, so that nothing downstream has to."""

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["latent", "text", "forced", "markers"]
"""latent: the model opens blocks itself. text: the opening token is banned. forced: one block is opened at the start
of the response (off-policy). markers: blocks hold no latents (K = 0), only the opening and closing token."""

Rule = Literal["everything", "no_image", "latents_only", "sealed"]
"""What text after a block may attend to, see attention.py."""

MAX_LATENTS = 576
"""A grid of 24 × 24; the published methods use at most 256."""
MAX_TOKENS = 8192
"""Generated tokens of a response; latents do not count."""
MAX_THOUGHT = 8192
"""Latents of a response in all blocks together; a block that might not fit does not open."""


def check(condition: bool, sentence: str) -> None:
    """Raises ValueError(sentence) unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One row's decoding. Two rows of one batch may differ in every field."""

    latents: int = 8
    """K, fed latents per block, or the most of them, 0…576."""
    mode: Mode = "latent"
    rule: Rule | None = None
    """None: the checkpoint's own rule."""
    max_new_tokens: int = 128
    """Generated tokens, 1…8192. Latents do not count: a short answer may take long thoughts."""
    max_blocks: int = 8
    """Blocks per response; then the opening token is banned, as it is where all latents might exceed MAX_THOUGHT.
    0…64."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            isinstance(self.latents, int) and 0 <= self.latents <= MAX_LATENTS,
            f"K is {self.latents}, but a block holds 0 to {MAX_LATENTS} latents; choose a number in that range.",
        )
        check(self.mode in get_args(Mode), f"Mode is {self.mode!r}; choose one of {', '.join(get_args(Mode))}.")
        check(
            self.rule is None or self.rule in get_args(Rule),
            f"Attention rule is {self.rule!r}; choose one of {', '.join(get_args(Rule))}.",
        )
        check(
            1 <= self.max_new_tokens <= MAX_TOKENS,
            f"max_new_tokens is {self.max_new_tokens}; choose a number from 1 to {MAX_TOKENS}.",
        )
        check(0 <= self.max_blocks <= 64, f"max_blocks is {self.max_blocks}; choose a number from 0 to 64.")
        check(
            0 <= self.temperature <= 10, f"Temperature is {self.temperature}; choose 0 (greedy) or a number up to 10."
        )
        check(0 < self.top_p <= 1, f"top_p is {self.top_p}; choose a number above 0 and at most 1.")
        check(0 <= self.top_k < 2**31, f"top_k is {self.top_k}; choose 0 (off) or a positive number below 2^31.")
        check(
            0.1 <= self.repetition_penalty <= 10,
            f"repetition_penalty is {self.repetition_penalty}; choose a number from 0.1 to 10 (1 is off).",
        )
        check(
            isinstance(self.seed, int) and 0 <= self.seed < 2**63,
            f"Seed is {self.seed}; choose a whole number from 0 to 2^63 − 1.",
        )
