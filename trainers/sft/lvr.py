"""LVR, stage 1 (arXiv 2509.24251, section 3.2): a block's slots are the image's own tokens inside a box.

Teacher forcing: the slots' inputs are the merged visual embeddings of the box, and the state before each slot must
match the embedding in it, so that the first is predicted by the opening token. Cross-entropy is on the text, the
opening and the closing token; the slots carry none. The vision tower and its merger are frozen.

Shapes: B sequences, M slots of all sequences, D model width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import Unrolled, encode_sequences, splice
from latent_core.example import Box, Step
from latent_core.methods.lvr import Distance, Lvr, distance
from latent_core.model.slot_types import CLOSE, LATENT, OPEN, slot_class
from latent_core.settings import check
from trainers.data.segments import TextSpan, segments
from trainers.options import check_types
from trainers.parallel import batch_mean
from trainers.planning.lengths import Length, RowSizes
from trainers.stage import Item, Stage, families_of

if TYPE_CHECKING:
    from trainers.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class LvrStageOptions:
    """Options of stage lvr: weights of its losses, and how many slots a block may have."""

    weight: float = 0.1
    """Of the reconstruction of the slots' embeddings beside the cross-entropy."""
    loss: Literal["mse", "mae", "cosine"] = "mse"
    """Between a slot's embedding and the state before it, in float32."""
    slots_max: int = 0
    """Most slots of a block, thinned out above, see `step_slots`; 0: no cap, as released."""
    switch_weight: float = 0.1
    """Of the mode-switch loss, where the method's exit is `mode_switch`."""

    def __post_init__(self) -> None:
        check_types(self, "lvr")


def box_slots(box: Box, grid: tuple[int, int], sample: str) -> list[int]:
    """Image tokens of a box on a grid of (rows, columns), row by row: index row · columns + column.

    columns ⌊x0·W⌋ … ⌈x1·W⌉ − 1, rows ⌊y0·H⌋ … ⌈y1·H⌉ − 1

    Raises ValueError that names the sample for a box that leaves 0…1 or holds no token.
    """
    x0, y0, x1, y1 = box
    check(
        all(0 <= edge <= 1 for edge in box),
        f"{sample}: the box {list(box)} leaves the image; give (x0, y0, x1, y1) as shares from 0 to 1.",
    )
    rows, columns = grid
    across = range(math.floor(x0 * columns), math.ceil(x1 * columns))
    down = range(math.floor(y0 * rows), math.ceil(y1 * rows))
    slots = [row * columns + column for row in down for column in across]
    check(bool(slots), f"{sample}: the box {list(box)} holds no image token; x0 < x1 and y0 < y1 are needed.")
    return slots


def step_slots(step: Step, grid: tuple[int, int], most: int, sample: str) -> list[int]:
    """Image tokens of a step's places, each once, in raster order.

    `most` > 0 keeps so many: of several places each in turn gives one more of its tokens, spread over it. A step
    without a place (a count of none) takes the whole image.
    """
    boxes = step.focus or ((step.region,) if step.region else ((0.0, 0.0, 1.0, 1.0),))
    places = [box_slots(box, grid, sample) for box in boxes]
    every = sorted({slot for place in places for slot in place})
    if not 0 < most < len(every):
        return every
    shares = [most // len(places) + (i < most % len(places)) for i in range(len(places))]
    return sorted({place[k * len(place) // n] for place, n in zip(places, shares, strict=True) for k in range(n)})


def reconstruction(predicted: torch.Tensor, targets: torch.Tensor, kind: Distance) -> torch.Tensor:
    """Mean distance of what states (M, D) feed from the embeddings (M, D) in the slots; 0 without slots. Best 0."""
    return batch_mean(distance(predicted, targets, kind))


def mode_switch(logits: torch.Tensor, closes: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the closing token's raw logit (M,) with whether it comes next (M,) bool; 0 for none."""
    return batch_mean(F.binary_cross_entropy_with_logits(logits.float(), closes.float(), reduction="none"))


class LvrStage(Stage):
    """CE + weight · reconstruction (+ switch_weight · mode switch) over one teacher-forced forward."""

    method: Lvr
    options: LvrStageOptions

    @classmethod
    def trains_vision(cls, recipe: "Recipe") -> bool:
        return False

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        example, grids = row.example, row.grids()
        slots = [
            step_slots(step, grids[step.image_index], recipe.stage_options.slots_max, example.name)
            for step in example.steps
        ]
        return row.length(latents=sum(len(block) + 2 for block in slots))

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        most = recipe.stage_options.slots_max
        return f"Slots were the image tokens of a thought's box{f', at most {most} of them' if most else ''}."

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        rows, slots = [], []
        for example, _ in items:
            prompt = self.processor(example.images, example.question, self.recipe.system)
            grids = [tuple(grid) for grid in (prompt.grid_thw[:, 1:] // self.processor.merge_size).tolist()]
            offsets = [sum(r * c for r, c in grids[:i]) for i in range(len(grids))]
            parts, blocks = [], []
            for part in segments(example):
                if isinstance(part, TextSpan):
                    parts.append(Tokens(tuple(self.processor.encode(part.text))))
                    continue
                step = part.step
                chosen = step_slots(step, grids[step.image_index], self.options.slots_max, example.name)
                blocks.append([offsets[step.image_index] + slot for slot in chosen])
                extra = int(self.method.options.exit == "latent_end")
                parts.append(Block(len(chosen) + extra, learn_close=True))
            parts.append(Tokens((self.processor.eos_id,)))
            rows.append(ForcedSequence(prompt, tuple(parts)))
            slots.append(blocks)
        return {"rows": rows, "slots": slots, "families": families_of(items)}

    def forward(
        self, rows: list[ForcedSequence], slots: list[list[list[int]]], families: list[str]
    ) -> dict[str, object]:
        unrolled = self.run(rows, slots)
        options = self.options
        text_loss, accuracies = self.cross_entropy(unrolled, families)
        latent_loss = reconstruction(*self.pairs(unrolled), options.loss)
        loss = text_loss + options.weight * latent_loss
        metrics = {"ce": text_loss.item(), "reconstruction": latent_loss.item()}
        if self.method.options.exit == "mode_switch":
            switch = mode_switch(*self.switches(unrolled))
            loss, metrics = loss + options.switch_weight * switch, metrics | {"switch": switch.item()}
        return {"loss": loss, "metrics": accuracies | metrics}

    def run(self, rows: Sequence[ForcedSequence], slots: Sequence[Sequence[Sequence[int]]]) -> Unrolled:
        """One forward with the boxes' embeddings in the slots; `slots` are image tokens by sequence and block."""
        features = encode_sequences(self.backbone, rows)
        latents = [
            [self._inputs(image[torch.tensor(block, device=image.device)]) for block in blocks]
            for image, blocks in zip(features.prompts, slots, strict=True)
        ]
        return splice(self.backbone, self.method, rows, latents, features=features)

    def _inputs(self, embeddings: torch.Tensor) -> torch.Tensor:
        if self.method.options.exit != "latent_end":
            return embeddings
        return torch.cat([embeddings, self.method.lvr_latent_end_emb[None].to(embeddings)])

    def pairs(self, unrolled: Unrolled) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions, fed from the states before the slots, and targets, the vectors in the slots, both (M, D)."""
        rows, slots = (slot_class(unrolled.layout.slot_types) == LATENT).nonzero(as_tuple=True)
        latents = [block for blocks in unrolled.latents for block in blocks]
        before = unrolled.states[rows, slots - 1]
        targets = torch.cat(latents) if latents else before
        # the learned vector is trained to be reached, so that its gradient stays; embeddings are frozen anyhow
        return self.method.latents(before), targets

    def switches(self, unrolled: Unrolled) -> tuple[torch.Tensor, torch.Tensor]:
        """The closing token's logit at opening tokens and slots (M,), and whether it comes next (M,)."""
        classes = slot_class(unrolled.layout.slot_types)
        rows, slots = ((classes == OPEN) | (classes == LATENT)).nonzero(as_tuple=True)
        logits = self.backbone.logits(unrolled.states[rows, slots])[:, self.method.close_id]
        return logits, classes[rows, slots + 1] == CLOSE
