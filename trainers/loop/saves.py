"""A run's checkpoints: `checkpoint-<step>`, marked once all is written; which of them a run can go on from."""

import json
import pickle
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from latent_core.checkpoints.loading import read_parts, stored_parameters
from latent_core.finite import not_finite, shortened
from trainers.parallel import from_main

COMPLETE = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")
_HOLDS = {"optimizer": "param_groups", "scheduler": "last_epoch", "rng_state": "cpu"}
"""Kind of file → what its content has."""


def step_of(folder: Path) -> int:
    """The step that a checkpoint stands at."""
    return int(_NAME.fullmatch(folder.name)[1])


def checkpoints(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, the newest last, written to their end or not; no others, such as
    `checkpoint-best`.
    """
    folders = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (folder / COMPLETE).is_file()


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return next(filter(is_complete, reversed(checkpoints(run))), None)


def prune(saved: Path, keep: int | None) -> None:
    """Removes what lies before a complete checkpoint, but the `keep` newest complete ones, itself among them.

    keep: None or less than 1 removes nothing.
    """
    if keep is None or keep < 1:
        return
    before = [path for path in checkpoints(saved.parent) if step_of(path) < step_of(saved)]
    newest = [path for path in reversed(before) if is_complete(path)][: keep - 1]
    for path in before:
        if path not in newest:
            shutil.rmtree(path, ignore_errors=True)  # no reason to end a run


def resume_from(run: Path, files: list[str]) -> Path | None:
    """The checkpoint that a run goes on from, the same in every process: the main one looks, and says what it leaves
    out.

    files: what a checkpoint of the run holds.
    Raises ValueError where there are checkpoints and none is whole.
    """

    def choose() -> Path | None:
        folder, reasons = newest_whole(run, files)
        if reasons:
            goes_on = f"The run goes on from {folder.name}." if folder else "The run begins anew."
            print(" ".join([*reasons, goes_on]), flush=True)
        return folder

    return from_main(choose)


def newest_whole(run: Path, files: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that a run can go on from, and a sentence on each newer one that it cannot.

    files: what a checkpoint of the run holds. None where nothing was ever written to its end. Raises ValueError, with
    all reasons, where complete ones are there and none is whole.
    """
    reasons = []
    for folder in reversed(checkpoints(run)):
        reason = damage(folder, files)
        if not reason:
            return folder, reasons
        reasons.append(f"{folder.name} is left out: {reason}.")
    if last_checkpoint(run) is not None:
        raise ValueError(
            f"{run} has checkpoints, but none is whole. {' '.join(reasons)} Put back what is missing, or pass "
            "--restart to begin anew."
        )
    return None, reasons


def damage(folder: Path, files: Sequence[str]) -> str:
    """Why a run cannot go on from a checkpoint, naming the file; empty where it can."""
    if not is_complete(folder):
        return "it is not marked as complete"
    for name in files:
        if not (folder / name).exists():
            return f"{name} is missing"
        try:
            reason = _faults(folder / name, step_of(folder))
        except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
            reason = f"cannot be read ({_short(error)})"
        if reason:
            return f"{name} {reason}"
    return ""


def final_damage(folder: Path) -> str:
    """Why a finished checkpoint cannot be used, naming the file; empty where it can, as far as headers tell."""
    if not (folder / "method.json").is_file():
        return "method.json is missing"
    try:
        read_parts(folder, folder.name)
        stored_parameters(folder)
    except (OSError, ValueError) as error:
        return str(error).rstrip(".")
    return ""


def _faults(path: Path, step: int) -> str:
    """What is wrong with a file that could be read."""
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        same = isinstance(content, dict) and content.get("global_step") == step
        return "" if same else f"is not that of step {step}"
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as tensors:
            bad = not_finite((name, tensors.get_tensor(name)) for name in tensors.keys())
        return f"holds numbers that are nan or infinite in {shortened(bad)}" if bad else ""
    if path.suffix not in (".pt", ".pth", ".bin"):
        return "" if path.is_file() or any(path.iterdir()) else "is empty"
    with safe_globals():  # tensors stay on the disk
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    needed = next((key for kind, key in _HOLDS.items() if path.name.startswith(kind) and path.suffix != ".bin"), None)
    whole = isinstance(content, dict) and (needed is None or needed in content)
    return "" if whole else f"has no {needed}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 80 else text[:79] + "…"
