"""Next-token prediction on captions, questions and text chains of thought; one causal forward."""

import itertools
from collections.abc import Iterable
from random import Random

import torch
import torch.nn.functional as F
from torch import nn

from latent_core.example import Example
from latent_core.processor import Processor
from trainers.data.segments import Words, segments
from trainers.parallel import batch_mean
from trainers.recipe import Recipe

IGNORE = -100


class TextStage(nn.Module):
    """Mean cross-entropy over the response, the end of turn included; prompt and padding carry no loss."""

    def __init__(self, model: nn.Module, processor: Processor, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        model.model.visual.requires_grad_(recipe.train_vision)

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, object]:
        prompts, rows = [], []
        for example, _ in items:
            prompt = self.processor(example.images, example.question)
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
        # without mm_token_type_ids the positions would silently be one-dimensional
        states = self.model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_grid_thw=grid_thw,
            mm_token_type_ids=(input_ids == self.processor.image_token_id).int(),
        ).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        learned = targets != IGNORE
        logits = self.model.lm_head(states[learned]).float()
        right = torch.ones_like(targets, dtype=torch.bool)
        right[learned] = logits.argmax(-1) == targets[learned]
        loss = batch_mean(F.cross_entropy(logits, targets[learned], reduction="none"))
        return {"loss": loss, "metrics": exact(families, right.all(1).tolist())}


def exact(families: Iterable[str], right: Iterable[bool]) -> dict[str, float]:
    """accuracy_<family>: share of rows of which every learned token was the most likely one.

    These are the rows that greedy decoding would reproduce word for word. The answer's tokens alone would not do: with
    the right words before it given, the answer can be copied.
    """
    found: dict[str, list[bool]] = {}
    for family, value in zip(families, right, strict=True):
        found.setdefault(family, []).append(value)
    return {f"accuracy_{family}": sum(values) / len(values) for family, values in found.items()}
