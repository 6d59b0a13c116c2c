"""A trace that anybody may have written → one that may be shown and computed with, or a sentence that says why not.

`Trace.load` checks that the file fits together. Here is checked what a fitting file could still do to the page: a few
kilobytes may name the same vector ten thousand times, and each is to be drawn.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import torch

from latent_core.settings import MAX_LATENTS, MAX_TOKENS, check
from latent_core.trace import Trace

MOST_IMAGES = 16
"""As many as a model may be asked about from Python, see latent_core/reasoner.py."""
MOST_IN_BLOCKS = 2048
"""Latents in all blocks together, MAX_LATENTS in each: their cosine matrices have 1.2 million numbers then."""
MOST_STEPS = MAX_TOKENS + MOST_IN_BLOCKS
"""Tokens and latents."""
MOST_GLOWS = 4_000_000
"""Latents × image tokens, of each of which the page is sent a number; 128 latents on 8,192 tokens need a million."""


def open_trace(path: str) -> Trace:
    """The trace in a file that anybody may have written.

    Raises ValueError for a file that is no trace, asks for more than the page can draw, or holds
    what is no number or no text.
    """
    trace = Trace.load(path)
    start, blocks = trace.start, [len(block.events) for block in trace.blocks]
    check(len(trace.images) <= MOST_IMAGES, f"The run has {len(trace.images)} images; {MOST_IMAGES} can be shown.")
    check(
        len(trace.steps) <= MOST_STEPS,
        f"The run has {len(trace.steps):,} words and latents; {MOST_STEPS:,} can be shown.",
    )
    check(
        max(blocks, default=0) <= MAX_LATENTS and sum(blocks) <= MOST_IN_BLOCKS,
        f"The run has {sum(blocks):,} latents, {max(blocks, default=0):,} in one block; {MOST_IN_BLOCKS:,} and "
        f"{MAX_LATENTS} can be shown.",
    )
    glows = sum(blocks) * start.image_states.shape[1]
    check(glows <= MOST_GLOWS, f"The run has {glows:,} pairs of latent and patch; {MOST_GLOWS:,} can be shown.")
    for value in _values(
        [trace.question, trace.system, trace.settings, trace.source, start, trace.steps, trace.finish]
    ):
        _check_value(value)
    check(all(step.seconds >= 0 for step in trace.steps), "A step of the run took less than no time.")
    check(all(token.logprob <= 1e-3 for token in trace.tokens), "The run holds a probability above 1.")
    return trace


def _values(thing: object) -> Iterator[object]:
    """All strings, numbers and tensors in dataclasses, lists and dictionaries."""
    if is_dataclass(thing):
        for field in fields(thing):
            yield from _values(getattr(thing, field.name))
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _values(part)
    elif isinstance(thing, dict):
        yield from _values([*thing.keys(), *thing.values()])
    elif thing is not None:
        yield thing


def _check_value(value: object) -> None:
    if isinstance(value, str):
        check(not any("\ud800" <= letter <= "\udfff" for letter in value), "The run holds half a character.")
    elif isinstance(value, torch.Tensor):
        check(
            not value.is_floating_point() or bool(value.isfinite().all()), "The run holds numbers that are not finite."
        )
    elif isinstance(value, float):
        check(math.isfinite(value), "The run holds numbers that are not finite.")
    elif isinstance(value, int):
        check(abs(value) < 2**63, "The run holds a number that no run can count to.")
