"""`python -m trainers ablations`: Monet's ablations on equal short budgets, beside what its paper reports.

Every variant trains stage 2 with its own options and stage 3 after it, both from the shared stage 1, and answers the
same questions. All use the attention rule of glyph-monet: under `everything` the answers hardly depend on the latents,
so that no variant could show anything.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latent_core import glyphs, load
from latent_core.embedded import EMBEDDED
from latent_core.files import write_file
from latent_core.study import REPLACEMENTS, Condition, Row, Study, run_study, wilson
from trainers.recipe import load_recipe
from trainers.start import train

FOLDER = Path("runs/ablations")
BUDGET = ("max_steps=100", "max_steps=150")
"""Of stage 2 and of stage 3."""
MIXTURE = "mixture={find: 3, relate: 3, count: 3, trace: 1}"
"""trace, which short runs do not learn, hardly takes part."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One ablation: its options in stage 2, and V* accuracy in percent as the paper gives it."""

    name: str
    options: tuple[str, ...]
    paper: float | None


WHOLE = Variant("whole method", (), 82.20)
VARIANTS = (
    WHOLE,
    Variant("no latent-only backpropagation", ("monet.latent_only=false",), 46.07),
    Variant("no auxiliary image", ("monet.aux_image=false",), 73.30),
    Variant("no observation alignment", ("monet.align_weight=0",), 75.39),
    Variant("alignment at the last level only", ("monet.align_levels=last",), None),
)


@dataclass(frozen=True, slots=True)
class Result:
    """A variant's answers over all families together."""

    variant: Variant
    rows: list[Row]

    @property
    def clean(self) -> list[Row]:
        """One row per family, nothing replaced."""
        return [row for row in self.rows if not row.condition.replace]

    @property
    def n(self) -> int:
        return sum(row.n for row in self.clean)

    @property
    def right(self) -> int:
        return sum(round(row.accuracy * row.n) for row in self.clean)

    def replaced(self, by: str) -> Row:
        """The row of `find` with its latents replaced."""
        return next(row for row in self.rows if row.condition.replace == by)


def ablate(*, n: int = 500, split: str = "test") -> Path:
    """Trains and measures every variant; returns the Markdown table. Finished parts are not done again."""
    results = [Result(variant, list(_measure(variant, n=n, split=split))) for variant in VARIANTS]
    report = [dataclasses.asdict(result) for result in results]
    write_file(FOLDER / f"{split}.json", json.dumps(report, indent=1).encode())
    command = f"`python -m trainers ablations --n {n} --split {split}`: seeds 0 to {n - 1}, K = 8, greedy; stage 2 "
    command += f"{BUDGET[0].removeprefix('max_steps=')} steps, stage 3 {BUDGET[1].removeprefix('max_steps=')} steps, "
    command += "one training seed; intervals are 95%.\n\n"
    write_file(FOLDER / f"{split}.md", (command + table(results)).encode())
    if split == "test":
        for kind in ("json", "md"):
            shutil.copy(FOLDER / f"test.{kind}", EMBEDDED / "glyph-monet" / f"ablations.{kind}")
    return FOLDER / f"{split}.md"


def _measure(variant: Variant, *, n: int, split: str) -> Iterator[Row]:
    folder = FOLDER / variant.name.replace(" ", "-")
    second = _stage("glyph-monet-stage2", BUDGET[0], folder / "stage2", *variant.options)
    final = _stage("glyph-monet", BUDGET[1], folder / "stage3", f"teacher={second}")
    reasoner = load(str(final))
    study = Study(reasoner, lambda family, index: glyphs.sample(family, index, split), n=n)
    rule = reasoner.config.rule
    todo = [Condition(family="find", rule=rule, replace=by) for by in ("", *REPLACEMENTS)]
    todo += [Condition(family=family, rule=rule) for family in glyphs.FAMILIES if family != "find"]
    yield from run_study(study, todo, folder / f"{split}-{n}.jsonl")


def _stage(name: str, budget: str, run: Path, *options: str) -> Path:
    start = Path("runs/glyph-monet-stage1/final")
    recipe, arguments = load_recipe(
        name,
        [budget, MIXTURE, f"output_dir={run}", f"init={start}", f"teacher={start}", "eval_strategy='no'", *options],
    )
    return train(recipe, arguments)


def difference(first: Result, second: Result) -> tuple[float, float, float]:
    """Accuracy of the first minus that of the second, in −1…1, with Newcombe's 95% interval from Wilson's."""
    rates = [result.right / result.n for result in (first, second)]
    (low1, high1), (low2, high2) = (wilson(result.right, result.n) for result in (first, second))
    gap = rates[0] - rates[1]
    low = gap - math.hypot(rates[0] - low1, high2 - rates[1])
    high = gap + math.hypot(high1 - rates[0], rates[1] - low2)
    return gap, low, high


def verdict(gap: float, low: float, high: float, paper: float | None) -> str:
    """Whether the sign of a difference to the whole method is the paper's."""
    if low <= 0 <= high:
        return "no difference beyond chance"
    found = "lower" if gap < 0 else "higher"
    if paper is None:
        return f"{found}; the paper's figure is not at hand"
    return f"{found}: {'agrees' if (gap < 0) == (paper < WHOLE.paper) else 'disagrees'}"


def table(results: list[Result]) -> str:
    """Markdown: accuracy per family and over all, the difference to the whole method, the paper's figure."""
    lines = [
        f"| variant | {' | '.join(glyphs.FAMILIES)} | all | minus whole method | V* in the paper | sign |",
        "|---" * (len(glyphs.FAMILIES) + 5) + "|",
    ]
    for result in results:
        cells = [result.variant.name, *(f"{100 * row.accuracy:.1f}" for row in result.clean)]
        low, high = wilson(result.right, result.n)
        cells.append(f"{100 * result.right / result.n:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        paper = "" if result.variant.paper is None else f"{result.variant.paper:.2f}"
        if result.variant is WHOLE:
            cells += ["", paper, ""]
        else:
            gap, low, high = difference(result, results[0])
            cells += [f"{100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", paper]
            cells.append(verdict(gap, low, high, result.variant.paper))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "What becomes of answers to `find` when the latents are replaced, in percent; changes are beyond the sham's:",
        "",
        "| variant | opens a block | donor's answer | zeros change | noise | permuting | neighbours' cosine |",
        "|---" * 7 + "|",
    ]
    for result in results:
        clean, sham = result.clean[0], result.replaced("sham").changed
        donor = result.replaced("donor")
        cells = [result.variant.name, f"{100 * clean.trigger:.1f}"]
        cells.append(
            f"{100 * donor.donor:.1f} [{100 * donor.donor_interval[0]:.1f}, {100 * donor.donor_interval[1]:.1f}]"
        )
        cells += [f"{100 * (result.replaced(by).changed - sham):.1f}" for by in ("zero", "noise", "permute")]
        lines.append("| " + " | ".join([*cells, f"{clean.cosine:.2f}"]) + " |")
    return "\n".join(lines) + "\n"
