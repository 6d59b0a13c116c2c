"""Similarity of vectors to image tokens, and the nearest patches.

A fed-back latent is a state after the final norm, a merged image token an input embedding: two different spaces, with
a large mean of their own each. So the comparison is offered at every recorded level of the image tokens' states,
raw and centred on both sides.

Shapes: Q query vectors, R reference vectors, S levels, N image tokens of all images, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

Grid = tuple[int, int]
"""(rows, columns) of an image's merged tokens."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One merged image token and its similarity."""

    image: int
    row: int
    column: int
    value: float
    """Cosine, in −1…1."""


def nearest_patch(
    vectors: torch.Tensor,
    image_states: torch.Tensor,
    *,
    centred: bool,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cosine of every vector (Q, D) with every image token (S, N, D), level by level → (Q, S, N) in −1…1.

    raw:      cos(z_q, v_sn) = ⟨z_q, v_sn⟩ / (‖z_q‖ ‖v_sn‖)
    centred:  cos(z_q − z̄, v_sn − v̄_s), v̄_s = mean over n of level s, z̄ = mean of `reference` (R, D)

    `reference` is by default the vectors themselves; pass all states of the run to compare few vectors, because one
    vector minus its own mean is zero. A zero vector has cosine 0 with everything.
    """
    vectors, image_states = vectors.float(), image_states.float()
    if vectors.dim() != 2 or image_states.dim() != 3 or vectors.shape[-1] != image_states.shape[-1]:
        raise ValueError(
            f"Vectors are {tuple(vectors.shape)} and image states {tuple(image_states.shape)}; "
            "(Q, D) and (S, N, D) with the same D are needed."
        )
    if centred:
        reference = vectors if reference is None else reference.float()
        vectors = vectors - reference.mean(dim=0)
        image_states = image_states - image_states.mean(dim=1, keepdim=True)
    return torch.einsum("qd,snd->qsn", normalize(vectors, dim=-1), normalize(image_states, dim=-1))


def top(similarity: torch.Tensor, grids: Sequence[Grid], count: int = 5) -> tuple[Patch, ...]:
    """The `count` image tokens with the highest values of one map (N,), best first; fewer where N is smaller."""
    places = _places(grids)
    _check(similarity, len(places))
    values, order = similarity.sort(descending=True, stable=True)
    return tuple(Patch(*places[n], value) for n, value in zip(order[:count].tolist(), values.tolist(), strict=False))


def maps(similarity: torch.Tensor, grids: Sequence[Grid]) -> tuple[torch.Tensor, ...]:
    """The maps (…, N) of all images, split: one (…, rows, columns) per image."""
    sizes = [rows * columns for rows, columns in grids]
    _check(similarity, sum(sizes))
    parts = similarity.split(sizes, dim=-1)
    return tuple(part.reshape(*part.shape[:-1], *grid) for part, grid in zip(parts, grids, strict=True))


def shared_scale(similarity: torch.Tensor) -> tuple[float, float]:
    """(lowest, highest) value of all maps that are drawn together, so that equal colours mean equal values.

    Scaling each map to itself would hide how strongly a latent resembles anything at all.
    """
    if similarity.numel() == 0:
        raise ValueError(f"There is no map to scale in a tensor of shape {tuple(similarity.shape)}.")
    return similarity.min().item(), similarity.max().item()


def _places(grids: Sequence[Grid]) -> list[tuple[int, int, int]]:
    """(image, row, column) of image token 0, 1, …: images one after the other, rows from the top."""
    return [
        (image, row, column)
        for image, (rows, columns) in enumerate(grids)
        for row in range(rows)
        for column in range(columns)
    ]


def _check(similarity: torch.Tensor, tokens: int) -> None:
    if similarity.shape[-1] != tokens:
        raise ValueError(f"The map has {similarity.shape[-1]} values, but the grids have {tokens} image tokens.")
