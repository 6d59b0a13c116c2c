"""The types of slots in a sequence, from which attention rules follow."""

import torch

PAD, PROMPT, IMAGE, AUX, OPEN, CONTROL, LATENT, SEALED, CLOSE, TEXT, AFTER, AUX_START, AUX_END = range(13)
"""Types of slots. TEXT is response text before the first block, AFTER response text behind one, whether or not a
closing token stands between. SEALED slots exist under the rule `sealed` only: a block's vectors, fed once more at its
close. AUX slots are the tokens of an auxiliary image, which only training shows, between their markers AUX_START and
AUX_END. Types that belong to a block (or an auxiliary image) carry its number, see `numbered`."""

CLASSES = 16
"""The number of classes that a slot type has room for; multiples of it are the number of a block."""


def numbered(slot_type: int, number: int) -> int:
    """The type of a slot of block (or auxiliary image) `number`, e.g. numbered(LATENT, 2)."""
    return slot_type + CLASSES * number


def slot_class(slot_types: torch.Tensor | int) -> torch.Tensor | int:
    """The class of slot types, PAD to AUX_END without the block's number; one type or a tensor of any shape."""
    return slot_types & (CLASSES - 1)
