"""`python -m trainers teachers`: small vision encoders of the published classes, trained to read every patch.

They play the part of DINOv3 and SigLIP2 for VaLR on Glyphs. A linear head reads colour, shape, mark, line and place
off every patch; the head is thrown away, the encoder stays frozen from then on.
"""

from pathlib import Path
from random import Random

import torch
from torch import nn
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    PrinterCallback,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from latent_core.example import Example
from latent_core.files import write_folder
from latent_core.finite import not_finite, shortened
from latent_core.glyphs.scene import SIZE
from latent_core.settings import check
from trainers.data.glyphs import GlyphsDataset
from trainers.loop.trainer import JsonlLog
from trainers.sft.encoders import TEACHERS, PatchEncoder
from trainers.sft.vision import LABELS, label_loss, token_labels

MIXTURE = {"find": 2.0, "relate": 1.0, "count": 1.0, "trace": 2.0}
MEAN = STD = [0.5, 0.5, 0.5]
STEPS, ROWS, RATE = 1500, 32, 2e-3


def dinov2() -> PreTrainedModel:
    """12 × 12 patches and a class token."""
    size = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=3)
    return Dinov2Model(Dinov2Config(**size, image_size=SIZE, patch_size=8, layerscale_value=0.1))


def siglip() -> PreTrainedModel:
    """6 × 6 patches, nothing in front."""
    size = dict(hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4)
    return SiglipVisionModel(SiglipVisionConfig(**size, image_size=SIZE, patch_size=16))


KINDS = {"glyph-dinov2": (dinov2, BitImageProcessorPil), "glyph-siglip": (siglip, SiglipImageProcessorPil)}


class TeacherStage(nn.Module):
    """Weighted sum of the labels' cross-entropies over all patches."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = PatchEncoder(model, MEAN, STD)
        self.model = model.requires_grad_(True).train()
        self.head = nn.Linear(self.encoder.width, sum(LABELS))

    def collate(self, items: list[tuple[Example, Random]]) -> dict[str, torch.Tensor]:
        labels = [token_labels(example.metadata["scene"], *self.encoder.grid) for example, _ in items]
        images = [example.images[0] for example, _ in items]
        return {"pixels": self.encoder.prepare(images)["pixels"], "labels": torch.cat(labels)}

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.model(pixel_values=pixels).last_hidden_state
        patches = self.encoder.grid[0] * self.encoder.grid[1]
        loss, _ = label_loss(self.head(states[:, -patches:].flatten(0, 1)), labels)
        return {"loss": loss}


def teach(name: str, *, steps: int = STEPS, folder: Path = TEACHERS) -> None:
    """Trains one encoder for `steps` batches of ROWS images, and writes it to `folder` under its name."""
    build, processor = KINDS[name]
    set_seed(0)
    stage = TeacherStage(build())
    arguments = TrainingArguments(
        output_dir=f"runs/{name}",
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=30,
        weight_decay=0.01,
        logging_steps=25,
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    data = GlyphsDataset(MIXTURE, steps * ROWS, seed=1)
    run = Path(arguments.output_dir)
    run.mkdir(parents=True, exist_ok=True)
    log = JsonlLog(run / "metrics.jsonl")
    trainer = Trainer(model=stage, args=arguments, train_dataset=data, data_collator=stage.collate, callbacks=[log])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    bad = not_finite(stage.model.named_parameters())
    check(not bad, f"{name} diverged: {shortened(bad)} have nan or infinity. Nothing was written; lower RATE.")

    def fill(draft: Path) -> None:
        stage.model.save_pretrained(draft)
        processor(image_mean=MEAN, image_std=STD, size={"height": SIZE, "width": SIZE}).save_pretrained(draft)
        (draft / "training.jsonl").write_text(log.path.read_text())

    write_folder(folder / name, fill)
