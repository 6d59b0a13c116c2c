"""The simplest latent recipe: K fed-back states per thought, end to end, under an attention rule.

Cross-entropy on the words around the blocks reaches the latents through what later text attends to; nothing else
supervises them. K is drawn per batch, so that K can be varied when decoding.
"""

from collections.abc import Sequence
from random import Random

from torch import nn

from latent_core.backbones import wrap
from latent_core.drive import Block, Tokens
from latent_core.example import Example
from latent_core.layout import NO_LABEL, Row
from latent_core.methods import build_method
from latent_core.processor import Processor
from latent_core.unroll import Unrolled, unroll
from trainers.data.segments import Words, segments
from trainers.parallel import common_ticks
from trainers.recipe import Recipe
from trainers.sft.losses import next_words


class LatentStage(nn.Module):
    """Cross-entropy over text and opening tokens of rows whose thoughts are unrolled latent blocks."""

    sharded = False
    """Set by the trainer where parameters are spread over processes."""

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.processor, self.recipe = model, processor, recipe
        self.backbone = wrap(model)
        self.method = build_method(recipe.method_config(), processor.token_id)
        self.backbone.train_vision(recipe.train_vision)

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, object]:
        # one K for the batch: rows whose blocks end together wait for nobody
        rng = items[0][1]
        latents = rng.randint(self.recipe.latents_min, self.recipe.latents_max)
        rule = "everything" if rng.random() < self.recipe.everything_share else self.recipe.rule
        rows = []
        for example, _ in items:
            parts = [
                Tokens(tuple(self.processor.encode(part.text))) if isinstance(part, Words) else Block(latents)
                for part in segments(example)
            ]
            parts.append(Tokens((self.processor.eos_id,)))
            rows.append(Row(self.processor(example.images, example.question, self.recipe.system), tuple(parts)))
        families = [example.metadata.get("family", "all") for example, _ in items]
        return {"rows": rows, "rules": [rule] * len(rows), "families": families}

    def unroll(self, rows: list[Row], rules: list[str], levels: Sequence[int] = ()) -> Unrolled:
        """The rows with their latents generated on the way, with gradients."""
        return unroll(
            self.backbone,
            self.method,
            rows,
            rule=rules,
            detach_feedback=self.recipe.detach_feedback,
            ticks=common_ticks(self, rows),
            levels=levels,
        )

    def forward(self, rows: list[Row], rules: list[str], families: list[str]) -> dict[str, object]:
        unrolled = self.unroll(rows, rules)
        states, targets = unrolled.learned()
        logits = self.backbone.logits(states).float()
        loss, metrics = next_words(logits, targets, unrolled.layout.labels != NO_LABEL, families)
        return {"loss": loss, "metrics": metrics}
