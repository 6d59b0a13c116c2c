"""Slots of a sequence: what each of them holds, and the position at which it stands.

A sequence is made of stretches: prompt, text, opening token, latents, closing token, auxiliary image. The functions
here say which types of slots each stretch has and where they stand. Decoding and unrolling (`drive`,
`SequenceBatch`) lay one stretch behind the other as they are fed; `lay_out` lays them all before anything is fed.
Nobody else computes a slot type or a position.

Shapes: N slots of a stretch.
"""

from dataclasses import dataclass

import torch

from latent_core.model.slot_types import (
    AFTER,
    AUX,
    AUX_END,
    AUX_START,
    CLOSE,
    CONTROL,
    IMAGE,
    LATENT,
    OPEN,
    PROMPT,
    SEALED,
    TEXT,
    numbered,
)


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """A stretch of a sequence: the type of every slot, and where the slots stand."""

    types: tuple[int, ...] = ()
    """(N,) slot types, see slot_types.py."""
    positions: torch.Tensor | None = None
    """(3, N) M-RoPE positions on the CPU, counted from where the sequence stands before this stretch; copies of what
    stands there already have negative ones. None, as for text: all three axes count on by one."""

    def __len__(self) -> int:
        return len(self.types)

    def place(self, start: int) -> tuple[range | torch.Tensor, int]:
        """Positions in a sequence that stands at `start`, and where it stands behind them: one past the largest.

        Positions are a range where all three axes are equal, otherwise (3, N).
        """
        if self.positions is None:
            end = start + len(self.types)
            return range(start, end), end
        positions = self.positions + start
        return positions, int(positions.max()) + 1


def axes(positions: range | torch.Tensor) -> torch.Tensor:
    """(3, N) of what `Slots.place` gives."""
    if isinstance(positions, torch.Tensor):
        return positions
    return torch.tensor(positions, dtype=torch.long).expand(3, -1)


def join(*stretches: Slots) -> Slots:
    """One stretch out of several, one behind the other."""
    types = tuple(slot_type for stretch in stretches for slot_type in stretch.types)
    if all(stretch.positions is None for stretch in stretches):
        return Slots(types)
    places, end = [], 0
    for stretch in stretches:
        positions, end = stretch.place(end)
        places.append(axes(positions))
    return Slots(types, torch.cat(places, 1))


def prompt_slots(ids: list[int], image_token_id: int, positions: torch.Tensor) -> Slots:
    """A prompt: image tokens and everything else, at positions (3, N) that the backbone gives."""
    return Slots(tuple(IMAGE if token == image_token_id else PROMPT for token in ids), positions)


def text_slots(count: int, blocks: int) -> Slots:
    """`count` tokens of the response, after so many blocks: attention rules tell text before the first block from what
    follows it."""
    return Slots((TEXT if blocks == 0 else AFTER,) * count)


def opening_slots(block: int, controls: int) -> Slots:
    """The opening token of block number `block`, and the control vectors that steer the block behind it."""
    return Slots((numbered(OPEN, block), *(numbered(CONTROL, block),) * controls))


def latent_slots(block: int, count: int, positions: torch.Tensor | None = None) -> Slots:
    """Latents of a block; `positions` (3, count) where they stand otherwise than one after the other."""
    return Slots((numbered(LATENT, block),) * count, positions)


def closing_slots(block: int, sealed: Slots | None = None) -> Slots:
    """The closing token; before it the copies of `sealed`, the block's latents, where those are sealed."""
    close = numbered(CLOSE, block)
    if not sealed:
        return Slots((close,))
    # To later text a copy is its latent, so it stands at the latent's position, and the closing token goes on behind
    # the latents as if there were no copies.
    positions, end = sealed.place(0)
    types = (*(numbered(SEALED, block),) * len(sealed), close)
    return Slots(types, torch.cat([axes(positions) - end, axes(range(1))], 1))


def auxiliary_image_slots(number: int, positions: torch.Tensor) -> Slots:
    """The tokens of auxiliary image `number`, at positions (3, N) counted from its first."""
    return Slots((numbered(AUX, number),) * positions.shape[1], positions)


def marker_slots(number: int) -> tuple[Slots, Slots]:
    """The markers before and behind auxiliary image `number`."""
    return Slots((numbered(AUX_START, number),)), Slots((numbered(AUX_END, number),))
