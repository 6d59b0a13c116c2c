"""Next-token prediction on captions, questions and text chains of thought; one causal forward."""

from collections.abc import Sequence

import torch

from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Tokens
from latent_core.decoding.unroll import splice
from trainers.data.segments import TextSpan, segments
from trainers.stage import Item, Stage, families_of


class TextStage(Stage):
    """Mean cross-entropy over the response, the end of turn included; prompt and padding carry no loss."""

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        rows = []
        for example, _ in items:
            text = [part.text for part in segments(example) if isinstance(part, TextSpan)]
            parts = [Tokens(tuple(self.processor.encode(part))) for part in text]
            prompt = self.processor(example.images, example.question, self.recipe.system)
            rows.append(ForcedSequence(prompt, (*parts, Tokens((self.processor.eos_id,)))))
        return {"rows": rows, "families": families_of(items)}

    def forward(self, rows: list[ForcedSequence], families: list[str]) -> dict[str, torch.Tensor | dict[str, float]]:
        spliced = splice(self.backbone, self.method, rows, [[] for _ in rows], rule="causal")
        loss, metrics = self.cross_entropy(spliced, families)
        return {"loss": loss, "metrics": metrics}
