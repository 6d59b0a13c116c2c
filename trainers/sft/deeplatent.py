"""DeepLatent's two supervised stages (arXiv 2606.00562).

    1 interleaved  text · assistant image · text     cross-entropy
    2 distillation text · latents · text             L_NTP + 4 · L_align + ½ · L_scale

L_align is the mean over levels and positions of 1 − cos between the frozen stage-1 model's states at an assistant
image's tokens and the student's at the latents, paired in raster order. L_scale is the cross-entropy of the scale
head's rows and columns with the image's grid. A response with b blocks takes b + 1 forwards.

Shapes: M blocks of all rows, L slots, D model width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from latent_core.drive import Block
from latent_core.example import Example, Step, Thought, Words
from latent_core.kinds import AUX, CONTROL, LATENT, kind_class
from latent_core.layout import Row
from latent_core.methods.deeplatent import SIDE, DeepLatent, squarest
from latent_core.processor import Processor
from latent_core.settings import Rule, check
from latent_core.unroll import Features, Unrolled, look, splice, unroll
from trainers.data.segments import segments
from trainers.options import MonetOptions
from trainers.parallel import batch_mean, common_ticks
from trainers.recipe import Recipe
from trainers.sft.losses import alignment
from trainers.sft.monet import MonetStage, Part, WarmUp, gather


class DeepLatentStage(MonetStage):
    """What both stages share: assistant images of at most 16 × 16 tokens."""

    method: DeepLatent

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__(model, processor, recipe)
        self.options = MonetOptions()  # what both methods share is Monet's default, whatever Monet's recipes say
        given = self.method
        check(isinstance(given, DeepLatent), f"stage {recipe.stage} trains method deeplatent, not {recipe.method!r}.")

    def row(self, example: Example, part: Part, latents: int) -> Row:
        """An example as prompt and response; assistant images resized to the grid they get."""
        framed = [
            step if step.image is None else replace(step, image=self.frame(step.image, latents))
            for step in example.steps
        ]
        rest = iter(framed)
        parts = example.parts and tuple(Thought(next(rest)) if isinstance(p, Thought) else p for p in example.parts)
        return super().row(replace(example, steps=tuple(framed), parts=parts), part, latents)

    def frame(self, image: Image.Image, latents: int) -> Image.Image:
        """The image at the size that its grid has: its own up to 16 tokens a side, or the fixed one of K."""
        side = self.processor.token_side
        if self.method.options.grid == "fixed":
            rows, columns = squarest(latents)
            return image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        factor = SIDE * side / max(image.size)
        if factor >= 1:
            return image
        return image.resize([max(side, round(length * factor)) for length in image.size], Image.Resampling.BICUBIC)

    def pieces(self, example: Example) -> list[Words | Thought]:
        """See MonetStage; without the words between thoughts where the recipe says so."""
        every = segments(example)
        if self.recipe.deeplatent.words:
            return every
        return [piece for piece in every if isinstance(piece, Thought) or piece.role == "answer"]

    def block(self, step: Step, latents: int, sample: str) -> Block:
        """See MonetStage; a grid like the assistant image's."""
        check(step.image is not None, f"{sample}: a thought has no image, which its latents would be taught by.")
        _, grid_thw = self.processor.patches(step.image)
        rows, columns = (grid_thw[0, 1:] // self.processor.merge_size).tolist()
        check(
            max(rows, columns) <= SIDE,
            f"{sample}: an assistant image has {rows} × {columns} tokens; at most {SIDE} × {SIDE} are possible.",
        )
        if self.method.options.grid == "fixed":
            wanted = squarest(latents)
            check(
                (rows, columns) == wanted,
                f"K is {latents}, a grid of {wanted}, but the image processor makes {rows} × {columns} tokens of an "
                "assistant image of that size; choose another K.",
            )
        parallel = self.method.options.generation == "parallel"
        return Block(rows * columns, grid=(rows, columns) if parallel else None)


class Interleaved(DeepLatentStage, WarmUp):
    """Stage 1: next-token prediction with the assistant images in place."""


class Distil(DeepLatentStage):
    """Stage 2: latents in place of the assistant images."""

    student, teacher = "latents", "images"

    def levels(self) -> range:
        last = self.backbone.num_layers
        return range(last if self.recipe.deeplatent.align_levels == "last" else 0, last + 1)

    def forward(
        self, rows: list[Row], rules: list[Rule], families: list[str], teacher: list[Row]
    ) -> dict[str, object]:
        options, distils = self.recipe.deeplatent, self.recipe.deeplatent.align_weight > 0
        wanted, own = (), None
        if distils:
            with torch.no_grad():
                seen = look(self.teacher_backbone, teacher)
            wanted = self.targets(teacher, seen)
            own = Features(seen.prompts, []) if self._same_sight else None
        unrolled = unroll(
            self.backbone,
            self.method,
            rows,
            rule=rules,
            detach_feedback=self.recipe.detach_feedback,
            features=own or look(self.backbone, rows),
            ticks=common_ticks(self, rows),
            levels=self.levels() if distils else (),
        )
        loss, metrics = self.cross_entropy(unrolled, families)
        if distils:
            given = gather(unrolled.levels, kind_class(unrolled.layout.kinds) == LATENT)
            aligned = alignment(wanted, given).mean()
            loss, metrics["alignment"] = loss + options.align_weight * aligned, aligned.item()
        if self.method.options.grid == "dynamic":
            scale = self.scale_loss(rows, unrolled)
            loss, metrics["scale"] = loss + options.scale_weight * scale, scale.item()
        return {"loss": loss, "metrics": metrics}

    @torch.no_grad()
    def targets(self, teacher: list[Row], seen: Features) -> list[torch.Tensor]:
        """Per row (E, N, D), the teacher's states at the tokens of assistant images."""
        none: list[list[torch.Tensor]] = [[] for _ in teacher]
        backbone = self.teacher_backbone
        read = splice(backbone, self.method, teacher, none, rule="everything", levels=self.levels(), features=seen)
        return gather(read.levels, kind_class(read.layout.kinds) == AUX)

    def scale_loss(self, rows: list[Row], unrolled: Unrolled) -> torch.Tensor:
        """Mean over blocks of the cross-entropies of rows and columns; 0 without blocks."""
        grids = [segment.grid for row in rows for segment in row.segments if isinstance(segment, Block)]
        steered = unrolled.states[kind_class(unrolled.layout.kinds) == CONTROL]
        scores = self.method.sizes(steered[:: len(self.method.controls())])
        true = torch.tensor(grids, device=scores.device).view(-1, 2) - 1
        losses = F.cross_entropy(scores.flatten(0, 1), true.flatten(), reduction="none")
        return batch_mean(losses.view(-1, 2).sum(1))
