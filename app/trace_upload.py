"""Checks of an uploaded trace, which anybody may have written, before it is shown and computed with.

`Trace.load` checks that the file fits together, and that no two steps share a vector: a trace holds no more than its
file does, twice over where that has 16 bits. Here is checked what a fitting file could still do to the page. What
multiplies, such as words × patches × levels, is thinned out by what sends it (app/budget.py).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import torch

from app.limits import OWN
from latent_core.methods import METHODS
from latent_core.settings import MAX_LATENTS, MAX_RUN_LATENTS, MAX_TOKENS, check, short
from latent_core.trace import Trace

MOST_IMAGES = 16
"""As many as a model may be asked about from Python, see latent_core/reasoner.py."""
MOST_PATCHES = 4 * 8192
"""Image tokens: four images of the most that a published model reads of one."""
MOST_PIXELS = MOST_PATCHES * 28 * 28
"""Of all images as the model saw them."""
MOST_DEEP = 128
"""Recorded levels, layers and heads, each; the largest published decoder has 80 layers of 64 heads."""
MOST_LETTERS = 500_000
"""Of the response: 60 a token, of which words need 4."""
MOST_IN_STEP = 1000
"""Letters of one token; the published models' longest has 128."""
MOST_WORDS = 2 * MAX_TOKENS
"""As Compare tells them apart: a token has at most two beginnings."""
WORD = re.compile(r"\s*\S+|\s+")
"""A word with the space before it."""
MOST_IN_SYSTEM = 20_000
"""Letters of the system prompt, which is the checkpoint's own."""
MOST_IN_NAME = 200
"""Letters of a checkpoint's name and the like."""
SHORTEST, LONGEST = 1e-9, 1e9
"""Seconds of a step, or of all, if they were measured at all: rates and sums of them are numbers."""
LARGEST = 1e12
"""Of the numbers in vectors: their lengths and the ratios of those are numbers, too. States have up to 1e5."""


def open_trace(path: str) -> Trace:
    """The trace in a file that anybody may have written.

    Raises ValueError for a file that is no trace, asks for more than the page can draw, names a
    method that does not exist, or holds what is no number or no text.
    """
    trace = Trace.load(path)
    for count, most, what in _counts(trace):
        check(count <= most, f"The run has {count:,} {what}; {most:,} can be shown.")
    check(
        trace.source.method in METHODS,
        f"The run was made by the method {short(trace.source.method)}, which does not exist here; "
        f"{', '.join(METHODS)} do.",
    )
    parts = [trace.question, trace.system, trace.settings, trace.source, trace.start, trace.steps, trace.finish]
    for value in _values(parts):
        _check_value(value)
    finish = trace.finish
    times = [trace.start.seconds, finish.text_seconds, finish.latent_seconds, *(step.seconds for step in trace.steps)]
    check(
        all(time == 0 or SHORTEST <= time <= LONGEST for time in times),
        f"A step of the run took {short(min(times))} to {short(max(times))} seconds, which no step does.",
    )
    check(all(token.logprob <= 1e-3 for token in trace.tokens), "The run holds a probability above 1.")
    return trace


def _counts(trace: Trace) -> Iterator[tuple[int, int, str]]:
    """(how many there are, how many may be, of what)."""
    start, blocks = trace.start, [len(block.events) for block in trace.blocks]
    summaries = trace.attention.summaries if trace.attention else ()
    grids = [max(step.grid) for block in trace.blocks for step in block.events if step.grid]
    names = [trace.source.checkpoint, trace.source.world or "", trace.source.dtype, *trace.source.versions]
    yield len(trace.images), MOST_IMAGES, "images"
    yield sum(image.shape[0] * image.shape[1] for image in trace.images), MOST_PIXELS, "pixels in its images"
    yield start.image_states.shape[1], MOST_PATCHES, "image patches"
    yield len(start.levels), MOST_DEEP, "levels of image states"
    yield len(start.layers), MOST_DEEP, "layers of attention"
    yield summaries[0].image.shape[1] if summaries else 0, MOST_DEEP, "heads of attention"
    yield max(blocks, default=0), MAX_LATENTS, "latents in one block"
    yield sum(blocks), MAX_RUN_LATENTS, "latents"
    yield max(grids, default=0), MAX_LATENTS, "rows or columns in a grid of latents"
    yield len(trace.question), OWN.question, "letters in its question"
    yield len(trace.system), MOST_IN_SYSTEM, "letters in its system prompt"
    yield max((len(token.text) for token in trace.tokens), default=0), MOST_IN_STEP, "letters in one step"
    yield len(trace.text), MOST_LETTERS, "letters in its response"
    yield len(WORD.findall(trace.text)), MOST_WORDS, "words in its response"
    yield max(map(len, names)), MOST_IN_NAME, "letters in a name"


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
        largest = value.abs().max() if value.is_floating_point() and value.numel() else torch.zeros(())
        check(bool(largest <= LARGEST), "The run holds numbers that are not finite, or too large.")
    elif isinstance(value, float):
        check(math.isfinite(value), "The run holds numbers that are not finite.")
    elif isinstance(value, int):
        check(abs(value) < 2**63, "The run holds a number that no run can count to.")
