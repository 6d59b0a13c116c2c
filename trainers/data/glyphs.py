"""Glyphs as a data set: item i depends on seed, mixture and i alone, so that a resumed run sees the same items."""

from random import Random

from torch.utils.data import Dataset

from latent_core import glyphs
from latent_core.example import Example


class GlyphsDataset(Dataset):
    """`size` samples of `split`, families drawn by weight.

    An item is (example, rng): what a collator draws once for its rows (K, say) comes from the first one's `rng` and
    nowhere else. All rows of a batch have the rng of the batch's first row, so that every process draws the same for
    its share of the batch, and what one process would draw for the whole of it.
    """

    def __init__(
        self, mixture: dict[str, float], size: int, *, batch: int = 1, split: str = "train", seed: int = 0
    ) -> None:
        """`batch`: rows that all processes together take at once."""
        self.families, self.weights = list(mixture), list(mixture.values())
        self.size, self.batch, self.split, self.seed = size, batch, split, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Example, Random]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        family, seed, _ = self._draw(index)
        _, _, rng = self._draw(index - index % self.batch)
        return glyphs.sample(family, seed, self.split), rng

    def _draw(self, index: int) -> tuple[str, int, Random]:
        """Family and seed of a sample, and the random numbers that go on after them."""
        rng = Random(f"mixture/{self.seed}/{self.split}/{index}")
        return rng.choices(self.families, self.weights)[0], rng.randrange(2**40), rng
