"""Monet's three supervised stages (arXiv 2511.21395, section 3), truly batched.

    1 warm-up       text · image · observation             cross-entropy
    2 observations  text · image · latents · observation   cross-entropy; alignment with a teacher that saw the image,
                                                           whose gradient reaches parameters through the latents only
    3 latents       text · latents · observation           cross-entropy; alignment with stage 2's latents

The teacher is frozen and its states are computed on the fly. Where paper and released code differ there is an option,
see MonetOptions. Rows may differ in the number, places and lengths of their blocks.

Shapes: B rows, L slots, E levels (embeddings, every decoder block, the last one after the final norm), D model width.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

import torch
from torch import nn

from latent_core.attention import PLAIN, Flow
from latent_core.backbone import Backbone
from latent_core.backbones import wrap
from latent_core.drive import Block, Picture, Segment, Tokens
from latent_core.example import Example, Step, Thought, Words
from latent_core.kinds import LATENT, kind_class
from latent_core.layout import NO_LABEL, Layout, Row
from latent_core.methods import build_method
from latent_core.processor import Processor
from latent_core.settings import Rule
from latent_core.unroll import Features, Unrolled, look, splice, unroll
from trainers.data.caps import shrink
from trainers.data.segments import segments
from trainers.parallel import common_ticks
from trainers.recipe import Recipe
from trainers.sft.losses import alignment, exact, row_cross_entropy

Part = Literal["images", "latents", "both"]
"""What stands for a visual thought in a row."""


class MonetStage(nn.Module):
    """What the stages share: rows, the weighted cross-entropy, the frozen teacher."""

    student: Part
    teacher: Part | None = None
    sharded = False
    """Set by the trainer where parameters are spread over processes."""

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.processor, self.recipe, self.options = model, processor, recipe, recipe.monet
        self.backbone = wrap(model)
        self.method = build_method(recipe.method_config(), processor.token_id)
        self._teacher: tuple[Backbone, ...] = ()  # in a tuple, so that nobody trains, saves or wraps it
        self._same_sight = False  # whether student and teacher see the same in an image, now and later
        self.backbone.train_vision(recipe.train_vision)

    def learn_from(self, model: nn.Module) -> None:
        """Sets the frozen teacher."""
        self._teacher = (wrap(model.requires_grad_(False).eval()),)
        frozen = not self.recipe.train_vision and not self.recipe.caps.teacher_total
        self._same_sight = frozen and self.backbone.vision_is_same(self._teacher[0])

    @property
    def teacher_backbone(self) -> Backbone:
        """The teacher, on the student's device. Raises ValueError where the recipe names none."""
        if not self._teacher:
            raise ValueError(f"Stage {self.recipe.stage} has no teacher; set `teacher` to a recipe or a checkpoint.")
        (backbone,) = self._teacher
        return backbone if backbone.device == self.backbone.device else backbone.to(self.backbone.device)

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, object]:
        """Rows of student and teacher, and each row's attention rule."""
        recipe, rng = self.recipe, items[0][1]
        # one K for the batch: rows whose blocks end together wait for nobody
        latents = rng.randint(recipe.latents_min, recipe.latents_max)
        rule = "everything" if rng.random() < recipe.everything_share else recipe.rule
        caps, side = recipe.caps, self.processor.token_side
        own = [shrink(example, caps.total, caps.each, side=side) if caps.total else example for example, _ in items]
        batch: dict[str, object] = {
            "rows": [self.row(example, self.student, latents) for example in own],
            "rules": [rule] * len(items),
            "families": [example.metadata.get("family", "all") for example, _ in items],
        }
        if self.teacher is not None:
            if caps.teacher_total:
                own = [shrink(example, caps.teacher_total, caps.teacher_each, side=side) for example, _ in items]
            batch["teacher"] = [self.row(example, self.teacher, latents) for example in own]
        return batch

    def row(self, example: Example, part: Part, latents: int) -> Row:
        """An example as prompt and response."""
        tags = self.options.observation_tags == "context"
        response: list[Segment] = []
        for piece in self.pieces(example):
            if isinstance(piece, Thought):
                if part != "latents" and piece.step.image is not None:
                    response.append(Picture(*self.processor.patches(piece.step.image)))
                if part != "images":
                    response.append(self.block(piece.step, latents, example.name))
                continue
            ids, observed = tuple(self.processor.encode(piece.text)), piece.role == "observation"
            if observed and tags:
                first, last = (self.processor.token_id(tag) for tag in ("<observation>", "</observation>"))
                # stage 3's spans leave out the opening tag, as released
                response.append(Tokens((first,), learn=False, observation=self.student != "latents"))
                response += [Tokens(ids, observation=True), Tokens((last,), learn=False)]
            else:
                response.append(Tokens(ids, observation=observed))
        response.append(Tokens((self.processor.eos_id,)))
        return Row(self.processor(example.images, example.question, self.recipe.system), tuple(response))

    def pieces(self, example: Example) -> list[Words | Thought]:
        """The response in order."""
        return segments(example)

    def block(self, step: Step, latents: int, sample: str) -> Block:
        """The block of a thought, K latents."""
        return Block(latents)

    def cross_entropy(self, unrolled: Unrolled, families: list[str]) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean of the rows' weighted cross-entropies, and accuracy_<family>."""
        states, targets = unrolled.learned()
        logits = self.backbone.logits(states).float()
        learned = unrolled.layout.labels != NO_LABEL
        rows = learned.nonzero()[:, 0]
        weights = unrolled.layout.weights(self.options.observation_factor)
        losses = row_cross_entropy(logits, targets, weights, rows, len(learned))
        return losses.mean(), exact(logits, targets, learned, families)

    def flow(self, *, latent_pass: bool = False) -> Flow:
        """Who may look at auxiliary images, in the pass that generates latents or in the one that takes the losses."""
        options = self.options
        free = latent_pass and options.latent_pass_mask == "causal"
        return Flow(options.aux_readers, options.aux_self, free_thoughts=free)

    def levels(self) -> range:
        """The levels that are aligned."""
        last = self.backbone.num_layers
        return range(last if self.options.align_levels == "last" else 0, last + 1)


class WarmUp(MonetStage):
    """Stage 1: next-token prediction with the auxiliary images in place, plain causal."""

    student = "images"

    def forward(self, rows: list[Row], rules: list[Rule], families: list[str]) -> dict[str, object]:
        spliced = splice(self.backbone, self.method, rows, [[] for _ in rows], rule="everything")
        loss, metrics = self.cross_entropy(spliced, families)
        return {"loss": loss, "metrics": metrics}


class AlignObservations(MonetStage):
    """Stage 2: latents that make the student's observations look as if it had seen the image."""

    student, teacher = "both", "images"

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__(model, processor, recipe)
        if not self.options.aux_image:
            self.student = "latents"

    def forward(
        self, rows: list[Row], rules: list[Rule], families: list[str], teacher: list[Row]
    ) -> dict[str, object]:
        with torch.no_grad():
            seen = look(self.teacher_backbone, teacher)
        wanted = self.targets(teacher, rules, seen)
        # the teacher's rows show all images that the student's do
        shown = seen.pictures if any(row.pictures for row in rows) else []
        own = Features(seen.prompts, shown) if self._same_sight else look(self.backbone, rows)
        spliced, latents = self.think(rows, rules, own)
        loss, metrics = self.cross_entropy(spliced, families)
        given = gather(spliced.levels, self.aligned(spliced.layout))
        aligned = alignment(wanted, given, self.options.align_axis).mean()
        metrics["alignment"] = aligned.item()
        if self.options.align_weight:
            loss = loss + self.guide(self.options.align_weight * aligned, latents)
        return {"loss": loss, "metrics": metrics}

    @torch.no_grad()
    def targets(self, teacher: list[Row], rules: list[Rule], seen: Features | None = None) -> list[torch.Tensor]:
        """Per row (E, N, D), the teacher's states at the words of observations, the auxiliary images in view."""
        read = splice(
            self.teacher_backbone,
            self.method,
            teacher,
            [[] for _ in teacher],
            rule="everything",
            levels=self.levels(),
            features=seen,
        )
        return gather(read.levels, self.aligned(read.layout))

    def aligned(self, layout: Layout) -> torch.Tensor:
        """(B, L) bool, the slots that are aligned."""
        return layout.observations

    def think(
        self, rows: list[Row], rules: list[Rule], features: Features | None = None
    ) -> tuple[Unrolled, torch.Tensor]:
        """Generates the latents, then one pass with them in their slots; also the latents (N, D), stacked."""
        features, heads = features or look(self.backbone, rows), [until_last_block(row) for row in rows]
        unrolled = unroll(
            self.backbone,
            self.method,
            heads,
            rule=rules,
            flow=self.flow(latent_pass=True),
            detach_feedback=self.recipe.detach_feedback,
            features=features,
            ticks=common_ticks(self, heads),
        )
        stacked = torch.cat([block for blocks in unrolled.latents for block in blocks])
        spliced = splice(
            self.backbone,
            self.method,
            rows,
            unstack(stacked, unrolled.latents),
            rule=rules,
            flow=self.flow(),
            levels=self.levels(),
            features=features,
        )
        return spliced, stacked

    def guide(self, loss: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The alignment loss, or under latent-only backpropagation its surrogate Σ⟨Z, stopgrad(∂loss/∂Z)⟩.

        The gradient is taken at the stacked latents of the pass that takes the loss. At the states of the pass that
        generated them it would count z_t → z_{t+1} twice.
        """
        if not self.options.latent_only:
            return loss
        if not torch.is_grad_enabled():  # evaluation: there is nothing to guide
            return torch.zeros_like(loss)
        (gradient,) = torch.autograd.grad(loss, latents, retain_graph=True)
        return self.options.surrogate_weight * (latents * gradient.detach()).sum()


class AlignLatents(AlignObservations):
    """Stage 3: the same latents without the auxiliary images; ordinary backpropagation."""

    student, teacher = "latents", "both"

    @torch.no_grad()
    def targets(self, teacher: list[Row], rules: list[Rule], seen: Features | None = None) -> list[torch.Tensor]:
        """Per row (E, N, D), the latents of stage 2's model at every level, the auxiliary images in view."""
        masked = self.options.target_mask == "flow"
        made = unroll(
            self.teacher_backbone,
            self.method,
            [until_last_block(row) for row in teacher],
            rule=rules,
            flow=self.flow(latent_pass=True) if masked else PLAIN,
            features=seen,
        )
        read = splice(
            self.teacher_backbone,
            self.method,
            teacher,
            made.latents,
            rule=rules,
            flow=self.flow() if masked else PLAIN,
            levels=self.levels(),
            features=seen,
        )
        return gather(read.levels, self.aligned(read.layout))

    def aligned(self, layout: Layout) -> torch.Tensor:
        """(B, L) bool, the latents' slots."""
        return kind_class(layout.kinds) == LATENT

    def guide(self, loss: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The loss as it is."""
        return loss


def until_last_block(row: Row) -> Row:
    """The row without the words after its last block, on which no latent depends."""
    last = max((i for i, segment in enumerate(row.segments) if isinstance(segment, Block)), default=-1)
    return Row(row.prompt, row.segments[: last + 1])


def gather(levels: Sequence[torch.Tensor], chosen: torch.Tensor) -> list[torch.Tensor]:
    """Per row (E, N, D), the slots `chosen` (B, L) of levels (B, L, D) each."""
    stacked = torch.stack(list(levels), 1)
    return [row[:, mask] for row, mask in zip(stacked, chosen, strict=True)]


def unstack(latents: torch.Tensor, like: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """(N, D) back to rows and blocks of the lengths of `like`."""
    blocks = iter(latents.split([len(block) for blocks in like for block in blocks]))
    return [[next(blocks) for _ in row] for row in like]
