"""Vision warm-up: a linear head reads colour, shape, mark, line and place off every merged image token.

Without it, captions and questions stay at chance on marks for a thousand steps: the language loss alone teaches a
tower from scratch very slowly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from latent_core.glyphs.scene import COLOURS, MARKS, PLACES, SHAPES, SIZE, Scene
from trainers.stage import Item, Stage

CLASSES = {
    "colour": ("", *COLOURS),
    "shape": ("", *SHAPES),
    "mark": ("", *MARKS),
    "line": ("", "line"),
    "place": sum(PLACES, ()),
}
"""Each label's values; an empty one means that there is none."""
WEIGHTS = {"colour": 1.0, "shape": 1.0, "mark": 1.0, "line": 1.0, "place": 0.2}
"""Weight of each label's loss. Every token has a place, so that at full weight it takes half of the features'
variance, which searching by colour and shape then has to look past."""

LABELS = [len(values) for values in CLASSES.values()]
"""Scores of each label."""


def label_loss(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Weighted sum of the labels' cross-entropies, and the scores apart; scores (T, ΣLABELS), labels (T, 5)."""
    apart = scores.split(LABELS, dim=-1)
    losses = [
        weight * F.cross_entropy(score.float(), labels[:, i])
        for i, (score, weight) in enumerate(zip(apart, WEIGHTS.values(), strict=True))
    ]
    return torch.stack(losses).sum(), list(apart)


def token_labels(scene: Scene, rows: int, columns: int) -> torch.Tensor:
    """(rows · columns, 5) int64: colour, shape, mark of the thing in the token's cell; line or not; which cell."""
    labels = torch.zeros(rows, columns, len(CLASSES), dtype=torch.int64)
    for row in range(rows):
        for column in range(columns):
            cell = row * 3 // rows, column * 3 // columns
            labels[row, column, 4] = 3 * cell[0] + cell[1]
            thing = scene.at(*cell)
            if thing:
                names = (thing.colour, thing.shape, thing.mark)
                for i, (name, values) in enumerate(zip(names, CLASSES.values(), strict=False)):
                    labels[row, column, i] = values.index(name)
    for line in scene.lines:
        for x, y in line.points:
            labels[int(y * rows / SIZE), int(x * columns / SIZE), 3] = 1
    return labels.flatten(0, 1)


class VisionStage(Stage):
    """Weighted sum of the labels' cross-entropies, of which the vision tower and its head alone learn."""

    def setup(self) -> None:
        self.head = nn.Linear(self.backbone.width, sum(LABELS))
        self.model.requires_grad_(False)
        self.backbone.train_vision(True)

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        prompts = [self.processor(example.images, "") for example, _ in items]
        labels = [
            token_labels(example.metadata["scene"], *self.processor.grid(prompt.images[0]))
            for (example, _), prompt in zip(items, prompts, strict=True)
        ]
        return {
            "pixel_values": torch.cat([prompt.pixel_values for prompt in prompts]),
            "grid_thw": torch.cat([prompt.grid_thw for prompt in prompts]),
            "labels": torch.cat(labels),
        }

    def forward(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor, labels: torch.Tensor) -> dict[str, object]:
        features = self.backbone.encode_images(pixel_values, grid_thw).tokens
        loss, scores = label_loss(self.head(features), labels)
        metrics = {}
        for i, (name, score) in enumerate(zip(CLASSES, scores, strict=True)):
            shown = labels[:, i] > 0  # accuracy counts tokens that show something; the ground is easy
            metrics[f"accuracy_{name}"] = (score.argmax(-1) == labels[:, i])[shown].float().mean().item()
        return {"loss": loss, "metrics": metrics}
