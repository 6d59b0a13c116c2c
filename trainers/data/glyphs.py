"""Glyphs as a data set: item i depends on seed, mixture and i alone, so that a resumed run sees the same items."""

from random import Random

from torch.utils.data import Dataset

from latent_core import glyphs
from latent_core.example import Example


class GlyphsDataset(Dataset):
    """`size` samples of `split`, families drawn by weight, each with its own random numbers.

    An item is (example, rng): what a collator draws for the sample (K, say) comes from `rng` and nowhere else.
    """

    def __init__(self, mixture: dict[str, float], size: int, *, split: str = "train", seed: int = 0) -> None:
        self.families, self.weights = list(mixture), list(mixture.values())
        self.size, self.split, self.seed = size, split, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Example, Random]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = Random(f"mixture/{self.seed}/{self.split}/{index}")
        family = rng.choices(self.families, self.weights)[0]
        return glyphs.sample(family, rng.randrange(2**40), self.split), rng
