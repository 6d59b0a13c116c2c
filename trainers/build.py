"""`python -m trainers glyphs`: the embedded checkpoints from nothing, step by step.

Every step is skipped where it finished with the same recipe from the same start, so that a killed build goes on.
"""

import shutil
from pathlib import Path

from latent_core import glyphs
from latent_core.embedded import EMBEDDED
from latent_core.files import write_folder
from trainers.bank import bank
from trainers.depict import depict
from trainers.encoders import TEACHERS
from trainers.evidence import study
from trainers.ground import ground
from trainers.recipe import Recipe, load_recipe
from trainers.record import record
from trainers.rl.evidence import NAME, reinforce
from trainers.rl.runs import RUNS
from trainers.start import train
from trainers.summary import write_evidence
from trainers.teachers import KINDS, teach

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
"""Checkpoints that ship with a bank: their latents are states after the final norm, as words are."""
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
        report = study(name, families=families(name), n=n)
        if load_recipe(name, [])[0].method != "text":
            ground(name)
        if name in PAINTED:
            depict(name)
        if name in BANKED:
            bank(name)
        document(name, report)
    for name in REINFORCED:
        install(name, RUNS[name][0].train(name))
        reinforce(name, n=n)
        document(name)
    record()
    write_evidence(STUDIED, BEFORE_AND_AFTER)


def families(name: str) -> tuple[str, ...]:
    """What a checkpoint is measured on: the four families, and `views` where it learned them."""
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


def document(name: str, report: Path | None = None) -> None:
    """Puts the model card beside an embedded checkpoint, with the measurements of a study if there is one."""
    recipe, _ = load_recipe(name, [])
    folder = EMBEDDED / name
    measured = ""
    if report is not None:
        shutil.copy(report / "metrics.json", folder / "metrics.json")
        measured = f"## Measurements\n\n{(report / 'metrics.md').read_text()}"
    parts = (
        ("Where the latents look", "grounding.md"),
        ("What the latents depict", "depict.md"),
        ("Ablations", "ablations.md"),
        ("Before and after", f"{NAME}.md"),
    )
    for title, file in parts:
        if (folder / file).is_file():
            measured += f"\n## {title}\n\n{(folder / file).read_text()}"
    card = (
        f"---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n---\n\n# {name}\n\n"
        f"{recipe.description} A Qwen2.5-VL of 1.7M parameters, trained from scratch on Glyphs, a procedural "
        "micro-world; outside of it its answers mean nothing.\n\n"
        f"Made by `python -m trainers run {name}` (or `make glyphs`) on two CPU cores; recipe, seed and versions are "
        f"in `method.json`, the training curve in `training.jsonl`.\n\n{_latents(recipe)}{measured}"
    )
    (folder / "README.md").write_text(card.rstrip() + "\n")


def _latents(recipe: Recipe) -> str:
    """What the model card says about blocks."""
    text = recipe.spec.stage.card(recipe)
    if recipe.method == "text" or not text:
        return ""
    if recipe.spec.reinforces:
        return f"{text} Attention rule: `{recipe.rule}`.\n\n"
    text += f" Attention rule: `{recipe.rule}`"
    text += (
        f", for {recipe.everything_share:.0%} of the batches `everything`.\n\n" if recipe.everything_share else ".\n\n"
    )
    if recipe.rule in ("latents_only", "sealed"):
        text += (
            "Text after a block sees nothing but latents and itself. That the answer depends on the latents then "
            "holds by construction, because the other wires are cut; the rows under `everything` are the ones to "
            "compare with published models.\n\n"
        )
    return text
