"""Geometry of vectors: homogeneity, effective rank, norms, principal axes.

Shapes: K latents of a block, I instances (runs), N vectors, R reference vectors, D model width.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize


def cosine_matrix(latents: torch.Tensor) -> torch.Tensor:
    """Cosine of every latent (K, D) with every other → (K, K) in −1…1.

    C_ab = ⟨z_a, z_b⟩ / (‖z_a‖ ‖z_b‖)

    A zero vector has cosine 0 with everything, itself included.
    """
    unit = normalize(_float(latents, 2), dim=-1)
    return unit @ unit.T


def adjacent_cosine(latents: torch.Tensor) -> float | None:
    """Mean cosine of neighbouring latents (K, D) of a block, in −1…1; None for fewer than two.

    (1 / (K − 1)) · Σ_t cos(z_t, z_t+1)
    """
    if len(latents) < 2:
        return None
    unit = normalize(_float(latents, 2), dim=-1)
    return (unit[1:] * unit[:-1]).sum(-1).mean().item()


def paired_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of the latents at the same place of two blocks (K, D) and (K′, D) → (min(K, K′),) in −1…1.

    cos(z_t, z′_t) = ⟨z_t, z′_t⟩ / (‖z_t‖ ‖z′_t‖)
    """
    count = min(len(first), len(second))
    return torch.cosine_similarity(_float(first[:count], 2), _float(second[:count], 2), dim=-1)


def instance_similarity(latents: torch.Tensor) -> torch.Tensor:
    """Mean cosine over pairs of instances, position by position: latents (I, K, D), I ≥ 2 → (K,) in −1…1.

    S_t = 2 / (I (I − 1)) · Σ_{i<j} cos(z_t^i, z_t^j)

    1 where all questions and images give the same latent (CapImagine, arXiv 2602.22766).
    """
    unit = normalize(_float(latents, 3), dim=-1)
    count = len(unit)
    if count < 2:
        raise ValueError(f"A similarity between instances needs at least 2 of them, not {count}.")
    # Σ_{i≠j} ⟨u_i, u_j⟩ = ‖Σ u_i‖² − Σ ‖u_i‖²
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum(-1).sum(0)
    return pairs / (count * (count - 1))


def spectrum(vectors: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the covariance of vectors (N, D), N ≥ 2, largest first → (min(N, D),).

    λ of (1 / (N − 1)) · Σ_n (v_n − v̄)(v_n − v̄)ᵀ
    """
    vectors = _float(vectors, 2).double()
    if len(vectors) < 2:
        raise ValueError(f"A covariance needs at least 2 vectors, not {len(vectors)}.")
    return torch.linalg.svdvals(vectors - vectors.mean(0)).square() / (len(vectors) - 1)


def effective_rank(vectors: torch.Tensor) -> float:
    """Participation ratio of the spectrum of vectors (N, D): 1 for a line, D for a ball; 0 where all are equal.

    (Σ λ)² / Σ λ²
    """
    values = spectrum(vectors)
    squares = values.square().sum()
    return (values.sum().square() / squares).item() if squares > 0 else 0.0


def rank_at(vectors: torch.Tensor, share: float = 0.9) -> int:
    """Principal axes that together hold `share` of the variance of vectors (N, D); 0 where all are equal.

    min r : Σ_{i≤r} λ_i ≥ share · Σ λ
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it lies above 0 and is at most 1.")
    values = spectrum(vectors)
    total = values.sum()
    if total == 0:
        return 0
    reached = values.cumsum(0) / total >= share - 1e-12
    return int(reached.int().argmax()) + 1


def norms(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of every vector (…, D) → (…).

    ‖v‖ = √(Σ_d v_d²)
    """
    return vectors.norm(dim=-1)


def mean_norm(vectors: torch.Tensor) -> torch.Tensor:
    """Mean norm of vectors (…, N, D), N ≥ 1 → (…).

    (1 / N) Σ_n ‖v_n‖
    """
    return norms(vectors).mean(-1)


def norm_ratio(vectors: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Norms of vectors (N, D) over the mean norm of a reference (R, D), R ≥ 1 → (N,).

    ‖v_n‖ / ((1 / R) · Σ_r ‖ref_r‖)

    Say beside the figure which tensors were compared: embeddings, or states before or after the final norm.
    """
    mean = mean_norm(_float(reference, 2))
    if not mean > 0:
        raise ValueError("The reference vectors are all zero or there are none; a ratio to their norm says nothing.")
    return norms(_float(vectors, 2)) / mean


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """A plane or space through the mean of some vectors, along their principal axes."""

    mean: torch.Tensor
    """(D,)"""
    directions: torch.Tensor
    """(axes, D), orthonormal; each with its largest entry positive, so that a figure does not flip."""
    explained: torch.Tensor
    """(axes,) shares of the variance, in 0…1."""

    def place(self, vectors: torch.Tensor) -> torch.Tensor:
        """Coordinates (N, axes) of vectors (N, D)."""
        return (_float(vectors, 2) - self.mean) @ self.directions.T


def principal_axes(vectors: torch.Tensor, count: int = 2) -> Axes:
    """The `count` directions of largest variance of vectors (N, D), N ≥ 2: PCA.

    v_n − v̄ ≈ Σ_i ⟨v_n − v̄, a_i⟩ a_i, a_i the eigenvectors of the covariance by falling λ_i
    """
    vectors = _float(vectors, 2)
    if len(vectors) < 2 or not 1 <= count <= min(vectors.shape):
        raise ValueError(f"{tuple(vectors.shape)} vectors do not have {count} principal axes.")
    mean = vectors.mean(0)
    _, values, directions = torch.linalg.svd((vectors - mean).double(), full_matrices=False)
    directions = directions[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    variance = values.square()
    shares = variance[:count] / variance.sum().clamp(min=torch.finfo(variance.dtype).tiny)
    return Axes(mean, (directions * largest.sign()).float(), shares.float())


def _float(vectors: torch.Tensor, dims: int) -> torch.Tensor:
    if vectors.dim() != dims:
        raise ValueError(f"The vectors are {tuple(vectors.shape)}; {dims} dimensions are needed.")
    return vectors.float()
