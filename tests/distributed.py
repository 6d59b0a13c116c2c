"""What every process of a distributed test runs: `torchrun … tests/distributed.py FOLDER ROWS`, or `diverge` for ROWS.

Trains a stage of every method for some steps, Monet's all, with ROWS rows in this process's share of every batch.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the repository's root has to be importable first

from trainers.__main__ import main  # noqa: E402
from trainers.loop.launch import train  # noqa: E402
from trainers.loop.trainer import StageTrainer  # noqa: E402
from trainers.recipe import load_recipe  # noqa: E402

RECIPES = {
    "glyph-monet-stage1": (),
    "glyph-monet-stage2": (f"teacher={ROOT / 'assets/checkpoints/glyph-text'}", "latents_max=4"),
    "glyph-monet": (f"teacher={ROOT / 'assets/checkpoints/glyph-text'}", "latents_max=4"),
    "glyph-lvr": ("lvr.slots_max=3",),
    "glyph-valr": ("valr.upsample=1d", "latents_min=1", "latents_max=4", "mixture={find: 1, relate: 2, views: 1}"),
    # processes draw other noise than one does
    "glyph-deeplatent": (
        f"teacher={ROOT / 'assets/checkpoints/glyph-text'}",
        "method_options={width: 128, noise: 0, noise_floor: 0}",
    ),
    "glyph-monet-rl": (
        f"init={ROOT / 'assets/checkpoints/glyph-monet'}",
        "mixture={count: 1}",
        "latents_default=2",
        "max_steps=8",
        "rl.group=4",
        "rl.easy=0.3",  # so that a process may have nothing to learn from while the other has
        "rl.updates=2",
        "rl.temperature=1.3",
        "rl.max_new_tokens=48",
    ),
}
"""Recipe → its overrides."""
START = ROOT / "assets/checkpoints/glyph-text"


def overrides(folder: Path, name: str, rows: int) -> list[str]:
    """Short, quick to learn, with a learning rate at which rounding does not grow."""
    given = [f"output_dir={folder / name}", f"init={START}", f"per_device_train_batch_size={rows}"]
    given += [f"max_steps={20 if 'monet' in name else 10}", "warmup_steps=2", "use_cpu=true", "learning_rate=1e-4"]
    given += ["logging_steps=1", "eval_strategy=no", "save_strategy=no", "latents_default=4"]
    return [*given, "mixture={find: 1, relate: 1, count: 1, trace: 1}", *RECIPES[name]]


def diverge(folder: Path) -> int:
    """A run in bf16 whose loss becomes infinite in the second process alone, in the third step."""
    computed = StageTrainer.compute_loss

    def compute_loss(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        loss = computed(self, *args, **kwargs)
        return loss + torch.inf if self.state.global_step == 2 and self.args.process_index == 1 else loss

    StageTrainer.compute_loss = compute_loss
    given = [f"output_dir={folder}", f"init={START}", "dtype=bfloat16", "per_device_train_batch_size=1", "max_steps=6"]
    given += ["save_steps=2", "warmup_steps=1", "eval_strategy=no", "logging_steps=1", "use_cpu=true"]
    return main(["run", "glyph-text", *given])


if __name__ == "__main__":
    if sys.argv[2] == "diverge":
        sys.exit(diverge(Path(sys.argv[1])))
    for recipe in RECIPES:
        train(*load_recipe(recipe, overrides(Path(sys.argv[1]), recipe, int(sys.argv[2]))))
