"""`python -m trainers glyphs`: the embedded checkpoints from nothing, step by step.

Every step is skipped where it finished with the same recipe from the same start, so that a killed build goes on.
"""

import shutil
from pathlib import Path

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.files import write_folder
from trainers.evidence.bank import bank
from trainers.evidence.cards import card
from trainers.evidence.decoder import depict
from trainers.evidence.grounding import ground
from trainers.evidence.measurements import study
from trainers.evidence.recorded_runs import record
from trainers.evidence.reinforcement import reinforce
from trainers.evidence.reinforcement_runs import RUNS
from trainers.evidence.reports import METRICS_FILE
from trainers.evidence.results import write_evidence
from trainers.evidence.teachers import KINDS, teach
from trainers.loop.launch import train
from trainers.recipe import load_recipe
from trainers.sft.encoders import TEACHERS

STEPS = (
    "glyph-vision",
    "glyph-search",
    "glyph-backbone",
    "glyph-text",
    "glyph-latent-find",
    "glyph-latent-relate",
    "glyph-latent-count",
    "glyph-latent",
    "glyph-monet-stage1",
    "glyph-monet-stage2",
    "glyph-monet",
    "glyph-monet-faithful-stage1",
    "glyph-monet-faithful-stage2",
    "glyph-monet-faithful",
    "glyph-lvr",
    "glyph-lvr-faithful",
    "glyph-valr",
    "glyph-valr-faithful",
    "glyph-deeplatent-stage1",
    "glyph-deeplatent",
    "glyph-deeplatent-faithful",
)
STUDIED = (
    "glyph-monet",
    "glyph-monet-faithful",
    "glyph-lvr",
    "glyph-lvr-faithful",
    "glyph-valr",
    "glyph-valr-faithful",
    "glyph-deeplatent",
    "glyph-deeplatent-faithful",
    "glyph-text",
)
"""Checkpoints that ship with their measurements."""
REINFORCED = ("glyph-monet-rl", "glyph-lvr-rl", "glyph-deeplatent-rl")
"""Checkpoints of reinforcement learning, which ship with their runs' measurements."""
BEFORE_AND_AFTER = (*REINFORCED, "glyph-text")
"""Checkpoints beside which such measurements lie: the last did not become better, and so ships as it was."""
PAINTED = ("glyph-monet", "glyph-monet-faithful")
"""Checkpoints that ship with a decoder."""
BANKED = (*PAINTED, "glyph-valr")
"""Checkpoints that ship with a bank: their latents are states after the final norm, as text's are."""
STAGES = ("glyph-monet-stage1", "glyph-monet-stage2")
"""Checkpoints that ship for comparison between stages."""


def build(*, n: int = 500) -> None:
    """Trains every step, installs the checkpoints that ship, measures them and writes their model cards."""
    for name in KINDS:
        if not (TEACHERS / name / "config.json").is_file():
            teach(name)
    for name in STEPS:
        recipe, arguments = load_recipe(name, [])
        final = train(recipe, arguments)
        if name in STUDIED + STAGES:
            install(name, final)
    for name in STAGES:
        document(name)
    reinforce("glyph-text-rl", n=n)
    for name in STUDIED:
        measured = study(name, families=families(name), n=n)
        shutil.copy(measured / METRICS_FILE, EMBEDDED / name)
        if load_recipe(name, [])[0].method != "text":
            ground(name)
        if name in PAINTED:
            depict(name)
        if name in BANKED:
            bank(name)
        document(name)
    for name in REINFORCED:
        install(name, RUNS[name][0].train(name))
        reinforce(name, n=n)
        document(name)
    record()
    write_evidence(STUDIED, BEFORE_AND_AFTER)


def families(name: str) -> tuple[str, ...]:
    """The families that a checkpoint is measured on: the four, and `views` where it learned them."""
    learned = load_recipe(name, [])[0].mixture
    return (*glyphs.FAMILIES, *(family for family in ("views",) if family in learned))


def install(name: str, final: Path) -> None:
    """Copies a finished run to where embedded checkpoints lie; its measurements go once the weights change."""
    target = EMBEDDED / name
    if target.is_dir() and (target / "method.json").read_bytes() == (final / "method.json").read_bytes():
        return

    def fill(folder: Path) -> None:
        shutil.copytree(final, folder, dirs_exist_ok=True)
        shutil.copy(final.parent / "metrics.jsonl", folder / "training.jsonl")

    write_folder(target, fill)


def document(name: str) -> None:
    """Puts the model card beside an embedded checkpoint."""
    (EMBEDDED / name / "README.md").write_text(card(name), encoding="utf-8")
