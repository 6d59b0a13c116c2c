"""`python -m trainers ablations`: each method without one part at a time, on equal short budgets, beside its paper."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.study import Condition, Row, Study
from latent_core.evaluation.study_rows import row_to_json, run_study
from trainers.evidence.ablation_table import markdown
from trainers.evidence.ablation_variants import ABLATIONS, Ablation, Variant
from trainers.evidence.reports import ABLATIONS_FILE, write_report
from trainers.loop.launch import train
from trainers.recipe import load_recipe

FOLDER = Path("runs/ablations")


def ablate(checkpoint: str = "glyph-monet", *, n: int = 500, split: str = "test") -> Path:
    """Trains and measures every variant; returns the Markdown table. Finished parts are not done again.

    Raises ValueError for a checkpoint that has no table.
    """
    if checkpoint not in ABLATIONS:
        raise ValueError(f"There are no ablations of {checkpoint!r}; choose one of {', '.join(ABLATIONS)}.")
    ablation, folder = ABLATIONS[checkpoint], FOLDER / checkpoint
    rows = {variant.name: list(_measure(ablation, variant, folder, n=n, split=split)) for variant in ablation.variants}
    report = {
        "command": f"python -m trainers ablations {checkpoint} --n {n} --split {split}",
        "n": n,
        "split": split,
        "ablation": dataclasses.asdict(ablation),
        "rows": {name: list(map(row_to_json, measured)) for name, measured in rows.items()},
    }
    written = write_report(folder / f"{split}.json", report, markdown)
    if split == "test" and (EMBEDDED / checkpoint).is_dir():
        write_report(EMBEDDED / checkpoint / ABLATIONS_FILE, report, markdown)
    return written


def _measure(ablation: Ablation, variant: Variant, folder: Path, *, n: int, split: str) -> Iterator[Row]:
    folder = folder / variant.name.replace(" ", "-")
    final = train_variant(ablation, variant, folder)
    reasoner = load(str(final))
    study = Study(reasoner, lambda family, index: glyphs.sample(family, index, split), n=n, batch=150)
    yield from run_study(
        study, list(conditions(ablation, variant, reasoner.config.rule)), folder / f"{split}-{n}.jsonl"
    )


def conditions(ablation: Ablation, variant: Variant, rule: str) -> Iterator[Condition]:
    """The conditions that a variant is measured under."""
    if variant.recipe is not None:
        yield from (Condition(family=family, latents=0, mode="text") for family in ablation.families)
        return
    latents = variant.latents or ablation.latents
    base = Condition(family=ablation.families[0], rule=rule, latents=latents)
    yield base
    if variant.replace:
        yield from (dataclasses.replace(base, replace=by) for by in ablation.replace)
    yield from (dataclasses.replace(base, family=family) for family in ablation.families[1:])
    for other in variant.sweep:
        yield from (dataclasses.replace(base, family=family, latents=other) for family in ablation.families)


def train_variant(ablation: Ablation, variant: Variant, folder: Path) -> Path:
    """Runs a variant's stages; returns the last one's checkpoint."""
    start = Path("runs") / ablation.start / "final"
    if variant.recipe is not None:
        overrides = [
            f"max_steps={ablation.stages[0][1]}",
            ablation.shared[0],
            f"init={start}",
            f"output_dir={folder}/stage1",
        ]
        return train(*load_recipe(variant.recipe, [*overrides, "eval_strategy='no'"]))
    teacher, options = start, variant.options
    for number, (name, budget) in enumerate(ablation.stages, start=1):
        overrides = [f"max_steps={budget}", *ablation.shared, f"init={start}", f"output_dir={folder}/stage{number}"]
        if load_recipe(name, [])[0].teacher is not None:
            overrides.append(f"teacher={teacher}")
        teacher, options = train(*load_recipe(name, [*overrides, "eval_strategy='no'", *options])), ()
    return teacher
