"""The simplest latent recipe: K fed-back states per latent step, end to end, under an attention rule.

Cross-entropy on the text around the blocks reaches the latents through what later text attends to; nothing else
supervises them. K is drawn per batch, so that K can be varied when decoding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.settings import Rule
from trainers.data.segments import TextSpan, segments
from trainers.planning.lengths import Length, RowSizes
from trainers.stage import Item, Stage, drawn, families_of

if TYPE_CHECKING:
    from trainers.recipe import Recipe


class LatentStage(Stage):
    """Cross-entropy over text and opening tokens of sequences whose latent steps are unrolled blocks."""

    one_pass = True

    @classmethod
    def length(cls, recipe: "Recipe", row: RowSizes) -> Length:
        return row.length(**row.blocks(recipe.latents_max))

    @classmethod
    def card(cls, recipe: "Recipe") -> str:
        return drawn(recipe)

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        latents, rule = self.draw(items[0][1])
        rows = []
        for example, _ in items:
            parts = [
                Tokens(tuple(self.processor.encode(part.text))) if isinstance(part, TextSpan) else Block(latents)
                for part in segments(example)
            ]
            parts.append(Tokens((self.processor.eos_id,)))
            rows.append(
                ForcedSequence(self.processor(example.images, example.question, self.recipe.system), tuple(parts))
            )
        return {"rows": rows, "rules": [rule] * len(rows), "families": families_of(items)}

    def forward(self, rows: list[ForcedSequence], rules: list[Rule], families: list[str]) -> dict[str, object]:
        loss, metrics = self.cross_entropy(self.unroll(rows, rules), families)
        return {"loss": loss, "metrics": metrics}
