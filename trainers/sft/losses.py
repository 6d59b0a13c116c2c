"""The losses of latent distillation, as functions of tensors.

Shapes: B rows, M labels, V vocabulary, E levels of hidden states, N tokens, D model width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

Axis = Literal["hidden", "token"]


def row_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, count: int
) -> torch.Tensor:
    """(count,) weighted cross-entropy of each row, Σ w·ce / Σ w over its labels; 0 for a row without labels.

    logits (M, V), targets, weights and rows (M,), the last saying which of the `count` rows a label belongs to. Monet,
    section 3.1: w is the observation factor on words of observations and 1 elsewhere. A mean over rows, not over all
    labels of a batch, makes a batch the average of its rows however it is split over processes.
    """
    losses = F.cross_entropy(logits, targets, reduction="none") * weights
    zeros = losses.new_zeros(count)
    return zeros.index_add(0, rows, losses) / zeros.index_add(0, rows, weights).clamp(min=1e-8)


def alignment(teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor], axis: Axis = "hidden") -> torch.Tensor:
    """(B,) mean of 1 − cos(teacher, student) per row, whose states are (E, N, D) with N of its own.

    `hidden` compares each token's states, over D: Monet's equations 3 and 4. `token` takes the cosine over the row's N
    tokens for each of the D channels, as the released code does (no `dim` is passed there, so that it falls on the
    first axis). Rows with N = 0 give 0.
    """
    dim = {"hidden": -1, "token": -2}[axis]
    found = []
    for wanted, given in zip(teacher, student, strict=True):
        if wanted.shape != given.shape:
            raise ValueError(f"Teacher states {tuple(wanted.shape)} and student states {tuple(given.shape)} differ.")
        loss = 1 - F.cosine_similarity(wanted.float(), given.float(), dim=dim)
        found.append(loss.mean() if wanted.shape[1] else given.sum() * 0)
    return torch.stack(found)
