"""The lens: the tokens that a latent's logits favour, and the text states that lie nearest to it.

Shapes: Q query vectors, R bank vectors, V vocabulary, D model width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize


@dataclass(frozen=True, slots=True)
class Reading:
    """A token that a vector may be read as."""

    id: int
    rank: int
    """0 for the likeliest."""
    probability: float


def logit_lens(
    vectors: torch.Tensor,
    logits: Callable[[torch.Tensor], torch.Tensor],
    *,
    hidden_ids: Sequence[int] = (),
    mean: torch.Tensor | None = None,
    count: int = 5,
) -> list[list[Reading]]:
    """The `count` likeliest tokens of every vector (Q, D), a state after the final norm.

    p = softmax(W (z − z̄)), tokens in `hidden_ids` left out

    logits: W, (Q, D) → (Q, V). hidden_ids: control tokens, which otherwise take every place. mean: z̄ (D,), say of the
    checkpoint's latents; without it all latents tend to read as one token.
    """
    if mean is not None:
        vectors = vectors - mean
    scores = logits(vectors).float()
    scores[:, list(hidden_ids)] = float("-inf")
    probabilities, ids = scores.softmax(-1).topk(min(count, scores.shape[-1]))
    return [
        [Reading(id, rank, p) for rank, (id, p) in enumerate(zip(row, values, strict=True))]
        for row, values in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]


def rank_of(vectors: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor], id: int) -> torch.Tensor:
    """How many tokens are likelier than `id` for every vector (Q, D) → (Q,) int64; 0 for the likeliest."""
    scores = logits(vectors).float()
    return (scores > scores[:, id, None]).sum(-1)


def neighbours(
    vectors: torch.Tensor, bank: torch.Tensor, *, centred: bool, count: int = 5
) -> tuple[torch.Tensor, ...]:
    """The bank vectors (R, D) nearest to every vector (Q, D): cosines (Q, count), falling, and bank rows (Q, count).

    cos(z − z̄, b − b̄) with z̄ = b̄ = mean of the bank where centred, cos(z, b) otherwise
    """
    vectors, bank = vectors.float(), bank.float()
    if vectors.dim() != 2 or bank.dim() != 2 or vectors.shape[1] != bank.shape[1] or not len(bank):
        raise ValueError(
            f"Vectors are {tuple(vectors.shape)}, the bank {tuple(bank.shape)}; (Q, D), (R, D) are needed."
        )
    if centred:
        middle = bank.mean(0)
        vectors, bank = vectors - middle, bank - middle
    cosines = normalize(vectors, dim=-1) @ normalize(bank, dim=-1).T
    values, rows = cosines.topk(min(count, len(bank)))
    return values, rows
