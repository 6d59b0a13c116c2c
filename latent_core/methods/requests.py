"""The two requests of a sequence's coroutine, Feed and Sample, and the Context that a block starts from.

A whole run is a sequence of requests: "feed these vectors", answered by their states, and "sample a token", answered
by its id. Whoever runs the coroutine (decoding, unrolling) decides how they are met.

Shapes: N vectors fed at once, C control vectors of a block, D model width.
"""

from dataclasses import dataclass

import torch

from latent_core.model.slots import Slots


@dataclass(slots=True)
class Feed:
    """Vectors, then forced ids, then control vectors: what enters the model in one forward; answered by all states.

    A method's block fills in the vectors and what it knows of them; `drive` adds the rest.
    """

    embeds: torch.Tensor | None = None
    """(N, D) vectors, fed as they are."""
    then: tuple[int, ...] = ()
    """Ids fed after them."""
    is_latent: bool = True
    """Whether the vectors are latents, not a prompt."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the vectors are a parallel grid, row by row."""
    drawn: tuple[object, ...] = ()
    """What the method drew to make the vectors, in its own terms: the continuous actions of reinforcement learning."""
    final: bool = False
    """Whether the block needs no answer: it ends here, and the closing token rides along."""
    tail: torch.Tensor | None = None
    """(C, D) control vectors behind the opening token. Filled in by `drive`, like all that follows."""
    slots: Slots = Slots()
    """The type and position of every slot, `size` of them."""
    block: int = 0
    """0-based number of the block in the run."""
    index: int = 0
    """0-based number of the first vector in its block."""
    num_latents: int = 0
    """K of the block."""
    num_sealed: int = 0
    """How many of the vectors, the last ones, are sealed copies of latents. They are no steps of the run: no event
    tells of them, and they do not count in the positions of events."""
    closes: bool = False
    """The runtime closes a block here; nobody sampled the closing token."""

    @property
    def size(self) -> int:
        """Slots this feed takes."""
        vectors = sum(len(part) for part in (self.embeds, self.tail) if part is not None)
        return len(self.then) + vectors

    @property
    def latents(self) -> int:
        """Latents in it, at its head; neither a prompt nor sealed copies."""
        return len(self.embeds) - self.num_sealed if self.is_latent and self.embeds is not None else 0

    @property
    def watched(self) -> list[int]:
        """Slots of this feed whose attention is recorded: all latents, and the last one."""
        return [*range(self.latents), *([self.size - 1] if self.size > self.latents else [])]


@dataclass(slots=True)
class Sample:
    """A token to be chosen from a state; answered by its id."""

    state: torch.Tensor
    """(1, D) after the final norm."""
    may_open: bool
    """Whether the opening token may be chosen."""
    force: int | None = None
    """This id, whatever the model prefers."""
    may_close: bool = False
    """Whether the closing token may be chosen: behind or inside a block of a method that closes its blocks itself."""
    silent: bool = False
    """Inside a block: the id decides whether the block ends, and is neither fed nor told of."""


@dataclass(frozen=True, slots=True)
class Context:
    """The start of a block: the state behind its opening token, how many latents it may hold, and the prompt."""

    hidden: torch.Tensor
    """(1, D) state of the opening token, or under `start_overwritten` the state that produced it; (C, D) the states of
    the control vectors, where the method has any."""
    num_latents: int
    """K, the most latents of the block."""
    free: bool = True
    """Whether the block may end before; in given text it has exactly K."""
    closed: bool = True
    """In given text: whether the closing token follows."""
    grid: tuple[int, int] | None = None
    """In given text: (rows, columns) of a block of parallel latents."""
    prompt: Feed | None = None
    """What the run started with, e.g. for its image tokens. Filled in by `drive`."""
