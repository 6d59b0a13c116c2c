"""`python -m trainers ablations`: each method without one part at a time, on equal short budgets, beside its paper.

Every variant of a table trains the same stages for the same steps, from the same start, and answers the same
questions. All use the attention rule of the embedded checkpoints: under `everything` the answers hardly depend on the
latents, so that no variant could show anything.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latent_core import glyphs, load
from latent_core.embedded import EMBEDDED
from latent_core.files import write_file
from latent_core.study import Condition, Row, Study, wilson
from latent_core.study_rows import run_study
from trainers.recipe import load_recipe
from trainers.start import train

FOLDER = Path("runs/ablations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of a table."""

    name: str
    options: tuple[str, ...] = ()
    """Fields of the first stage's recipe."""
    paper: float | None = None
    """The paper's figure in percent."""
    lower: bool | None = None
    """Where the paper gives no figure: whether it says that this is worse."""
    recipe: str | None = None
    """Another recipe instead of the table's one stage."""
    latents: int | None = None
    """K in decoding, where it is not the table's."""
    sweep: tuple[int, ...] = ()
    """Further K to decode with."""
    replace: bool = True
    """Whether latents are replaced; blocks that end when they like have no latents of another run to take."""
    against: str | None = None
    """The variant that it is compared with; none: the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """One table."""

    checkpoint: str
    """The embedded checkpoint that it stands beside."""
    stages: tuple[tuple[str, int], ...]
    """Recipes and steps, one after the other; each teaches the next."""
    start: str
    """The recipe whose finished run all variants start from and the first stage learns from."""
    figure: str
    """What the paper's figures are."""
    variants: tuple[Variant, ...]
    shared: tuple[str, ...] = ()
    """Fields that all variants share."""
    families: tuple[str, ...] = ("find", "relate", "count")
    latents: int = 8
    """K in decoding."""
    replace: tuple[str, ...] = ("sham", "donor")
    """Interventions, on find."""
    note: str = ""
    """What the reader has to know besides."""


MONET = Ablation(
    checkpoint="glyph-monet",
    stages=(("glyph-monet-stage2", 100), ("glyph-monet", 150)),
    start="glyph-monet-stage1",
    figure="V*",
    shared=("mixture={find: 3, relate: 3, count: 3, trace: 1}",),
    families=glyphs.FAMILIES,
    replace=("sham", "zero", "noise", "permute", "donor"),
    variants=(
        Variant(name="whole method", paper=82.20),
        Variant(name="no latent-only backpropagation", options=("monet.latent_only=false",), paper=46.07),
        Variant(name="no auxiliary image", options=("monet.aux_image=false",), paper=73.30),
        Variant(name="no observation alignment", options=("monet.align_weight=0",), paper=75.39),
        Variant(name="alignment at the last level only", options=("monet.align_levels=last",)),
    ),
)

MLP = "an MLP head"
LVR = Ablation(
    checkpoint="glyph-lvr",
    stages=(("glyph-lvr", 400),),
    start="glyph-latent",
    figure="V*",
    shared=("mixture={find: 3, relate: 4, count: 4}",),
    latents=4,
    note="The exits are compared with the MLP head at its fixed four latents, and may use up to eight.",
    variants=(
        Variant(name="no head, fixed length", options=("method_options={head: none}",), paper=81.7),
        Variant(name=MLP, options=("method_options={head: mlp, width: 128}",), paper=74.4),
        Variant(name="a GLU head", options=("method_options={head: glu, width: 128}",), paper=79.6),
        Variant(
            name="exit by a learned vector",
            options=("method_options={head: mlp, width: 128, exit: latent_end, threshold: 1.0}",),
            latents=8,
            replace=False,
            lower=True,
            against=MLP,
        ),
        Variant(
            name="exit by mode switch",
            options=("method_options={head: mlp, width: 128, exit: mode_switch}",),
            latents=8,
            replace=False,
            lower=True,
            against=MLP,
        ),
    ),
)


def _thoughts(latents: int, paper: float) -> Variant:
    given = (f"latents_min={latents}", f"latents_max={latents}", f"latents_default={latents}")
    return Variant(name=f"K = {latents}", options=given, latents=latents, paper=paper)


VALR = Ablation(
    checkpoint="glyph-valr",
    stages=(("glyph-valr", 80),),
    start="glyph-latent",
    figure="BLINK",
    shared=(
        "mixture={find: 3, relate: 4, count: 4}",
        "valr.encoders=[glyph-dinov2]",
        "latents_min=9",
        "latents_max=9",
    ),
    latents=9,
    note="The whole method is aligned with one encoder, at K = 9 in place of the paper's 16.",
    variants=(
        Variant(name="whole method", paper=62.8),
        Variant(name="no alignment", options=("valr.encoders=[]", "valr.weight=0"), paper=57.1),
        Variant(name="the model's own tower as encoder", options=("valr.encoders=[self]",), paper=58.9),
        Variant(name="two encoders", options=("valr.encoders=[glyph-dinov2, glyph-siglip]",), paper=64.7),
        Variant(name="an early layer (4 of 28)", options=("valr.layer=1",), paper=59.2),
        Variant(name="the last layer (27 of 28)", options=("valr.layer=4",), paper=62.8),
        _thoughts(1, 58.6),
        _thoughts(4, 62.0),
        _thoughts(16, 63.1),
        _thoughts(25, 63.2),
    ),
)

BUDGETS = (4, 9, 16, 25, 36)
DEEPLATENT = Ablation(
    checkpoint="glyph-deeplatent",
    stages=(("glyph-deeplatent", 300),),
    start="glyph-deeplatent-stage1",
    figure="V*",
    shared=("mixture={find: 1}",),
    families=("find",),
    latents=36,
    note="One family alone, for all together take thousands of steps. Fixed grids were trained with 4 to 36 latents.",
    variants=(
        Variant(name="whole method", paper=84.3),
        Variant(name="no LatentFormer block", options=("method_options.blocks=0",), paper=83.2),
        Variant(name="two LatentFormer blocks", options=("method_options.blocks=2",), paper=84.3),
        Variant(name="no latent modulation", options=("method_options.modulate_latents=false",), paper=82.7),
        Variant(name="no image modulation", options=("method_options.modulate_image=false",), paper=83.2),
        Variant(name="no distillation", options=("deeplatent.align_weight=0",), paper=82.1),
        Variant(name="text only", recipe="glyph-text", paper=81.3),
        Variant(name="visual thoughts only", options=("deeplatent.words=false",), paper=80.7),
        Variant(
            name="fixed grids, in parallel",
            options=("method_options.grid=fixed", "latents_min=4", "latents_max=36"),
            sweep=BUDGETS[:-1],
        ),
        Variant(
            name="fixed grids, one by one",
            options=(
                "method_options.grid=fixed",
                "method_options.generation=autoregressive",
                "latents_min=4",
                "latents_max=36",
            ),
            sweep=BUDGETS[:-1],
            lower=True,
            against="fixed grids, in parallel",
        ),
    ),
)
ABLATIONS = {ablation.checkpoint: ablation for ablation in (MONET, LVR, VALR, DEEPLATENT)}


@dataclass(frozen=True, slots=True)
class Result:
    """A variant's answers over all families together."""

    variant: Variant
    rows: list[Row]

    def at(self, latents: int) -> list[Row]:
        """One row per family decoded with K latents, nothing replaced."""
        return [row for row in self.rows if not row.condition.replace and row.condition.latents == latents]

    @property
    def clean(self) -> list[Row]:
        """One row per family, nothing replaced, at the variant's first K."""
        return self.at(self.rows[0].condition.latents)

    @property
    def n(self) -> int:
        return sum(row.n for row in self.clean)

    @property
    def right(self) -> int:
        return right(self.clean)

    def replaced(self, by: str) -> Row | None:
        """The row of `find` with its latents replaced; none for a variant without latents."""
        return next((row for row in self.rows if row.condition.replace == by), None)


def right(rows: Sequence[Row]) -> int:
    """Right answers of all rows together."""
    return sum(round(row.accuracy * row.n) for row in rows)


def ablate(checkpoint: str = "glyph-monet", *, n: int = 500, split: str = "test") -> Path:
    """Trains and measures every variant; returns the Markdown table. Finished parts are not done again.

    Raises ValueError for a checkpoint that has no table.
    """
    if checkpoint not in ABLATIONS:
        raise ValueError(f"There are no ablations of {checkpoint!r}; choose one of {', '.join(ABLATIONS)}.")
    ablation, folder = ABLATIONS[checkpoint], FOLDER / checkpoint
    results = [
        Result(variant, list(_measure(ablation, variant, folder, n=n, split=split))) for variant in ablation.variants
    ]
    report = [dataclasses.asdict(result) for result in results]
    write_file(folder / f"{split}.json", json.dumps(report, indent=1).encode())
    steps = ", then ".join(f"{name} for {budget} steps" for name, budget in ablation.stages)
    text = (
        f"`python -m trainers ablations {checkpoint} --n {n} --split {split}`: seeds 0 to {n - 1}, K = "
        f"{ablation.latents} unless named, greedy; {steps}, one training seed; intervals are 95%. {ablation.note}"
    )
    write_file(folder / f"{split}.md", f"{text.rstrip()}\n\n{table(ablation, results)}".encode())
    if split == "test" and (EMBEDDED / checkpoint).is_dir():
        for kind in ("json", "md"):
            shutil.copy(folder / f"test.{kind}", EMBEDDED / checkpoint / f"ablations.{kind}")
    return folder / f"{split}.md"


def _measure(ablation: Ablation, variant: Variant, folder: Path, *, n: int, split: str) -> Iterator[Row]:
    folder = folder / variant.name.replace(" ", "-")
    final = train_variant(ablation, variant, folder)
    reasoner = load(str(final))
    study = Study(reasoner, lambda family, index: glyphs.sample(family, index, split), n=n, batch=150)
    yield from run_study(
        study, list(conditions(ablation, variant, reasoner.config.rule)), folder / f"{split}-{n}.jsonl"
    )


def conditions(ablation: Ablation, variant: Variant, rule: str) -> Iterator[Condition]:
    """What is measured of a variant."""
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
        given = [
            f"max_steps={ablation.stages[0][1]}",
            ablation.shared[0],
            f"init={start}",
            f"output_dir={folder}/stage1",
        ]
        return train(*load_recipe(variant.recipe, [*given, "eval_strategy='no'"]))
    teacher, options = start, variant.options
    for number, (name, budget) in enumerate(ablation.stages, start=1):
        given = [f"max_steps={budget}", *ablation.shared, f"init={start}", f"output_dir={folder}/stage{number}"]
        if load_recipe(name, [])[0].teacher is not None:
            given.append(f"teacher={teacher}")
        teacher, options = train(*load_recipe(name, [*given, "eval_strategy='no'", *options])), ()
    return teacher


def difference(first: Result, second: Result) -> tuple[float, float, float]:
    """Accuracy of the first minus that of the second, in −1…1, with Newcombe's 95% interval from Wilson's."""
    rates = [result.right / result.n for result in (first, second)]
    (low1, high1), (low2, high2) = (wilson(result.right, result.n) for result in (first, second))
    gap = rates[0] - rates[1]
    low = gap - math.hypot(rates[0] - low1, high2 - rates[1])
    high = gap + math.hypot(high1 - rates[0], rates[1] - low2)
    return gap, low, high


def verdict(gap: float, low: float, high: float, variant: Variant, whole: Variant) -> str:
    """Whether the sign of a difference to the whole method is the paper's."""
    if low <= 0 <= high:
        return "no difference beyond chance"
    found = "lower" if gap < 0 else "higher"
    if variant.paper is None and variant.lower is None:
        return f"{found}; the paper's figure is not at hand"
    if variant.lower is None and variant.paper == whole.paper:
        return f"{found}: in the paper equal"
    lower = variant.lower if variant.lower is not None else variant.paper < whole.paper
    return f"{found}: {'agrees' if (gap < 0) == lower else 'disagrees'}"


def table(ablation: Ablation, results: list[Result]) -> str:
    """Markdown: accuracy per family and over all, the difference to the whole method, the paper's figure."""
    lines = [
        f"| variant | {' | '.join(ablation.families)} | all | minus {ablation.variants[0].name} "
        f"| {ablation.figure} in the paper | sign |",
        "|---" * (len(ablation.families) + 5) + "|",
    ]
    by_name = {result.variant.name: result for result in results}
    for result in results:
        variant = result.variant
        cells = [variant.name, *(f"{100 * row.accuracy:.1f}" for row in result.clean)]
        low, high = wilson(result.right, result.n)
        cells.append(f"{100 * result.right / result.n:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        paper = {True: "worse", False: "better", None: ""}[variant.lower]
        paper = paper if variant.paper is None else f"{variant.paper:.2f}".removesuffix("0")
        if result is results[0]:
            cells += ["", paper, ""]
        else:
            other = by_name[variant.against or ablation.variants[0].name]
            gap, low, high = difference(result, other)
            against = f" (against {variant.against})" if variant.against else ""
            cells += [f"{100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{against}", paper]
            cells.append(verdict(gap, low, high, variant, other.variant))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_replaced(ablation, results), *_swept(results)]) + "\n"


def _replaced(ablation: Ablation, results: list[Result]) -> list[str]:
    """What replacing the latents does to the answers of `find`."""
    words = {"zero": "zeros change", "noise": "noise", "permute": "permuting"}
    shown = [by for by in ablation.replace if by in words]
    lines = [
        "",
        "What becomes of answers to `find` when the latents are replaced, in percent"
        + ("; changes are beyond the sham's:" if shown else ":"),
        "",
        "| variant | opens a block | latents | donor's answer | "
        + "".join(f"{words[by]} | " for by in shown)
        + "neighbours' cosine |",
        "|---" * (5 + len(shown)) + "|",
    ]
    for result in results:
        clean, sham, donor = result.clean[0], result.replaced("sham"), result.replaced("donor")
        if donor is None:
            continue
        cells = [result.variant.name, f"{100 * clean.trigger:.1f}", f"{clean.latents:.1f}"]
        cells.append(
            f"{100 * donor.donor:.1f} [{100 * donor.donor_interval[0]:.1f}, {100 * donor.donor_interval[1]:.1f}]"
        )
        cells += [f"{100 * (result.replaced(by).changed - sham.changed):.1f}" for by in shown]
        lines.append("| " + " | ".join([*cells, "" if clean.cosine is None else f"{clean.cosine:.2f}"]) + " |")
    return lines


def _swept(results: list[Result]) -> list[str]:
    """Accuracy over all families by K, where variants were decoded with several."""
    swept = [result for result in results if result.variant.sweep]
    if not swept:
        return []
    counts = sorted({row.condition.latents for result in swept for row in result.rows})
    lines = ["", "Accuracy over all families by the latents of a block, in percent:", ""]
    lines += ["| variant | " + " | ".join(f"K = {k}" for k in counts) + " |", "|---" * (1 + len(counts)) + "|"]
    for result in swept:
        cells = []
        for k in counts:
            rows = result.at(k)
            found, n = right(rows), sum(row.n for row in rows)
            low, high = wilson(found, n)
            cells.append(f"{100 * found / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append(f"| {result.variant.name} | " + " | ".join(cells) + " |")
    return lines
