"""Short runs of the trainers, shared by their tests."""

import json
from pathlib import Path

from transformers import TrainingArguments

from trainers.recipe import Recipe, load_recipe

SMALL = ["per_device_train_batch_size=4", "val_size=2", "warmup_steps=1", "logging_steps=1", "eval_strategy=no"]


def small(name: str, folder: Path, *overrides: str) -> tuple[Recipe, TrainingArguments]:
    """A recipe that ships with small batches, from scratch unless `overrides` say otherwise."""
    return load_recipe(name, [*SMALL, f"output_dir={folder}", "init=null", *overrides])


def curve(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of every log line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]
