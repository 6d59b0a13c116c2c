"""What a row's coroutine says: feed these vectors, sample a token. A whole run is a sequence of these.

Shapes: N vectors fed at once, C control vectors of a block, D model width.
"""

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Feed:
    """Vectors, forced ids and control vectors that enter the model in one forward; answered by all their states."""

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
    ends: bool = False
    """Whether the block needs no answer: it ends here, and the closing token rides along."""
    tail: torch.Tensor | None = None
    """(C, D) control vectors behind the opening token. Filled in by `drive`, like all that follows."""
    kinds: tuple[int, ...] = ()
    """One per vector and id; see attention.py."""
    block: int = 0
    """0-based number of the block in the run."""
    index: int = 0
    """0-based number of the first vector in its block."""
    num_latents: int = 0
    """K of the block."""
    echo: int = 0
    """The last `echo` vectors repeat the positions of the `echo` before them (sealed copies of the latents)."""
    closes: bool = False
    """The runtime closes a block here; nobody sampled the closing token."""
    positions: torch.Tensor | None = None
    """(3, N) positions of the vectors, on the CPU, counted from where the row stands (images); otherwise all three
    axes count on by one. What follows goes on behind the largest."""

    @property
    def size(self) -> int:
        """Slots this feed takes."""
        vectors = sum(len(part) for part in (self.embeds, self.tail) if part is not None)
        return len(self.then) + vectors

    @property
    def latents(self) -> int:
        """Latents in it, at its head; neither a prompt nor sealed copies."""
        return len(self.embeds) - self.echo if self.is_latent and self.embeds is not None else 0

    @property
    def watched(self) -> list[int]:
        """Slots of this feed whose attention is recorded: all latents, and the last one."""
        return [*range(self.latents), *([self.size - 1] if self.size > self.latents else [])]


@dataclass(slots=True)
class Sample:
    """Asks for a token; answered by its id."""

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
    """What a block starts from."""

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
