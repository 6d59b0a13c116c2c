"""`python -m trainers record`: the example traces that the page opens without a model."""

from pathlib import Path

from rich.progress import track

from latent_core import glyphs, load
from latent_core.assets import ASSETS

TRACES = ASSETS / "traces"
SEED = 22
"""Of the test split; the scenes in view when the page opens."""
RECORDED = [(family, "glyph-monet") for family in glyphs.FAMILIES] + [("find", "glyph-monet-faithful")]


def record(folder: Path = TRACES) -> list[Path]:
    """One greedy run each, with the attention of all layers; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for family, checkpoint in track(RECORDED, description="Runs"):
        example = glyphs.sample(family, SEED, split="test")
        trace = load(checkpoint).run(list(example.images), example.question, temperature=0.0, attention=True)
        written.append(folder / f"{family}_{checkpoint}.safetensors")
        trace.save(written[-1])
    return written
