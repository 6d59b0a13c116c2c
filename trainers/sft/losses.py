"""The losses of latent distillation, as functions of tensors.

Shapes: B sequences, M labels, V vocabulary, E levels of hidden states, N tokens, D model width.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from trainers.parallel import batch_mean

Axis = Literal["hidden", "token"]


def next_words(
    logits: torch.Tensor, targets: torch.Tensor, learned: torch.Tensor, families: Iterable[str]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross-entropy of logits (M, V) with the ids (M,) that follow, and `exact`; learned (B, L) says where."""
    loss = batch_mean(F.cross_entropy(logits, targets, reduction="none"))
    return loss, exact(logits, targets, learned, families)


def exact(
    logits: torch.Tensor, targets: torch.Tensor, learned: torch.Tensor, families: Iterable[str]
) -> dict[str, float]:
    """accuracy_<family>: share of sequences of which every learned token was the most likely one.

    These are the sequences that greedy decoding would reproduce word for word. The answer's tokens alone would not do:
    with the right text before it given, the answer can be copied.
    """
    right = torch.ones_like(learned)
    right[learned] = logits.argmax(-1) == targets
    by_family: dict[str, list[bool]] = {}
    for family, value in zip(families, right.all(1).tolist(), strict=True):
        by_family.setdefault(family, []).append(value)
    return {f"accuracy_{family}": sum(values) / len(values) for family, values in by_family.items()}


def row_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, count: int
) -> torch.Tensor:
    """(count,) weighted cross-entropy of each sequence, Σ w·ce / Σ w over its labels; 0 for one without.

    logits (M, V), targets, weights and rows (M,), the last saying which of the `count` sequences a label belongs to.
    Monet, section 3.1: w is the observation factor on observations and 1 elsewhere. A mean over sequences, not over
    all labels of a batch, makes a batch the average of its sequences however it is split over processes.
    """
    losses = F.cross_entropy(logits, targets, reduction="none") * weights
    zeros = losses.new_zeros(count)
    return zeros.index_add(0, rows, losses) / zeros.index_add(0, rows, weights).clamp(min=1e-8)


def alignment(teacher: Sequence[torch.Tensor], student: Sequence[torch.Tensor], axis: Axis = "hidden") -> torch.Tensor:
    """(B,) mean of 1 − cos(teacher, student) per sequence, whose states are (E, N, D) with N of its own.

    `hidden` compares each token's states, over D: Monet's equations 3 and 4. `token` takes the cosine over the N
    tokens for each of the D channels, as the released code does (no `dim` is passed there, so that it falls on the
    first axis). Sequences with N = 0 give 0.
    """
    dim = {"hidden": -1, "token": -2}[axis]
    losses = []
    for target, state in zip(teacher, student, strict=True):
        if target.shape != state.shape:
            raise ValueError(f"Teacher states {tuple(target.shape)} and student states {tuple(state.shape)} differ.")
        loss = 1 - F.cosine_similarity(target.float(), state.float(), dim=dim)
        losses.append(loss.mean() if target.shape[1] else state.sum() * 0)
    return torch.stack(losses)
