"""Sequences whose latent steps are images, blocks or both: their layout, losses and states, for several methods.

Shapes: B sequences, L slots, E levels (embeddings, every decoder layer, the last one after the final norm), N tokens,
D model width.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from latent_core.decoding.layout import NO_LABEL, ForcedSequence
from latent_core.decoding.sequence import AuxiliaryImage, Block, Segment, Tokens
from latent_core.decoding.unroll import Unrolled
from latent_core.example import Example, LatentStep, Step, TextSpan
from latent_core.model.backbone import Backbone
from trainers.data.caps import shrink
from trainers.sft.losses import exact, row_cross_entropy
from trainers.stage import Item, Stage, families_of

Part = Literal["images", "latents", "both"]
"""Form of latent steps in a sequence: auxiliary images, blocks, or each image before its block."""


def collate(
    stage: Stage,
    items: Sequence[Item],
    row: Callable[[Stage, Example, Part, int], ForcedSequence],
    student: Part,
    teacher: Part | None = None,
) -> dict[str, object]:
    """A batch: sequences of student and teacher, and each one's attention rule; row: see monet.row."""
    latents, rule = stage.draw(items[0][1])
    caps, side = stage.recipe.caps, stage.processor.token_side
    examples = [shrink(example, caps.total, caps.each, side=side) if caps.total else example for example, _ in items]
    batch: dict[str, object] = {
        "rows": [row(stage, example, student, latents) for example in examples],
        "rules": [rule] * len(items),
        "families": families_of(items),
    }
    if teacher is not None:
        if caps.teacher_total:
            examples = [shrink(example, caps.teacher_total, caps.teacher_each, side=side) for example, _ in items]
        batch["teacher"] = [row(stage, example, teacher, latents) for example in examples]
    return batch


def lay_row(
    stage: Stage,
    example: Example,
    pieces: Sequence[TextSpan | LatentStep],
    part: Part,
    block: Callable[[Step], Block],
    *,
    tags: bool = False,
    tag_observed: bool = True,
) -> ForcedSequence:
    """An example as prompt and response: `pieces` in order, each latent step as `part` says, its latents by `block`.

    tags: whether `<observation>` and `</observation>` stand around observations, unlearned; tag_observed: whether the
    first of them is part of the observation.
    """
    processor = stage.processor
    response: list[Segment] = []
    for piece in pieces:
        if isinstance(piece, LatentStep):
            if part != "latents" and piece.step.image is not None:
                response.append(AuxiliaryImage(*processor.patches(piece.step.image)))
            if part != "images":
                response.append(block(piece.step))
            continue
        ids, observed = tuple(processor.encode(piece.text)), piece.role == "observation"
        if observed and tags:
            first, last = (processor.token_id(tag) for tag in ("<observation>", "</observation>"))
            response.append(Tokens((first,), learn=False, observation=tag_observed))
            response += [Tokens(ids, observation=True), Tokens((last,), learn=False)]
        else:
            response.append(Tokens(ids, observation=observed))
    response.append(Tokens((processor.eos_id,)))
    return ForcedSequence(processor(example.images, example.question, stage.recipe.system), tuple(response))


def mean_of_rows(
    backbone: Backbone, unrolled: Unrolled, families: Sequence[str], *, observation: float = 1.0
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean of the sequences' cross-entropies, observations weighted with `observation`, and accuracy_<family>."""
    states, targets = unrolled.learned()
    logits = backbone.logits(states).float()
    learned = unrolled.layout.labels != NO_LABEL
    rows = learned.nonzero()[:, 0]
    losses = row_cross_entropy(logits, targets, unrolled.layout.weights(observation), rows, len(learned))
    return losses.mean(), exact(logits, targets, learned, families)


def levels(backbone: Backbone, which: Literal["all", "last"]) -> range:
    """The levels of hidden states that are aligned."""
    last = backbone.num_layers
    return range(last if which == "last" else 0, last + 1)


def gather(levels: Sequence[torch.Tensor], chosen: torch.Tensor) -> list[torch.Tensor]:
    """Per sequence (E, N, D), the slots `chosen` (B, L) of levels (B, L, D) each."""
    stacked = torch.stack(list(levels), 1)
    return [row[:, mask] for row, mask in zip(stacked, chosen, strict=True)]
