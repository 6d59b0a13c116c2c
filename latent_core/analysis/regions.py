"""Regions of an image: the image tokens in them, and how much of a map lies there.

Shapes: N image tokens of one image, row by row; Q vectors, D model width.
"""

from random import Random

import torch

from latent_core.analysis.similarity import Grid, nearest_patch
from latent_core.example import Box

AT_ONCE = 512
"""Vectors that are compared with all image tokens at once: 4 MB for the 2048 tokens of a large image."""


def tokens_in(box: Box, grid: Grid) -> torch.Tensor:
    """(N,) bool: the tokens of a grid (rows, columns) whose centre lies in a box; the nearest one if none does.

    Raises ValueError for a box that is empty or leaves 0…1.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(f"The region is {box}; 0 ≤ x0 < x1 ≤ 1 and 0 ≤ y0 < y1 ≤ 1 must hold.")
    rows, columns = grid
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns
    inside = ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))
    if not inside.any():
        row, column = (y - (y0 + y1) / 2).abs().argmin(), (x - (x0 + x1) / 2).abs().argmin()
        inside[row, column] = True
    return inside.flatten()


def total(map: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Sum of a map (…, N) over the tokens `inside` (N,), in float32 → (…).

    Σ_{n in region} A_n
    """
    return map[..., inside].float().sum(-1)


def similarity(
    vectors: torch.Tensor, states: torch.Tensor, inside: torch.Tensor, *, centred: bool, reference: torch.Tensor
) -> torch.Tensor:
    """Mean cosine of every vector (Q, D) with the image states (N, D) of the tokens `inside` (N,) → (Q,) in −1…1.

    (1 / |region|) Σ_{n in region} cos(z_q, v_n), centred or raw as in `similarity.nearest_patch`; reference (R, D)

    Vectors are taken AT_ONCE at a time, for their cosines with all tokens are many.
    """
    parts = (
        nearest_patch(part, states[None], centred=centred, reference=reference)[:, 0, inside].mean(1)
        for part in vectors.split(AT_ONCE)
    )
    return torch.cat(list(parts))


def mass(map: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Share of a map's sum (…, N) that lies on the tokens `inside` (N,) → (…) in 0…1, for maps without negatives.

    s = Σ_{n in region} A_n / Σ_n A_n
    """
    total = map.sum(-1)
    return torch.where(total > 0, map[..., inside].sum(-1) / total.clamp(min=torch.finfo(map.dtype).tiny), 0.0)


def enrichment(map: torch.Tensor, box: Box, grid: Grid, *, boxes: int = 200, seed: int = 0) -> torch.Tensor:
    """How much more of a map (…, N) lies in a region than in others of its size → (…); 1 means no preference.

    ρ = s(region) / mean of s over random boxes of the same width and height that do not overlap it

    Boxes are drawn from `seed`; where the region is too large for any to fit beside it, overlapping ones count, too.
    """
    rows, columns = grid
    region = tokens_in(box, grid).reshape(rows, columns)
    tall, wide = int(region.any(1).sum()), int(region.any(0).sum())
    places = [(r, c) for r in range(rows - tall + 1) for c in range(columns - wide + 1)]
    free = [(r, c) for r, c in places if not region[r : r + tall, c : c + wide].any()] or places
    rng = Random(f"enrichment/{seed}")
    drawn = free if len(free) <= boxes else rng.sample(free, boxes)
    elsewhere = torch.zeros(map.shape[:-1], dtype=map.dtype)
    for row, column in drawn:
        inside = torch.zeros(rows, columns, dtype=torch.bool)
        inside[row : row + tall, column : column + wide] = True
        elsewhere += mass(map, inside.flatten())
    elsewhere /= len(drawn)
    return mass(map, region.flatten()) / elsewhere.clamp(min=torch.finfo(map.dtype).tiny)


def mean_enrichment(maps: torch.Tensor, box: Box, grid: Grid) -> torch.Tensor:
    """Mean of `enrichment` over maps (Q, …, N) of several positions, Q ≥ 1 → (…).

    (1 / Q) Σ_q ρ_q
    """
    return enrichment(maps, box, grid).mean(0)
