"""`python -m trainers data`: Glyphs in a published format, and a check of files in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from latent_core import glyphs
from latent_core.settings import check as require
from latent_core.settings import counted
from trainers.data.formats import FORMATS
from trainers.data.rows import BadRow, PublishedDataset
from trainers.data.text import clip, printable

DATASET = "glyphs"


def write(folder: str, families: Sequence[str] | None, n: int, split: str, seed: int, format: str) -> str:
    """Writes n samples, families in turn; returns a sentence that says where.

    families: None for all families about one image that the format can hold. Raises ValueError, at the first sample
    that it cannot hold, with those that it can; then nothing is written.
    """
    require(n > 0, f"--n is {n}; it must be at least 1.")
    chosen, holds = FORMATS[format], FORMATS[format].families
    drawn = families or [family for family in glyphs.FAMILIES if family in holds]
    examples = (glyphs.sample(drawn[i % len(drawn)], seed + i // len(drawn), split) for i in range(n))
    try:
        file = chosen.write_rows(examples, Path(folder), DATASET)
    except BadRow as error:
        raise ValueError(
            f"--format {format} cannot hold {error.name}: {error.reason} Nothing was written. Families that it can "
            f"hold: {', '.join(holds)}."
        ) from error
    return f"Written: {file}, {counted(n, 'row')} of {', '.join(drawn)}; its root is {folder}."


def check(files: Sequence[str], root: str, on_bad_row: Literal["error", "skip"], *, pixels: bool, format: str) -> str:
    """Checks every row; returns counts by dataset_name, and the rows left out.

    Raises BadRow for the first bad row unless they are skipped.
    """
    data = PublishedDataset(files, root, FORMATS[format], size=0, on_bad_row=on_bad_row)
    bad = list(data.bad)
    good = data.counts()
    for row in data.rows if pixels else ():
        try:
            data.example(row)
        except BadRow as error:
            if on_bad_row == "error":
                raise
            bad.append(error)
            good[row.dataset] -= 1
    lines = [
        *data.empty,
        *(f"{printable(clip(name, 100))}: {counted(count, 'row')}" for name, count in sorted(good.items())),
    ]
    lines += [f"left out: {error}" for error in bad]
    return "\n".join([*lines, f"{counted(good.total(), 'row')} can be used, {len(bad)} cannot."])
