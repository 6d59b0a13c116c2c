"""Measures of recorded attention: its share by segment, its map on the image, its entropy.

Weights come from a `Recorder`: softmax rows over the slots of a run. Leading dimensions are free; they usually are
layers and heads.

Shapes: S slots, N image tokens, W text tokens of the run.
"""

import torch

from latent_core.events import SEGMENTS, AttentionSummary
from latent_core.model.slot_types import AFTER, CLOSE, CONTROL, IMAGE, LATENT, OPEN, PROMPT, SEALED, TEXT, slot_class

_SEGMENT_TYPES = ((IMAGE,), (PROMPT,), (LATENT, SEALED), (TEXT, AFTER), (OPEN, CONTROL, CLOSE))
"""Slot types of every segment, in the order of SEGMENTS."""
_MEMBERS = torch.zeros(16, len(SEGMENTS))
"""(slot_types, segments) 1 where a slot type is of a segment; padding is of none."""
for _number, _members in enumerate(_SEGMENT_TYPES):
    _MEMBERS[list(_members), _number] = 1.0


def shares(weights: torch.Tensor, slot_types: torch.Tensor) -> dict[str, torch.Tensor]:
    """Attention on each segment: weights (…, S), slot_types (S,) → (…) per segment, together 1.

    m_segment = Σ_{s in segment} A_s
    """
    return dict(zip(SEGMENTS, _shares(weights, slot_types).unbind(-1), strict=True))


def _shares(weights: torch.Tensor, slot_types: torch.Tensor) -> torch.Tensor:
    """(…, 5), in the order of SEGMENTS."""
    _check(weights, slot_types)
    return weights @ _MEMBERS[slot_class(slot_types)]


def image_map(weights: torch.Tensor, slot_types: torch.Tensor) -> torch.Tensor:
    """Attention on every image token: weights (…, S), slot_types (S,) → (…, N), all images one after the other."""
    _check(weights, slot_types)
    return weights.index_select(-1, image_slots(slot_types))


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of what is left after scaling weights (…, S) to sum 1 → (…), 0 for one peak, ln S for none.

    H = −Σ_s p_s ln p_s, p = A / Σ A
    """
    total = weights.sum(-1, keepdim=True)
    p = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    return -torch.special.xlogy(p, p).sum(-1)


def minus_baseline(maps: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Maps (…, N) minus the mean map of the run's text tokens: words (W, …, N), W ≥ 1 → (…, N), at least 0.

    max(0, A_n − (1 / W) Σ_w A_n^w)

    Image borders and the first tokens draw attention whatever is asked (attention sinks); say so beside the figure.
    """
    return (maps - baseline(words)).clamp(min=0)


def baseline(words: torch.Tensor) -> torch.Tensor:
    """The mean of the maps of a run's text tokens: words (W, …, N), W ≥ 1 → (…, N).

    (1 / W) Σ_w A_n^w
    """
    if not len(words):
        raise ValueError("The run has no words; a baseline needs at least one.")
    return words.mean(0)


def over_heads(weights: torch.Tensor, heads: int = 1) -> torch.Tensor:
    """Mean over the heads, dimension `heads`: weights (E, H, …) of E layers → (E, …).

    Ā = (1 / H) Σ_h A_h
    """
    return weights.mean(heads)


def with_mean(weights: torch.Tensor) -> torch.Tensor:
    """The mean of all heads, then each of them: weights (E, H, N) → (E, 1 + H, N)."""
    return torch.cat([over_heads(weights)[:, None], weights], 1)


def summarize(weights: torch.Tensor, slot_types: torch.Tensor, image: torch.Tensor | None = None) -> AttentionSummary:
    """The summary of one position's weights (layers, heads, S) that events carry.

    image: the slots of image tokens, where they are known already; they stay the same throughout a run.
    """
    slots = image_slots(slot_types) if image is None else image
    return AttentionSummary(
        image=weights.index_select(-1, slots).half(),
        shares=_shares(weights, slot_types),
        entropy=torch.special.entr(weights).sum(-1),  # the weights of a position sum to 1
    )


def image_slots(slot_types: torch.Tensor) -> torch.Tensor:
    """(N,) slots of the image tokens among slot_types (S,)."""
    return (slot_class(slot_types) == IMAGE).nonzero()[:, 0]


def _check(weights: torch.Tensor, slot_types: torch.Tensor) -> None:
    if weights.shape[-1] != len(slot_types):
        raise ValueError(f"There are weights of {weights.shape[-1]} slots, but slot_types of {len(slot_types)}.")
