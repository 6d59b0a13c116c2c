"""`python -m trainers reinforce`: a recipe's runs, their seeds and variants, before and after, as one table.

Every run has the same budget and starts from the same checkpoint. All are measured on the test split, greedily.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.config import LatentRange
from latent_core.evaluation.study import Condition, Row, Study
from latent_core.evaluation.study_rows import row_to_json, run_study
from latent_core.lines import read_lines
from latent_core.reasoner import Reasoner
from trainers.evidence.reinforcement_runs import FOLDER, RUNS
from trainers.evidence.reinforcement_table import markdown
from trainers.evidence.reports import REINFORCEMENT_FILE, write_report
from trainers.loop.origin import source_folder
from trainers.recipe import Recipe, load_recipe

SWEEP = (1, 2, 4, 6, 8, 9, 12, 16, 24, 36)


def reinforce(name: str, *, n: int = 500, split: str = "test", batch: int = 250) -> Path:
    """Trains and measures every run of a recipe; returns the Markdown table. Finished parts are not done again.

    Raises ValueError for a recipe that has no runs.
    """
    if name not in RUNS:
        raise ValueError(f"There are no runs of {name!r}; choose one of {', '.join(RUNS)}.")
    recipe, arguments = load_recipe(name, [])
    finals = {run.name: run.train(name) for run in RUNS[name]}
    latents = load(str(next(iter(finals.values())))).config.latents
    start = str(source_folder(recipe.init, Path(arguments.output_dir).parent))
    before = f"`{recipe.init}`"
    rows = {
        label: list(
            _measure(str(folder), recipe, latents, FOLDER / name / label.strip("`"), n=n, split=split, batch=batch)
        )
        for label, folder in {before: start, **finals}.items()
    }
    size, steps, options = arguments.per_device_train_batch_size, arguments.max_steps, recipe.stage_options
    report = {
        "command": f"python -m trainers reinforce {name} --n {n} --split {split}",
        "n": n,
        "families": list(recipe.mixture),
        "latents": None if options.variant == "text" else recipe.latents_default,
        "training": {
            "steps": steps,
            "questions": steps // options.updates * size,
            "group": options.group,
            "updates": options.updates,
            "responses": size * options.group,
        },
        "rows": {label: list(map(row_to_json, measured)) for label, measured in rows.items()},
        "curves": {label: curve(folder.parent / "metrics.jsonl") for label, folder in finals.items()},
    }
    written = write_report(FOLDER / name / f"{split}.json", report, markdown)
    shipped = EMBEDDED / (name if (EMBEDDED / name).is_dir() else recipe.init)  # else beside what it started from
    if split == "test" and shipped.is_dir():
        write_report(shipped / REINFORCEMENT_FILE, report, markdown)
    return written


def _measure(
    checkpoint: str, recipe: Recipe, latents: LatentRange, folder: Path, *, n: int, split: str, batch: int
) -> Iterator[Row]:
    reasoner = load(checkpoint)
    # the checkpoint before is asked for the same K, beyond what it offers
    reasoner.config = dataclasses.replace(reasoner.config, latents=latents)
    study = Study(reasoner, lambda family, index: glyphs.sample(family, index, split), n=n, batch=batch)
    folder.mkdir(parents=True, exist_ok=True)
    yield from run_study(study, list(conditions(reasoner, recipe)), folder / f"{split}-{n}.jsonl")


def conditions(reasoner: Reasoner, recipe: Recipe) -> Iterator[Condition]:
    """The families that were learned at the recipe's K, with the donor's latents, and by K; then the others."""
    learned = list(recipe.mixture)
    others = [family for family in glyphs.FAMILIES if family not in learned]
    if not reasoner.method.has_latents:
        yield from (Condition(family=family, latents=0, mode="text") for family in (*learned, *others))
        return
    largest, usual = reasoner.config.latents.max, recipe.latents_default
    for family in learned:
        base = Condition(family=family, latents=usual, rule=recipe.rule)
        yield base
        yield dataclasses.replace(base, replace="donor")
        yield dataclasses.replace(base, mode="markers")
        for latents in SWEEP:
            if latents != usual and latents <= largest:
                yield dataclasses.replace(base, latents=latents)
    yield from (Condition(family=family, latents=usual, rule=recipe.rule) for family in others)


def curve(log: Path) -> list[dict[str, float]]:
    """The evaluations of a run, in order, and between them the means of what was logged in training."""
    points: list[dict[str, float]] = []
    since: list[dict[str, float]] = []
    for _, line in read_lines(log)[0]:
        if "solved_0" in line:
            since.append(line)
        elif "eval_reward" in line and since:
            names = [name for name in since[-1] if name not in ("step", "epoch", "learning_rate")]
            means = {name: sum(s.get(name, 0.0) for s in since) / len(since) for name in names}
            points.append({"step": line["step"], **means, **{k: v for k, v in line.items() if k.startswith("eval_")}})
            since = []
    return points
