"""The folder of the files that come with Inscape: the page, the embedded checkpoints, recorded traces, teachers."""

from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"
