"""The checkpoints that come with Inscape, apart from checkpoints.py: their names are known without any model code."""

from pathlib import Path

EMBEDDED = Path(__file__).parent.parent / "assets" / "checkpoints"
"""One folder per checkpoint."""


def available() -> list[str]:
    """Names of the embedded checkpoints."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/method.json"))
