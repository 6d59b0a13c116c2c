"""The published formats by name."""

from trainers.data import lvr, monet, thyme, virl
from trainers.data.rows import Format

FORMATS: dict[str, Format] = {"monet": monet.FORMAT, "lvr": lvr.FORMAT, "virl": virl.FORMAT, "thyme": thyme.FORMAT}
