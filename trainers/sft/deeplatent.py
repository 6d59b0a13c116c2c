"""DeepLatent's two supervised stages (arXiv 2606.00562).

    1 interleaved  text · assistant image · text     cross-entropy
    2 distillation text · latents · text             L_NTP + 4 · L_align + ½ · L_scale

L_align is the mean over levels and positions of 1 − cos between the frozen stage-1 model's states at an assistant
image's tokens and the student's at the latents, paired in raster order. L_scale is the cross-entropy of the scale
head's rows and columns with the image's grid. A response with b blocks takes b + 1 forwards.

Shapes: M blocks of all sequences, L slots, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from PIL import Image

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block
from latent_core.decoding.unroll import Features, Unrolled, encode_sequences, splice
from latent_core.example import Example, LatentStep, Step
from latent_core.methods.deeplatent import SIDE, DeepLatent, squarest
from latent_core.model.slot_types import AUX, CONTROL, LATENT, slot_class
from latent_core.settings import Rule, check
from trainers.data.segments import segments
from trainers.options import check_types
from trainers.parallel import batch_mean
from trainers.planning.lengths import Length, RowSizes
from trainers.sft.interleaved import Part, collate, gather, lay_row, levels, mean_of_rows
from trainers.sft.losses import alignment
from trainers.stage import Item, Stage

if TYPE_CHECKING:
    from trainers.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLatentStageOptions:
    """Options of DeepLatent's supervised stages: weights of the losses, and what is left out in ablations."""

    align_weight: float = 4.0
    """Of the alignment with the teacher's states; 0 leaves it out (an ablation of the paper)."""
    align_levels: Literal["all", "last"] = "all"
    """Which levels of hidden states are aligned."""
    scale_weight: float = 0.5
    """Of the scale head's cross-entropy, where the grid is dynamic."""
    words: bool = True
    """False trains on latent steps and answers alone, without text between them (an ablation of the paper)."""

    def __post_init__(self) -> None:
        check_types(self, "deeplatent")


class Interleaved(Stage):
    """DeepLatent's stage 1: next-token prediction with the assistant images in place."""

    method: DeepLatent
    options: DeepLatentStageOptions

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        return row.length(shown=True, most=SIDE)

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        return collate(self, items, framed_row, "images")

    def forward(self, rows: list[ForcedSequence], rules: list[Rule], families: list[str]) -> dict[str, object]:
        spliced = splice(self.backbone, self.method, rows, [[] for _ in rows], rule="causal")
        loss, metrics = mean_of_rows(self.backbone, spliced, families)
        return {"loss": loss, "metrics": metrics}


class Distil(Stage):
    """DeepLatent's stage 2: latents in place of the assistant images, aligned with stage 1's states at these."""

    method: DeepLatent
    options: DeepLatentStageOptions
    teacher_passes = 1
    one_pass = True

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        # opening token, three control vectors, the grid, closing token
        latents = sum(tokens + 5 for tokens in row.auxiliary(SIDE))
        return row.length(latents=latents, forwards=len(row.example.steps) + 1, aligned=latents, most=SIDE)

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        return "Grids were those of the assistant images: 2 × 2 of a crop, 6 × 6 of a whole scene."

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        return collate(self, items, framed_row, "latents", "images")

    def forward(
        self, rows: list[ForcedSequence], rules: list[Rule], families: list[str], teacher: list[ForcedSequence]
    ) -> dict[str, object]:
        options, distils = self.options, self.options.align_weight > 0
        targets, features = (), None
        if distils:
            with torch.no_grad():
                teacher_features = encode_sequences(self.teacher, teacher)
            targets = self.targets(teacher, teacher_features)
            features = Features(teacher_features.prompts, []) if self.same_sight else None
        unrolled = self.unroll(
            rows,
            rules,
            features=features or encode_sequences(self.backbone, rows),
            levels=levels(self.backbone, options.align_levels) if distils else (),
        )
        loss, metrics = mean_of_rows(self.backbone, unrolled, families)
        if distils:
            student_states = gather(unrolled.levels, slot_class(unrolled.layout.slot_types) == LATENT)
            aligned = alignment(targets, student_states).mean()
            loss, metrics["alignment"] = loss + options.align_weight * aligned, aligned.item()
        if self.method.options.grid == "dynamic":
            scale = self.scale_loss(rows, unrolled)
            loss, metrics["scale"] = loss + options.scale_weight * scale, scale.item()
        return {"loss": loss, "metrics": metrics}

    @torch.no_grad()
    def targets(self, teacher: list[ForcedSequence], features: Features) -> list[torch.Tensor]:
        """Per sequence (E, N, D), the teacher's states at the tokens of assistant images."""
        no_latents: list[list[torch.Tensor]] = [[] for _ in teacher]
        aligned = levels(self.backbone, self.options.align_levels)
        spliced = splice(
            self.teacher, self.method, teacher, no_latents, rule="causal", levels=aligned, features=features
        )
        return gather(spliced.levels, slot_class(spliced.layout.slot_types) == AUX)

    def scale_loss(self, rows: list[ForcedSequence], unrolled: Unrolled) -> torch.Tensor:
        """Mean over blocks of the cross-entropies of rows and columns; 0 without blocks."""
        grids = [segment.grid for row in rows for segment in row.segments if isinstance(segment, Block)]
        control_states = unrolled.states[slot_class(unrolled.layout.slot_types) == CONTROL]
        scores = self.method.sizes(control_states[:: len(self.method.controls())])
        true_sizes = torch.tensor(grids, device=scores.device).view(-1, 2) - 1
        losses = F.cross_entropy(scores.flatten(0, 1), true_sizes.flatten(), reduction="none")
        return batch_mean(losses.view(-1, 2).sum(1))


def framed_row(stage: Interleaved | Distil, example: Example, part: Part, latents: int) -> ForcedSequence:
    """An example as prompt and response; assistant images resized to the grid they get.

    Without the text between latent steps where the recipe says so.
    """
    framed = [
        step if step.image is None else replace(step, image=frame(stage, step.image, latents))
        for step in example.steps
    ]
    rest = iter(framed)
    parts = example.parts and tuple(LatentStep(next(rest)) if isinstance(p, LatentStep) else p for p in example.parts)
    example = replace(example, steps=tuple(framed), parts=parts)
    pieces = segments(example)
    if not stage.options.words:
        pieces = [piece for piece in pieces if isinstance(piece, LatentStep) or piece.role == "answer"]
    return lay_row(stage, example, pieces, part, lambda step: grid_block(stage, step, latents, example.name))


def frame(stage: Interleaved | Distil, image: Image.Image, latents: int) -> Image.Image:
    """The image at the size that its grid has: its own up to 16 tokens a side, or the fixed one of K."""
    side = stage.processor.token_side
    if stage.method.options.grid == "fixed":
        rows, columns = squarest(latents)
        return image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    factor = SIDE * side / max(image.size)
    if factor >= 1:
        return image
    return image.resize([max(side, round(length * factor)) for length in image.size], Image.Resampling.BICUBIC)


def grid_block(stage: Interleaved | Distil, step: Step, latents: int, sample: str) -> Block:
    """The block of a latent step: a grid like the assistant image's."""
    check(step.image is not None, f"{sample}: a thought has no image, which its latents would be taught by.")
    _, grid_thw = stage.processor.patches(step.image)
    rows, columns = (grid_thw[0, 1:] // stage.processor.merge_size).tolist()
    check(
        max(rows, columns) <= SIDE,
        f"{sample}: an assistant image has {rows} × {columns} tokens; at most {SIDE} × {SIDE} are possible.",
    )
    if stage.method.options.grid == "fixed":
        fixed_grid = squarest(latents)
        check(
            (rows, columns) == fixed_grid,
            f"K is {latents}, a grid of {fixed_grid}, but the image processor makes {rows} × {columns} tokens of an "
            "assistant image of that size; choose another K.",
        )
    parallel = stage.method.options.generation == "parallel"
    return Block(rows * columns, grid=(rows, columns) if parallel else None)
