"""Where recorded attention goes: to the image, by segment, and how sharply.

Weights come from a `Recorder`: softmax rows over the slots of a run. Leading dimensions are free; they usually are
layers and heads.

Shapes: S slots, N image tokens, W words of the run.
"""

import torch

from latent_core.attention import (
    AFTER,
    CLOSE,
    CONTROL,
    IMAGE,
    LATENT,
    OPEN,
    PROMPT,
    SEALED,
    TEXT,
    kind_class,
)
from latent_core.events import SEGMENTS, Look

_KINDS = ((IMAGE,), (PROMPT,), (LATENT, SEALED), (TEXT, AFTER), (OPEN, CONTROL, CLOSE))
"""Kinds of slots of every segment."""


def shares(weights: torch.Tensor, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Attention on each segment: weights (…, S), kinds (S,) → (…) per segment, together 1.

    m_segment = Σ_{s in segment} A_s
    """
    _check(weights, kinds)
    classes = kind_class(kinds)
    return {
        name: weights[..., torch.isin(classes, torch.tensor(members))].sum(-1)
        for name, members in zip(SEGMENTS, _KINDS, strict=True)
    }


def image_map(weights: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Attention on every image token: weights (…, S), kinds (S,) → (…, N), all images one after the other."""
    _check(weights, kinds)
    return weights[..., kind_class(kinds) == IMAGE]


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of what is left after scaling weights (…, S) to sum 1 → (…), 0 for one peak, ln S for none.

    H = −Σ_s p_s ln p_s, p = A / Σ A
    """
    total = weights.sum(-1, keepdim=True)
    p = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    return -torch.special.xlogy(p, p).sum(-1)


def minus_baseline(maps: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Maps (…, N) without what every word of the run looks at: words (W, …, N), W ≥ 1 → (…, N), at least 0.

    max(0, A_n − (1 / W) Σ_w A_n^w)

    Image borders and the first tokens draw attention whatever is asked (attention sinks); say so on the picture.
    """
    if not len(words):
        raise ValueError("The run has no words; a baseline needs at least one.")
    return (maps - words.mean(0)).clamp(min=0)


def look(weights: torch.Tensor, kinds: torch.Tensor) -> Look:
    """What is kept of one position's weights (layers, heads, S)."""
    image = image_map(weights, kinds)
    peak = image.amax(-1) if image.shape[-1] else image.new_zeros(image.shape[:-1])
    scale = torch.where(peak > 0, 255 / peak.clamp(min=torch.finfo(peak.dtype).tiny), 0.0)
    return Look(
        image=(image * scale[..., None]).round().to(torch.uint8),
        peak=peak,
        shares=torch.stack(list(shares(weights, kinds).values()), -1),
        entropy=entropy(weights),
    )


def _check(weights: torch.Tensor, kinds: torch.Tensor) -> None:
    if weights.shape[-1] != len(kinds):
        raise ValueError(f"There are weights of {weights.shape[-1]} slots, but kinds of {len(kinds)}.")
