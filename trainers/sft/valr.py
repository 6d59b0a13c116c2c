"""VaLR, stage 2 (arXiv 2602.04476, section 3): latents before every reasoning step, aligned with vision encoders.

    L = L_CE + λ · L_REPA,  L_REPA = − mean over segments and patches of cos(ψ(upsample(F)), F_encoder)

F are a block's states after one decoder layer in the middle: those of the positions whose outputs become the latents.
The encoders are frozen and are needed here alone; ψ is thrown away. Stage 1 is stage `text`.

Shapes: M segments (blocks of all sequences), K latents, P patches, D model width, E width of the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Segment, Tokens
from latent_core.decoding.unroll import Unrolled
from latent_core.example import Example, Step
from latent_core.model.slot_types import LATENT, slot_class
from latent_core.settings import Rule, check
from trainers.data.segments import TextSpan, segments
from trainers.options import check_types
from trainers.parallel import batch_mean
from trainers.planning.lengths import Length, RowSizes
from trainers.sft.encoders import OWN, Encoder, OwnTower, load_encoder
from trainers.stage import Item, Stage, drawn, families_of

if TYPE_CHECKING:
    from trainers.recipe import Recipe

Upsampling = Literal["2d", "1d"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValrStageOptions:
    """Options of stage valr: what latents are aligned with, how, and how strongly."""

    weight: float = 0.5
    """λ of the alignment beside the cross-entropy; 0 leaves it out (an ablation of the paper)."""
    encoders: list[str] = field(default_factory=list)
    """Names, folders or Hub ids of vision encoders; `self` is the model's own tower. Several: mean of their losses."""
    layer: int | None = None
    """The decoder layer, 0-based, whose states are aligned; none: layer 12 of 28, as far down in other models."""
    states: Literal["producers", "slots"] = "producers"
    """producers: positions whose outputs become the latents. slots: the latents' own."""
    upsample: Literal["2d", "1d"] = "2d"
    """From K states to the encoder's patches: as a square (K is then a square number) or as a line."""
    projector: int = 2048
    """Width inside ψ."""
    projector_rate: float = 0.0
    """Learning rate of ψ; 0: that of all."""
    blocks: Literal["each_step", "first_step"] = "each_step"
    """Before which steps a block stands."""

    def __post_init__(self) -> None:
        check_types(self, "valr")


def upsample(states: torch.Tensor, grid: tuple[int, int], kind: Upsampling) -> torch.Tensor:
    """(M, P, D) from states (M, K, D) on a grid of P = rows · columns patches, linear, corners not aligned.

    2d: the K states are a square, row by row; raises ValueError where K is no square number. 1d: they are a line.
    """
    segments, count, width = states.shape
    if kind == "1d":
        return F.interpolate(states.mT, size=grid[0] * grid[1], mode="linear", align_corners=False).mT
    side = isqrt(count)
    check(side * side == count, f"K is {count}, no square number; valr.upsample 2d needs one, or take 1d.")
    square = states.mT.reshape(segments, width, side, side)
    return F.interpolate(square, size=grid, mode="bilinear", align_corners=False).flatten(2).mT


def projector(width: int, inner: int, out: int) -> nn.Sequential:
    """ψ, one per encoder: Linear, SiLU, Linear, SiLU, Linear."""
    return nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, out))


def repa(
    states: torch.Tensor,
    targets: Sequence[torch.Tensor],
    grids: Sequence[tuple[int, int]],
    head: nn.Module,
    kind: Upsampling,
) -> torch.Tensor:
    """(M,) − mean cosine over the patches of every segment, in −1…1, best −1.

    states (M, K, D); per segment targets (P, E) and the grid of its patches.
    """
    losses = states.new_zeros(len(states), dtype=torch.float32)
    for grid in set(grids):
        chosen = [i for i, other in enumerate(grids) if other == grid]
        index = torch.tensor(chosen, device=states.device)
        projected = head(upsample(states[index], grid, kind))
        features = torch.stack([targets[i] for i in chosen])
        cosine = F.cosine_similarity(projected.float(), features.float(), dim=-1)
        losses = losses.index_add(0, index, -cosine.mean(1))
    return losses


class ValrStage(Stage):
    """Cross-entropy over text and opening tokens, and the alignment of every block."""

    options: ValrStageOptions
    one_pass = True

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        return row.length(**row.blocks(recipe.latents_max))

    @classmethod
    def uncounted(cls, recipe: "Recipe") -> Sequence[str]:
        return recipe.stage_options.encoders

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        encoders = ", ".join(recipe.stage_options.encoders)
        return f"{drawn(recipe, 'the square numbers from ')} Frozen encoders, in training alone: {encoders}."

    def setup(self) -> None:
        recipe, options, layers = self.recipe, self.options, self.backbone.num_layers
        self.layer = round(12 / 28 * layers) if options.layer is None else options.layer
        check(
            bool(options.encoders) == bool(options.weight),
            f"valr.weight is {options.weight}, valr.encoders {options.encoders}; name an encoder, or set the weight "
            "to 0.",
        )
        check(self.layer < layers, f"valr.layer is {self.layer}; the model's blocks are 0 to {layers - 1}.")
        check(
            not recipe.train_vision or OWN not in options.encoders,
            f"valr.encoders names {OWN!r}, the model's own tower; it must be frozen (train_vision: false).",
        )
        # in a tuple, so that nobody trains, saves or wraps them
        self._encoders: tuple[Encoder, ...] = tuple(
            OwnTower(self.backbone, self.processor) if name == OWN else load_encoder(name) for name in options.encoders
        )
        width = self.backbone.width
        self.heads = nn.ModuleList(projector(width, options.projector, e.width) for e in self._encoders)
        self.sizes = [
            k
            for k in range(recipe.latents_min, recipe.latents_max + 1)
            if options.upsample == "1d" or not self._encoders or isqrt(k) ** 2 == k
        ]
        check(
            bool(self.sizes),
            f"latents_min {recipe.latents_min} to latents_max {recipe.latents_max} holds no square number; "
            "valr.upsample 2d needs one, or take 1d.",
        )

    def rates(self) -> dict[nn.Parameter, float]:
        rate = self.options.projector_rate
        return {parameter: rate for parameter in self.heads.parameters()} if rate else {}

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        latents, rule = self.draw(items[0][1], self.sizes)
        rows, images = [], []
        for example, _ in items:
            response, views = self.respond(example, latents)
            rows.append(
                ForcedSequence(self.processor(example.images, example.question, self.recipe.system), tuple(response))
            )
            images += views
        return {
            "rows": rows,
            "rules": [rule] * len(rows),
            "families": families_of(items),
            "targets": [encoder.prepare(images) for encoder in self._encoders] if images else [],
        }

    def respond(self, example: Example, latents: int) -> tuple[list[Segment], list[Image.Image]]:
        """The response, a block before each step (or the first), and what each block is to see.

        That is the view which its step speaks of. In interleaved data a block stands where an image was inserted, and
        sees it.
        """
        interleaved = example.parts is not None
        response: list[Segment] = []
        views: list[Image.Image] = []

        def add_block(step: Step) -> None:
            if views and self.options.blocks == "first_step":
                return
            response.append(Block(latents))
            inserted = step.image if interleaved else None
            views.append(inserted or example.images[step.image_index])

        steps = iter(example.steps)
        for part in segments(example):
            if isinstance(part, TextSpan):
                # a block goes before the text that leads to its latent step
                if not interleaved and part.role == "text":
                    add_block(next(steps))
                response.append(Tokens(tuple(self.processor.encode(part.text))))
            elif interleaved:
                add_block(part.step)
            elif not part.step.text:
                add_block(next(steps))
        response.append(Tokens((self.processor.eos_id,)))
        return response, views

    def forward(
        self,
        rows: list[ForcedSequence],
        rules: list[Rule],
        families: list[str],
        targets: list[dict[str, torch.Tensor]],
    ) -> dict[str, object]:
        unrolled = self.unroll(rows, rules, levels=(self.layer + 1,))
        loss, accuracies = self.cross_entropy(unrolled, families)
        metrics = {"ce": loss.item(), **accuracies}
        if self.options.weight:
            aligned = self.alignment(unrolled, targets)
            loss = loss + self.options.weight * aligned
            metrics["repa"] = aligned.item()
        return {"loss": loss, "metrics": metrics}

    def alignment(self, unrolled: Unrolled, targets: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """L_REPA, the mean over encoders; 0 for sequences without segments, in which ψ has nothing to learn."""
        states = self.segments(unrolled)
        # a process without segments takes part in the mean all the same
        zero = sum(p.float().sum() for p in self.heads.parameters()) * 0 + unrolled.levels[0].float().sum() * 0
        losses = []
        for number, head in enumerate(self.heads):
            per_segment = states.new_zeros(0, dtype=torch.float32)
            if len(states):
                features, grids = self._encoders[number].features(targets[number])
                per_segment = repa(states, features, grids, head, self.options.upsample)
            losses.append(batch_mean(per_segment))
        return torch.stack(losses).mean() + zero if losses else zero

    def segments(self, unrolled: Unrolled) -> torch.Tensor:
        """(M, K, D) states of every block after the aligned decoder layer, at the producers or at the slots."""
        is_latent = slot_class(unrolled.layout.slot_types) == LATENT
        rows, slots = is_latent.nonzero(as_tuple=True)
        if self.options.states == "producers":
            slots = slots - 1  # the slot before a latent is where it came from
        blocks = sum(len(blocks) for blocks in unrolled.latents)
        level = unrolled.levels[0]
        return (
            level[rows, slots].view(blocks, -1, level.shape[-1]) if blocks else level.new_zeros(0, 1, level.shape[-1])
        )
