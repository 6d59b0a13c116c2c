"""What every embedded checkpoint decodes and every stage learns from first, as numbers that no refactoring may move.

    python -m tests.unchanged > tests/fixtures/unchanged.json

writes them down anew, for a change that is meant to move them. One thread, for sums depend on the number of threads.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import TrainingArguments, set_seed

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import available
from trainers.loop.launch import build_data, build_stage
from trainers.recipe import Recipe, load_recipe, recipes

VALUES = Path(__file__).parent / "fixtures" / "unchanged.json"
FAMILIES = ("find", "count")
PARENTS = {
    "glyph-vision": None,
    "glyph-search": "glyph-text",
    "glyph-backbone": "glyph-text",
    "glyph-latent": "glyph-monet-stage1",
    "glyph-latent-find": "glyph-text",
    "glyph-latent-relate": "glyph-text",
    "glyph-latent-count": "glyph-text",
    "glyph-monet-faithful-stage1": "glyph-monet-stage1",
    "glyph-monet-faithful-stage2": "glyph-monet-stage2",
    "glyph-deeplatent-stage1": "glyph-monet-stage1",
}
"""Embedded checkpoints in the place of those that do not ship."""


def stages() -> list[str]:
    """Recipes that a stage's first losses are taken from: every one on Glyphs."""
    return [name for name in recipes() if name.startswith("glyph-")]


def decoded(name: str) -> dict[str, object]:
    """Ids and log-probabilities of greedy answers of a checkpoint, and the size of what it fed."""
    reasoner, values = load(name), {}
    for family in FAMILIES:
        example = glyphs.sample(family, seed=5, split="test")
        trace = reasoner.run(example.images, example.question, seed=0)
        values[family] = {
            "ids": [token.token_id for token in trace.tokens],
            "logprobs": [token.logprob for token in trace.tokens],
            "latents": [block.latents.double().norm().item() for block in trace.blocks],
        }
    return values


def start_of(name: str, runs: Path) -> tuple[Recipe, TrainingArguments]:
    """A recipe that ships, on small batches, from checkpoints that ship."""
    values, _ = load_recipe(name, [])
    given = [f"output_dir={runs / name}", "per_device_train_batch_size=3", "gradient_accumulation_steps=1"]
    for role in ("init", "teacher"):
        parent = getattr(values, role)
        if parent is not None:
            given.append(f"{role}={json.dumps(PARENTS.get(parent, parent))}")
    return load_recipe(name, given)


def learned(name: str, runs: Path) -> list[dict[str, float]]:
    """Loss, metrics and the gradient's norm of the first two batches of a recipe's stage, without an update."""
    recipe, arguments = start_of(name, runs)
    set_seed(arguments.seed)
    stage = build_stage(recipe, runs)
    data, _ = build_data(recipe, arguments, None)
    batch, values = arguments.per_device_train_batch_size, []
    for first in (0, batch):
        stage.zero_grad()
        result = stage(**stage.collate([data[first + number] for number in range(batch)]))
        result["loss"].backward()
        gradients = [p.grad.double().square().sum() for p in stage.parameters() if p.grad is not None]
        values.append({"loss": result["loss"].item(), "gradient": math.sqrt(sum(gradients)), **result["metrics"]})
    return values


def measure() -> dict[str, object]:
    """All of it."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as runs:
        return {
            "decoded": {name: decoded(name) for name in available()},
            "learned": {name: learned(name, Path(runs)) for name in stages()},
        }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
