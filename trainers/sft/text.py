"""Next-token prediction on captions, questions and text chains of thought; one causal forward."""

import itertools
from random import Random

import torch
from torch import nn

from latent_core.backbones import wrap
from latent_core.example import Example
from latent_core.processor import Processor
from trainers.data.segments import Words, segments
from trainers.recipe import Recipe
from trainers.sft.losses import next_words

IGNORE = -100


class TextStage(nn.Module):
    """Mean cross-entropy over the response, the end of turn included; prompt and padding carry no loss."""

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.processor, self.recipe = model, processor, recipe
        self.backbone = wrap(model)
        self.backbone.train_vision(recipe.train_vision)

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, object]:
        prompts, rows = [], []
        for example, _ in items:
            prompt = self.processor(example.images, example.question, self.recipe.system)
            words = [self.processor.encode(part.text) for part in segments(example) if isinstance(part, Words)]
            prompts.append(prompt)
            rows.append((prompt.input_ids, torch.tensor([*itertools.chain(*words), self.processor.eos_id])))
        length = max(len(head) + len(tail) for head, tail in rows)
        ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for i, (head, tail) in enumerate(rows):
            start, end = len(head), len(head) + len(tail)
            ids[i, :start], ids[i, start:end], labels[i, start:end] = head, tail, tail
            mask[i, :end] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "pixel_values": torch.cat([prompt.pixel_values for prompt in prompts]),
            "grid_thw": torch.cat([prompt.grid_thw for prompt in prompts]),
            "families": [example.metadata.get("family", "all") for example, _ in items],
        }

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor,
        grid_thw: torch.Tensor,
        families: list[str],
    ) -> dict[str, object]:
        states = self.backbone.forward_ids(input_ids, attention_mask, pixel_values, grid_thw)[:, :-1]
        targets = labels[:, 1:]
        learned = targets != IGNORE
        logits = self.backbone.logits(states[learned]).float()
        loss, metrics = next_words(logits, targets[learned], learned, families)
        return {"loss": loss, "metrics": metrics}
