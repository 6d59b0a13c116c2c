"""What a row's coroutine says: feed these vectors, sample a token. A whole run is a sequence of these.

Shapes: N vectors fed at once, D model width.
"""

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Feed:
    """Vectors and forced ids that enter the model in one forward; answered by their states (N + len(then), D)."""

    embeds: torch.Tensor | None = None
    """(N, D) vectors, fed as they are."""
    then: tuple[int, ...] = ()
    """Ids fed after them, e.g. the closing token riding along."""
    is_latent: bool = True
    """Whether the vectors are latents; control vectors of a block are not."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the vectors are a parallel grid."""
    kinds: tuple[int, ...] = ()
    """One per vector and id; see attention.py. Filled in by `drive`, like all that follows."""
    block: int = 0
    """0-based number of the block in the run."""
    index: int = 0
    """0-based number of the first vector in its block."""
    num_latents: int = 0
    """K of the block."""
    echo: int = 0
    """The first `echo` vectors repeat the positions of the last `echo` slots (sealed copies of the latents)."""
    closes: bool = False
    """The runtime closes a block here; nobody sampled the closing token."""
    positions: torch.Tensor | None = None
    """(3, N) positions of the vectors, on the CPU, counted from where the row stands (images); otherwise all three
    axes count on by one. What follows goes on behind the largest."""

    @property
    def size(self) -> int:
        """Slots this feed takes."""
        return len(self.then) + (0 if self.embeds is None else len(self.embeds))


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
    """(1, D) state of the opening token, or under `start_overwritten` the state that produced it."""
    num_latents: int
    """K, the most latents of the block."""
    free: bool = True
    """Whether the block may end before; in given text it has exactly K."""
    closed: bool = True
    """In given text: whether the closing token follows."""
