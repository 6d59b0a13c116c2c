"""`python -m trainers reinforce`: a recipe's runs, their seeds and variants, before and after, as one table.

Every run has the same budget and starts from the same checkpoint. All are measured on the test split, greedily.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from latent_core import glyphs, load
from latent_core.config import LatentRange
from latent_core.embedded import EMBEDDED
from latent_core.files import write_file
from latent_core.lines import read_lines
from latent_core.reasoner import Reasoner
from latent_core.study import Condition, Row, Study
from latent_core.study_rows import run_study
from trainers.origin import source_folder
from trainers.recipe import Recipe, load_recipe
from trainers.rl.runs import FOLDER, RUNS

SWEEP = (1, 2, 4, 6, 8, 9, 12, 16, 24, 36)
NAME = "reinforcement"


def reinforce(name: str, *, n: int = 500, split: str = "test", batch: int = 250) -> Path:
    """Trains and measures every run of a recipe; returns the Markdown table. Finished parts are not done again.

    Raises ValueError for a recipe that has no runs.
    """
    if name not in RUNS:
        raise ValueError(f"There are no runs of {name!r}; choose one of {', '.join(RUNS)}.")
    recipe, arguments = load_recipe(name, [])
    finals = {run.name: run.train(name) for run in RUNS[name]}
    known = load(str(next(iter(finals.values())))).config.latents
    start = str(source_folder(recipe.init, Path(arguments.output_dir).parent))
    before = f"`{recipe.init}`"
    rows = {
        label: list(
            _measure(str(folder), recipe, known, FOLDER / name / label.strip("`"), n=n, split=split, batch=batch)
        )
        for label, folder in {before: start, **finals}.items()
    }
    curves = {label: curve(folder.parent / "metrics.jsonl") for label, folder in finals.items()}
    report = {
        "command": f"python -m trainers reinforce {name} --n {n} --split {split}",
        "rows": {label: [dataclasses.asdict(row) for row in found] for label, found in rows.items()},
        "curves": curves,
    }
    folder = FOLDER / name
    write_file(folder / f"{split}.json", json.dumps(report, indent=1).encode())
    size, steps = arguments.per_device_train_batch_size, arguments.max_steps
    options = recipe.stage_options
    prompts = steps // options.updates * size
    told = (
        f"`{report['command']}`: seeds 0 to {n - 1}, greedy, 95% intervals. {steps} steps: {prompts} questions of "
        f"{' and '.join(recipe.mixture)}, {options.group} responses to each, {options.updates} updates for every "
        f"{size * options.group} responses."
    )
    write_file(folder / f"{split}.md", f"{told}\n\n{table(recipe, rows, curves)}".encode())
    shipped = EMBEDDED / (name if (EMBEDDED / name).is_dir() else recipe.init)  # else beside what it started from
    if split == "test" and shipped.is_dir():
        for kind in ("json", "md"):
            shutil.copy(folder / f"test.{kind}", shipped / f"{NAME}.{kind}")
    return folder / f"{split}.md"


def _measure(
    checkpoint: str, recipe: Recipe, known: LatentRange, folder: Path, *, n: int, split: str, batch: int
) -> Iterator[Row]:
    reasoner = load(checkpoint)
    # the checkpoint before is asked for the same K, beyond what it offers
    reasoner.config = dataclasses.replace(reasoner.config, latents=known)
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
    given, own = reasoner.config.latents, recipe.latents_default
    for family in learned:
        base = Condition(family=family, latents=own, rule=recipe.rule)
        yield base
        yield dataclasses.replace(base, replace="donor")
        yield dataclasses.replace(base, mode="markers")
        for latents in SWEEP:
            if latents != own and latents <= given.max:
                yield dataclasses.replace(base, latents=latents)
    yield from (Condition(family=family, latents=own, rule=recipe.rule) for family in others)


def curve(log: Path) -> list[dict[str, float]]:
    """The evaluations of a run, in order, and between them the means of what was logged in training."""
    found: list[dict[str, float]] = []
    since: list[dict[str, float]] = []
    for _, line in read_lines(log)[0]:
        if "solved_0" in line:
            since.append(line)
        elif "eval_reward" in line and since:
            names = [name for name in since[-1] if name not in ("step", "epoch", "learning_rate")]
            means = {name: sum(s.get(name, 0.0) for s in since) / len(since) for name in names}
            found.append({"step": line["step"], **means, **{k: v for k, v in line.items() if k.startswith("eval_")}})
            since = []
    return found


def table(recipe: Recipe, rows: dict[str, list[Row]], curves: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: accuracy before and after, by K, and along training."""
    parts = [_accuracies(recipe, rows), _sweeps(recipe, rows), _along(curves), _groups(curves)]
    return "\n".join(part for part in parts if part)


def _share(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _lines(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _accuracies(recipe: Recipe, rows: dict[str, list[Row]]) -> str:
    families = (*recipe.mixture, *(family for family in glyphs.FAMILIES if family not in recipe.mixture))
    own = recipe.latents_default
    latents = f", K = {own}" if recipe.stage_options.variant != "text" else ""
    cells = []
    for label, found in rows.items():
        clean = {r.condition.family: r for r in found if _is_clean(r.condition) and r.condition.latents in (own, 0)}
        line = [label, *(_share(clean[family].accuracy, clean[family].interval) for family in families)]
        if recipe.stage_options.variant != "text":
            donor = next((r for r in found if r.condition.replace == "donor"), None)
            markers = next(r for r in found if r.condition.mode == "markers")
            line += [_share(donor.donor, donor.donor_interval), _share(markers.accuracy)]
            line += [_share(clean[families[0]].trigger)]
        cells.append(line)
    header = ["", *(f"`{family}`{latents}" for family in families)]
    if recipe.stage_options.variant != "text":
        header += ["donor's answer", "markers alone", "opens a block"]
    return _lines(header, cells)


def _is_clean(condition: Condition) -> bool:
    return not condition.replace and condition.mode != "markers"


def _sweeps(recipe: Recipe, rows: dict[str, list[Row]]) -> str:
    if recipe.stage_options.variant == "text":
        return ""
    family = next(iter(recipe.mixture))
    found = {
        label: {
            r.condition.latents: r.accuracy for r in each if _is_clean(r.condition) and r.condition.family == family
        }
        for label, each in rows.items()
    }
    counts = sorted({latents for by in found.values() for latents in by})
    cells = [[label, *(_share(by.get(latents)) for latents in counts)] for label, by in found.items()]
    return f"`{family}` by K, in percent:\n\n" + _lines(["", *(f"K = {latents}" for latents in counts)], cells)


def _along(curves: dict[str, list[dict[str, float]]]) -> str:
    steps = [point["step"] for point in next(iter(curves.values()))]
    cells = [[label, *(f"{point['eval_reward']:.3f}" for point in found)] for label, found in curves.items()]
    text = "Mean reward of greedy answers on the validation split, by step:\n\n"
    text += _lines(["", *map(str, steps)], cells)
    header = [
        "",
        "token ratio ± sd",
        "clipped",
        "latent ratio ± sd",
        "clipped",
        "KL of tokens",
        "of latents",
        "opens a block",
    ]
    cells = []
    for label, found in curves.items():
        mean = {name: sum(point.get(name, 0.0) for point in found) / len(found) for name in found[-1]}
        line = [label]
        for kind in ("token", "latent"):
            if f"{kind}_ratio" in mean:
                line += [
                    f"{mean[f'{kind}_ratio']:.3f} ± {mean[f'{kind}_ratio_std']:.3f}",
                    _share(mean[f"{kind}_clipped"]),
                ]
            else:
                line += ["", ""]
        last = found[-1]
        line += [f"{last['token_kl']:.3f}", f"{last['latent_kl']:.3f}" if "latent_kl" in last else ""]
        cells.append([*line, f"{_share(found[0]['trigger'])} to {_share(last['trigger'])}"])
    return (
        text
        + "\nHow far the policy moves: means over the run, KL from the start at its end, blocks first and last:\n\n"
        + _lines(header, cells)
    )


def _groups(curves: dict[str, list[dict[str, float]]]) -> str:
    """How many of a group's responses were right, at the run's beginning and at its end."""
    label, found = next(iter(curves.items()))
    names = [name for name in found[0] if name.startswith("solved_")]
    header = ["", *(name.removeprefix("solved_") for name in names)]
    cells = [
        [when, *(_share(point[name]) for name in names)] for when, point in (("first", found[0]), ("last", found[-1]))
    ]
    return f"Groups of {len(names) - 1} by how many of them were right, in percent ({label}):\n\n" + _lines(
        header, cells
    )
