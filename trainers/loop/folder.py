"""A run's folder: one run at a time holds it, and what an earlier one left in it is set aside under a name."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from latent_core.checkpoints.published import FINAL
from latent_core.files import write_file
from latent_core.settings import check
from trainers.loop.origin import PARENTS, RECIPE
from trainers.loop.saves import checkpoints
from trainers.parallel import from_main
from trainers.rl.samples import FOLDER as ROLLOUTS

METRICS, BAD_ROWS, TENSORBOARD = "metrics.jsonl", "bad_rows.jsonl", "tensorboard"
_LOGS = (METRICS, BAD_ROWS, TENSORBOARD, ROLLOUTS)
_EARLIER = re.compile(r"earlier-(\d+)")
_DRAFT = re.compile(rf"\.(?:{'|'.join(map(re.escape, (FINAL, RECIPE, PARENTS, METRICS, BAD_ROWS)))})\.[0-9a-f]{{8}}")


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made; whoever is killed leaves nothing locked.

    Raises ValueError, in every process of a run, where another run is under way.
    """
    lock = FileLock(run / ".lock")
    from_main(lambda: _acquire(lock, run))
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, run: Path) -> None:
    check(run.is_dir() or not run.exists(), f"output_dir is {run}, which is no folder; name a new or an empty one.")
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Another run is under way in {run}; wait for its end or stop it, or set output_dir to another folder."
        ) from None


def clear_drafts(run: Path) -> None:
    """Removes what a killed run left half-written in a folder that is held."""
    for path in run.iterdir():
        if _DRAFT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(run: Path, *, only: str | None = None) -> Path | None:
    """Moves what an earlier run left, or one part of it, into `earlier-<n>`, and says so; returns that folder.

    Other things stay where they are. Killed at any moment, weights and recipe belong together in either folder.
    """
    outputs = [run / FINAL, *checkpoints(run), *(run / name for name in _LOGS)]
    leftovers = [path for path in outputs if path.exists() and only in (None, path.name)]
    if not leftovers:
        return None
    numbers = [int(match[1]) for path in run.iterdir() if (match := _EARLIER.fullmatch(path.name))]
    aside = run / f"earlier-{max(numbers, default=0) + 1}"
    aside.mkdir()
    records = [run / name for name in (RECIPE, PARENTS) if (run / name).is_file()]
    for path in records:  # first, so that what moves is named on both sides meanwhile
        write_file(aside / path.name, path.read_bytes())
    for path in leftovers:
        os.rename(path, aside / path.name)
    for path in records if only is None else ():
        path.unlink()
    size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    print(
        f"{only or 'What an earlier run left'} in {run} is set aside in {aside.name} ({size / 1e6:,.1f} MB); delete "
        "that when you need it no more.",
        flush=True,
    )
    return aside
