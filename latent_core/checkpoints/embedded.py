"""The checkpoints that come with Inscape, apart from loading.py: their names are known without any model code."""

import os
from pathlib import Path

from latent_core.assets import ASSETS

EMBEDDED = ASSETS / "checkpoints"
"""One folder per checkpoint."""

FAITHFUL = "-faithful"
"""Ends the name of a checkpoint trained as published, where another one was trained under the bottleneck."""
REINFORCED = "-rl"
"""Ends the name of a checkpoint that went on with reinforcement learning."""
FIRST = "glyph-monet"
"""The checkpoint that a visitor meets first."""


def offered() -> list[str]:
    """Names that the page offers: all but the earlier stages of another checkpoint.

    FIRST is at the head; a method's faithful variant and the reinforced one follow it, and methods without come last.
    """
    names = [name for name in available() if "-stage" not in name]

    def key(name: str) -> tuple[bool, bool, str]:
        method = name.removesuffix(FAITHFUL).removesuffix(REINFORCED)
        return method != FIRST, method + FAITHFUL not in names, name

    return sorted(names, key=key)


def available() -> list[str]:
    """Names of the embedded checkpoints."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/method.json"))


def beside(checkpoint: str | os.PathLike[str], file: str) -> Path | None:
    """The path of a file beside an embedded checkpoint's or a local folder's weights; None where there is none.

    `checkpoint` must be one that this program offers, never a name that came with a file.
    """
    for folder in (EMBEDDED / checkpoint, Path(checkpoint)):
        if (folder / file).is_file():
            return folder / file
    return None
