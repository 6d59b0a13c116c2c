"""Monet's three supervised stages (arXiv 2511.21395, section 3), truly batched.

    1 warm-up       text · image · observation             cross-entropy
    2 observations  text · image · latents · observation   cross-entropy; alignment with a teacher that saw the image,
                                                           whose gradient reaches parameters through the latents only
    3 latents       text · latents · observation           cross-entropy; alignment with stage 2's latents

The teacher is frozen and its states are computed on the fly. Where paper and released code differ there is an option,
see MonetStageOptions. Sequences may differ in the number, places and lengths of their blocks.

Shapes: B sequences, L slots, E levels (embeddings, every decoder layer, the last one after the final norm), D model
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from latent_core.decoding.layout import ForcedSequence, Layout
from latent_core.decoding.sequence import Block
from latent_core.decoding.unroll import Features, Unrolled, encode_sequences, splice, unroll
from latent_core.example import Example
from latent_core.model.attention import PLAIN, Flow
from latent_core.model.slot_types import LATENT, slot_class
from latent_core.settings import Rule
from trainers.data.segments import segments
from trainers.options import check_types
from trainers.planning.lengths import Length, RowSizes
from trainers.sft.interleaved import Part, collate, gather, lay_row, levels, mean_of_rows
from trainers.sft.losses import alignment
from trainers.stage import Item, Stage, drawn

if TYPE_CHECKING:
    from trainers.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class MonetStageOptions:
    """Options of Monet's stages: weights of the losses, and what paper and released code decide differently."""

    observation_factor: float = 1.0
    """Weight of an observation's tokens in the cross-entropy; the paper takes 2 in stage 1 and 4 later."""
    align_weight: float = 2.0
    """α of stage 2, β of stage 3; 0 leaves the alignment out (an ablation of the paper)."""
    align_axis: Literal["hidden", "token"] = "hidden"
    """What the cosine runs over: the model's width as in the equations, or the tokens as in the released code."""
    align_levels: Literal["all", "last"] = "all"
    """Which levels of hidden states are aligned; the paper's ablation keeps the last."""
    latent_only: bool = True
    """Whether stage 2's alignment reaches parameters through the latents alone (False: an ablation)."""
    surrogate_weight: float = 1.0
    """Factor on stage 2's surrogate; the released scripts multiply by 2 once more."""
    aux_image: bool = True
    """Whether stage 2's student is shown the auxiliary image (False: an ablation)."""
    aux_readers: Literal["latents", "open+latents"] = "latents"
    """Who sees it: the block's latents, or its opening token too, whose state is latent 1 under `start_fed`."""
    aux_self: bool = True
    """Whether its tokens see each other; released: False."""
    latent_pass_mask: Literal["same", "causal"] = "same"
    """Mask of the pass that generates stage 2's latents: the losses' own; released: none for images and thoughts."""
    target_mask: Literal["flow", "none"] = "flow"
    """Mask of the pass that makes stage 3's targets; the released script builds it and does not pass it."""
    observation_tags: Literal["strip", "context"] = "strip"
    """context: `<observation>` and `</observation>` stand around observations, unlearned, as released. The closing
    token of a block then never learns what follows it."""

    def __post_init__(self) -> None:
        check_types(self, "monet")


class WarmUp(Stage):
    """Monet's stage 1: next-token prediction with the auxiliary images in place, plain causal."""

    options: MonetStageOptions
    student: Part = "images"

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        return row.length(shown=True)

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        return collate(self, items, row, self.student)

    def forward(self, rows: list[ForcedSequence], rules: list[Rule], families: list[str]) -> dict[str, object]:
        spliced = splice(self.backbone, self.method, rows, [[] for _ in rows], rule="causal")
        loss, metrics = weighted_cross_entropy(self, spliced, families)
        return {"loss": loss, "metrics": metrics}


class AlignObservations(Stage):
    """Monet's stage 2: the states at observations, aligned with those of a teacher that sees the images."""

    options: MonetStageOptions
    student: Part = "both"
    teacher_passes = 1

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        shown = recipe.stage_options.aux_image
        return row.length(**row.blocks(recipe.latents_max), aligned=row.text["observation"], shown=shown)

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        return drawn(recipe)

    def setup(self) -> None:
        if not self.options.aux_image:
            self.student = "latents"

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        return collate(self, items, row, self.student, "images")

    def forward(
        self, rows: list[ForcedSequence], rules: list[Rule], families: list[str], teacher: list[ForcedSequence]
    ) -> dict[str, object]:
        loss, aligned, latents, metrics = distil(self, rows, rules, families, teacher)
        if self.options.align_weight:
            loss = loss + self.guide(self.options.align_weight * aligned, latents)
        return {"loss": loss, "metrics": metrics}

    @torch.no_grad()
    def targets(
        self, teacher: list[ForcedSequence], rules: list[Rule], features: Features | None = None
    ) -> list[torch.Tensor]:
        """Per sequence (E, N, D), the teacher's states at the tokens of observations, the auxiliary images in view."""
        spliced = splice(
            self.teacher,
            self.method,
            teacher,
            [[] for _ in teacher],
            rule="causal",
            levels=levels(self.backbone, self.options.align_levels),
            features=features,
        )
        return gather(spliced.levels, self.aligned(spliced.layout))

    def aligned(self, layout: Layout) -> torch.Tensor:
        """(B, L) bool, the slots that are aligned."""
        return layout.observations

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


class AlignLatents(Stage):
    """Monet's stage 3: latents aligned with stage 2's, without the auxiliary images; ordinary backpropagation."""

    options: MonetStageOptions
    student: Part = "latents"
    teacher_passes = 2

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        blocks = row.blocks(recipe.latents_max)
        return row.length(**blocks, aligned=blocks["latents"])

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        return drawn(recipe)

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        return collate(self, items, row, self.student, "both")

    def forward(
        self, rows: list[ForcedSequence], rules: list[Rule], families: list[str], teacher: list[ForcedSequence]
    ) -> dict[str, object]:
        loss, aligned, _, metrics = distil(self, rows, rules, families, teacher)
        if self.options.align_weight:
            loss = loss + self.options.align_weight * aligned
        return {"loss": loss, "metrics": metrics}

    @torch.no_grad()
    def targets(
        self, teacher: list[ForcedSequence], rules: list[Rule], features: Features | None = None
    ) -> list[torch.Tensor]:
        """Per sequence (E, N, D), the latents of stage 2's model at every level, the auxiliary images in view."""
        masked = self.options.target_mask == "flow"
        unrolled = unroll(
            self.teacher,
            self.method,
            [until_last_block(row) for row in teacher],
            rule=rules,
            flow=flow(self.options, latent_pass=True) if masked else PLAIN,
            features=features,
        )
        spliced = splice(
            self.teacher,
            self.method,
            teacher,
            unrolled.latents,
            rule=rules,
            flow=flow(self.options) if masked else PLAIN,
            levels=levels(self.backbone, self.options.align_levels),
            features=features,
        )
        return gather(spliced.levels, self.aligned(spliced.layout))

    def aligned(self, layout: Layout) -> torch.Tensor:
        """(B, L) bool, the latents' slots."""
        return slot_class(layout.slot_types) == LATENT


def row(
    stage: WarmUp | AlignObservations | AlignLatents, example: Example, part: Part, latents: int
) -> ForcedSequence:
    """An example as prompt and response; every latent step has K latents."""
    tags, observed = stage.options.observation_tags == "context", stage.student != "latents"
    # stage 3's spans leave out the opening tag, as released
    return lay_row(
        stage, example, segments(example), part, lambda step: Block(latents), tags=tags, tag_observed=observed
    )


def weighted_cross_entropy(
    stage: Stage, unrolled: Unrolled, families: Sequence[str]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean of the sequences' cross-entropies, observations weighted, and accuracy_<family>."""
    factor = stage.options.observation_factor
    return mean_of_rows(stage.backbone, unrolled, families, observation=factor)


def flow(options: MonetStageOptions, *, latent_pass: bool = False) -> Flow:
    """The mask of auxiliary images, in the pass that generates latents or in the one that takes the losses."""
    free = latent_pass and options.latent_pass_mask == "causal"
    return Flow(options.aux_readers, options.aux_self, free_latents=free)


def distil(
    stage: AlignObservations | AlignLatents,
    rows: list[ForcedSequence],
    rules: list[Rule],
    families: list[str],
    teacher: list[ForcedSequence],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float]]:
    """Cross-entropy, alignment with the teacher's states, the latents (N, D), metrics: what stages 2 and 3 share."""
    with torch.no_grad():
        teacher_features = encode_sequences(stage.teacher, teacher)
    targets = stage.targets(teacher, rules, teacher_features)
    # the teacher's sequences show all images that the student's do
    auxiliary = teacher_features.auxiliary_images if any(row.auxiliary_images for row in rows) else []
    if stage.same_sight:
        features = Features(teacher_features.prompts, auxiliary)
    else:
        features = encode_sequences(stage.backbone, rows)
    spliced, latents = think(stage, rows, rules, features)
    loss, metrics = weighted_cross_entropy(stage, spliced, families)
    student_states = gather(spliced.levels, stage.aligned(spliced.layout))
    aligned = alignment(targets, student_states, stage.options.align_axis).mean()
    return loss, aligned, latents, metrics | {"alignment": aligned.item()}


def think(
    stage: Stage, rows: list[ForcedSequence], rules: list[Rule], features: Features | None = None
) -> tuple[Unrolled, torch.Tensor]:
    """Generates the latents, then one pass with them in their slots; also the latents (N, D), stacked."""
    features, prefixes = features or encode_sequences(stage.backbone, rows), [until_last_block(row) for row in rows]
    unrolled = stage.unroll(prefixes, rules, flow=flow(stage.options, latent_pass=True), features=features)
    stacked = torch.cat([block for blocks in unrolled.latents for block in blocks])
    spliced = splice(
        stage.backbone,
        stage.method,
        rows,
        unstack(stacked, unrolled.latents),
        rule=rules,
        flow=flow(stage.options),
        levels=levels(stage.backbone, stage.options.align_levels),
        features=features,
    )
    return spliced, stacked


def until_last_block(row: ForcedSequence) -> ForcedSequence:
    """The sequence without the text after its last block, on which no latent depends."""
    last = max((i for i, segment in enumerate(row.segments) if isinstance(segment, Block)), default=-1)
    return ForcedSequence(row.prompt, row.segments[: last + 1])


def unstack(latents: torch.Tensor, like: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """(N, D) back to sequences and blocks of the lengths of `like`."""
    blocks = iter(latents.split([len(block) for blocks in like for block in blocks]))
    return [[next(blocks) for _ in row] for row in like]
