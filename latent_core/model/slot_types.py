"""The types of slots in a sequence, from which attention rules follow."""

import torch

PAD, PROMPT, IMAGE, AUX, OPEN, CONTROL, LATENT, SEALED, CLOSE, TEXT, AFTER, AUX_START, AUX_END = range(13)
"""Types of slots. TEXT is response text before the first block, AFTER response text behind one, whether or not a
closing token stands between. SEALED slots exist under the rule `sealed` only: a block's vectors, fed once more at its
close. AUX slots are the tokens of an auxiliary image, which only training shows, between their markers AUX_START and
AUX_END. Types that belong to a block (or an auxiliary image) carry its number, see `numbered`."""

CLASSES = 16
"""Room for slot_types: what lies above it is a number."""


def numbered(kind: int, number: int) -> int:
    """The kind of a slot of block (or auxiliary image) `number`, e.g. numbered(LATENT, 2)."""
    return kind + CLASSES * number


def slot_class(slot_types: torch.Tensor | int) -> torch.Tensor | int:
    """PAD … AFTER without the block's number; one kind or a tensor of any shape."""
    return slot_types & (CLASSES - 1)
