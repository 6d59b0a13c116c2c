"""The runs that reinforcement learning is judged by: seeds of what ships, and every variant on the same budget."""

from dataclasses import dataclass
from pathlib import Path

from trainers.loop.launch import train
from trainers.recipe import load_recipe

FOLDER = Path("runs/rl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run of a recipe."""

    name: str
    options: tuple[str, ...] = ()
    """What differs from the recipe."""
    seed: int = 0

    def train(self, recipe: str) -> Path:
        """The run's checkpoint; one that finished is not trained again."""
        if not (self.options or self.seed):
            return train(*load_recipe(recipe, []))
        folder = FOLDER / recipe / self.name.replace(" ", "-")
        return train(*load_recipe(recipe, [*self.options, f"seed={self.seed}", f"output_dir={folder}"]))


SEEDS = tuple(Run(name=f"seed {seed}", seed=seed) for seed in (0, 1, 2))
RUNS: dict[str, tuple[Run, ...]] = {
    "glyph-monet-rl": (
        *SEEDS,
        Run(name="sampled latents", options=("rl.noise=0.05",)),
        Run(name="words alone", options=("rl.variant=constants",)),
    ),
    "glyph-lvr-rl": SEEDS,
    "glyph-deeplatent-rl": (
        *SEEDS,
        Run(name="words alone", options=("rl.variant=constants",)),
        Run(name="LatentFormer, too", options=("rl.former=true",)),
        Run(name="summed densities", options=("rl.reduction=sum",)),
    ),
    "glyph-text-rl": SEEDS[:1],
}
