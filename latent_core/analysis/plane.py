"""Layouts: coordinates of vectors on a plane or in space that was laid out once, from a reference bank.

A map of eight points is noise, whatever draws it. So the axes come from a bank of a checkpoint's states, patches and
latents, and a run is placed among them: on principal axes exactly, on a UMAP by its neighbours in the bank.

Shapes: R bank vectors, N new vectors, D model width, A axes (2 or 3).
"""

import math

import torch
from torch.nn.functional import normalize

NEIGHBOURS = 15
"""Neighbours of a vector on a UMAP."""


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (N, D) scaled to length 1, so that only their direction counts; zero stays zero.

    z / ‖z‖
    """
    return normalize(vectors.float(), dim=-1)


def umap_layout(vectors: torch.Tensor, axes: int, *, seed: int = 0) -> torch.Tensor:
    """Coordinates (R, A) of vectors (R, D), R > NEIGHBOURS, by umap-learn: 15 neighbours, distance 0.1, Euclidean.

    The same seed gives the same coordinates on the same machine. Takes seconds, most of them for compiling, the first
    time in a process.
    """
    if len(vectors) <= NEIGHBOURS:
        raise ValueError(f"There are {len(vectors)} vectors; a UMAP of {NEIGHBOURS} neighbours needs more.")
    from umap import UMAP  # compiles for seconds; whoever only places vectors does not wait for it

    fitted = UMAP(n_components=axes, n_neighbors=NEIGHBOURS, min_dist=0.1, random_state=seed, n_jobs=1)
    threads = torch.get_num_threads()
    try:
        return torch.from_numpy(fitted.fit_transform(vectors.float().numpy())).float()
    finally:
        torch.set_num_threads(threads)  # compiled code sets those of the whole process, with which torch's sums change


def place_by_neighbours(vectors: torch.Tensor, bank: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
    """Coordinates (N, A) of vectors (N, D) in the layout (R, A) of a bank (R, D), R > NEIGHBOURS.

    x = Σ_j w_j x_j / Σ_j w_j over the 15 nearest j, w_j = exp(−(d_j − d_1) / σ), Σ_j≥2 w_j = log₂ 15

    These are the weights and the starting places that UMAP itself gives to new points (McInnes et al. 2018,
    arXiv 1802.03426, section 3.1); it then moves them by chance, which is left out.
    """
    if vectors.shape[-1] != bank.shape[-1] or len(bank) != len(layout) or len(bank) <= NEIGHBOURS:
        raise ValueError(
            f"Vectors are {tuple(vectors.shape)}, the bank {tuple(bank.shape)}, its layout {tuple(layout.shape)}; "
            f"(N, D), (R, D) and (R, axes) with R > {NEIGHBOURS} are needed."
        )
    distances, rows = torch.cdist(vectors.double(), bank.double()).topk(NEIGHBOURS, largest=False)
    weights = neighbour_weights(distances)
    return ((weights[..., None] * layout.double()[rows]).sum(1) / weights.sum(1, keepdim=True)).float()


def neighbour_weights(distances: torch.Tensor) -> torch.Tensor:
    """UMAP's weights of neighbours at rising distances (N, k) → (N, k) in 0…1, the nearest 1.

    w_j = exp(−(d_j − d_1) / σ), σ such that Σ_j≥2 w_j = log₂ k
    """
    beyond = (distances - distances[:, :1]).clamp(min=0).double()
    target = math.log2(distances.shape[1])
    low = torch.zeros(len(distances), 1, dtype=torch.float64)
    high = beyond.amax(1, keepdim=True) * 1e3 + 1e-12
    for _ in range(80):  # the sum grows with σ: bisection
        middle = (low + high) / 2
        too_small = torch.exp(-beyond / middle.clamp(min=1e-300))[:, 1:].sum(1, keepdim=True) < target
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return torch.exp(-beyond / high)
