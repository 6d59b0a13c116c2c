"""A GPU that is lent for the length of one call, as on Hugging Face's ZeroGPU: the call runs in another process.

That process is a copy of this one, made by fork: it knows the models that were loaded before. The decorator that lends
is passed in by whoever starts the page, so that the app itself knows no platform.
"""

import contextlib
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

Lend = Callable[..., Any]
"""`spaces.GPU`: `lend(duration=f)` decorates a generator function; f takes the same arguments and gives seconds."""
Work = Callable[..., Iterator[Any]]
"""A generator function."""

START = 5.0
"""Seconds until a lent GPU has its weights and the first kernels are chosen; a stand-in, as are those below."""
STEP = 0.04
"""Seconds per word or latent of a 7B model that records attention."""
PATCH = 0.001
"""Seconds per image token, for the vision tower and the prompt."""
PATCH_PIXELS = 28 * 28
"""Pixels of an image token."""
WORDS = 1024
"""Tokens that a response is given time for; latents come on top."""
SHORTEST, LONGEST = 10, 120
"""Seconds asked for: visitors have a few minutes a day, and longer calls wait longer."""


@dataclass(frozen=True)
class Failed:
    """An error on its way to the process that asked."""

    kind: type[Exception]
    sentence: str


def lent(work: Work, lend: Lend, seconds: Callable[..., int]) -> Work:
    """`work` with a GPU while it runs. Arguments and items must be picklable.

    Closing the iterator ends the work after its next item. Raises ValueError and RuntimeError as `work` does, and
    ValueError with the platform's sentence where it lends no GPU or takes it away in the middle: the time asked for
    is over, or the process was killed.
    """

    @lend(duration=seconds)
    def there(*arguments: Any) -> Iterator[bytes]:
        # Bytes: a tensor would travel as shared memory of a process that may have ended before it is read. Errors:
        # the platform hands on nothing but the names of their classes.
        try:
            with contextlib.closing(work(*arguments)) as items:
                for item in items:
                    yield pickle.dumps(item)
        except (ValueError, RuntimeError) as problem:
            kind = ValueError if isinstance(problem, ValueError) else RuntimeError
            yield pickle.dumps(Failed(kind, str(problem)))

    def here(*arguments: Any) -> Iterator[Any]:
        came = False
        try:
            with contextlib.closing(there(*arguments)) as parts:
                for part in parts:
                    came = True
                    item = pickle.loads(part)  # written by our own copy above, through a pipe that is nobody else's
                    if isinstance(item, Failed):
                        raise item.kind(item.sentence)
                    yield item
        except gr.Error as problem:
            what = "The GPU was taken away before the run ended" if came else "No GPU was lent"
            raise ValueError(f"{what}: {_plain(problem.message)}") from problem

    return here


def seconds_for(*, tokens: int, latents: int, pixels: int) -> int:
    """Seconds to ask for: `tokens` and `latents` that a run may have at most, and `pixels` of its images as the model
    sees them.

    clamp(START + PATCH · pixels / PATCH_PIXELS + STEP · (min(tokens, WORDS) + latents), SHORTEST, LONGEST)
    """
    needed = START + PATCH * pixels / PATCH_PIXELS + STEP * (min(tokens, WORDS) + latents)
    return round(min(max(needed, SHORTEST), LONGEST))


def _plain(message: object) -> str:
    """Without the links that the platform puts in."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(message)).split())
