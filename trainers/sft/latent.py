"""The simplest latent recipe: K fed-back states per thought, end to end, under an attention rule.

Cross-entropy on the words around the blocks reaches the latents through what later text attends to; nothing else
supervises them. K is drawn per sample, so that K can be varied when decoding.
"""

from random import Random

import torch.nn.functional as F
from torch import nn

from latent_core.backbone import Backbone
from latent_core.drive import Block, Tokens
from latent_core.example import Example
from latent_core.methods import build_method
from latent_core.processor import Processor
from latent_core.unroll import Row, unroll
from trainers.data.segments import Words, segments
from trainers.recipe import Recipe
from trainers.sft.text import by_family


class LatentStage(nn.Module):
    """Cross-entropy over text and opening tokens of rows whose thoughts are unrolled latent blocks."""

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.processor, self.recipe = model, processor, recipe
        self.backbone = Backbone(model)
        self.method = build_method(recipe.method_config(), processor.token_id)
        model.model.visual.requires_grad_(recipe.train_vision)

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, object]:
        rows, rules, answer_lengths = [], [], []
        for example, rng in items:
            latents = rng.randint(self.recipe.latents_min, self.recipe.latents_max)
            parts = []
            for part in segments(example):
                if isinstance(part, Words):
                    ids = self.processor.encode(part.text)
                    parts.append(Tokens(tuple(ids)))
                    length = len(ids)
                else:
                    parts.append(Block(latents))
            parts.append(Tokens((self.processor.eos_id,)))
            rows.append(Row(self.processor(example.images, example.question), tuple(parts)))
            rules.append("everything" if rng.random() < self.recipe.everything_share else self.recipe.rule)
            answer_lengths.append(length)
        families = [example.metadata.get("family", "all") for example, _ in items]
        return {"rows": rows, "rules": rules, "answer_lengths": answer_lengths, "families": families}

    def forward(
        self, rows: list[Row], rules: list[str], answer_lengths: list[int], families: list[str]
    ) -> dict[str, object]:
        unrolled = unroll(self.backbone, self.method, rows, rule=rules, detach_feedback=self.recipe.detach_feedback)
        states, targets = unrolled.learned()
        logits = self.backbone.logits(states).float()
        right = (logits.argmax(-1) == targets).tolist()
        answers, start = [], 0
        for row, length in zip(rows, answer_lengths, strict=True):
            start += sum(1 if isinstance(part, Block) else len(part.ids) for part in row.segments)
            answers.append(all(right[start - 1 - length : start - 1]))  # the end of turn comes last
        return {"loss": F.cross_entropy(logits, targets), "metrics": by_family(families, answers)}
