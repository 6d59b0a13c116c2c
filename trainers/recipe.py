"""A run is one complete YAML file. Its fields are a Recipe's or a transformers.TrainingArguments'; nothing else."""

import difflib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import TrainingArguments

from latent_core import glyphs
from latent_core.config import Convention, LatentRange, MethodConfig, Sampling
from latent_core.methods import build_method
from latent_core.records import from_json
from latent_core.settings import FORMER_NAMES, MAX_LATENTS, Rule, check, short
from trainers.arguments import NAMES, build_arguments, read_arguments
from trainers.data.formats import FORMATS
from trainers.options import CapOptions, DataOptions, check_types
from trainers.refused import refuse_unused
from trainers.stage import StageSpec
from trainers.stages import STAGES

OBSERVATION_TAGS = "<observation>", "</observation>"
RECIPES = Path(__file__).parent / "recipes"
FORMER_FIELDS = {"everything_share": "causal_share"}
"""Former name of a field → its name now."""
SHARED: dict[str, type] = {"data": DataOptions, "caps": CapOptions, "sampling": Sampling}
"""Fields that hold fields and are the same in every stage; which of `caps` is read differs."""


@dataclass(kw_only=True)
class Recipe:
    """A run as its file says it: what is trained on what; the optimiser's settings are TrainingArguments."""

    name: str
    """Names the run and its checkpoint."""
    description: str
    """One sentence for `python -m trainers list`."""
    stage: str
    """Which loss: a name in trainers.stages.STAGES."""
    method: str = "text"
    """A name in latent_core.methods.METHODS."""
    open_token: str = "<abs_vis_token>"
    """Opens a latent block (latent stages)."""
    close_token: str = "</abs_vis_token>"
    """Closes it."""
    pad_token: str = "<abs_vis_token_pad>"
    """Stands for a latent where ids are written down."""
    init: str | None = None
    """A recipe (its finished run), a checkpoint's name or folder; None starts the tiny Glyphs model from scratch."""
    teacher: str | None = None
    """The frozen model of stages with a teacher: a recipe, or a checkpoint's folder."""
    options: dict[str, object] = field(default_factory=dict)
    """The stage's own fields that hold fields, by name, all of them (StageSpec.options); in YAML they stand beside the
    others."""
    method_options: dict[str, object] = field(default_factory=dict)
    """Options of the method itself (method.json's `options`)."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Glyphs family → weight."""
    data: DataOptions = field(default_factory=DataOptions)
    """Published data, instead of a mixture."""
    caps: CapOptions = field(default_factory=CapOptions)
    """How large images may be, in the stages that read it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    train_vision: bool = True
    """False freezes the vision tower."""
    latents_min: int = 2
    """Smallest K drawn for a batch."""
    latents_max: int = 12
    """Largest K drawn for a batch."""
    latents_default: int = 8
    """K of the finished checkpoint where its user names none."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the finished checkpoint decodes where its user says nothing else: temperature, max_new_tokens, …"""
    system: str | None = None
    """System prompt of every question, while training and afterwards; none: the chat template's own."""
    convention: Convention = "start_fed"
    """What becomes of the opening token's embedding (latent stages), see latent_core/config.py."""
    rule: Rule = "latents_only"
    """Attention rule after a block (latent stages)."""
    causal_share: float = 0.0
    """Share of the batches trained under `causal` instead of `rule`, in 0…1."""
    detach_feedback: bool = False
    """No gradient from a latent's input to the state that it was."""
    val_size: int = 120
    """Validation samples per family; the share that is right word for word gives accuracy_<family>."""
    stop_at: dict[str, float] = field(default_factory=dict)
    """Family → accuracy; training ends once every one is reached on `val`."""
    training: dict[str, object] = field(default_factory=dict)
    """The TrainingArguments that the recipe names; filled in by `parse`."""

    def __post_init__(self) -> None:
        check_types(self)
        spec = self.spec
        strange = ", ".join(self.options.keys() - spec.options.keys())
        check(not strange, f"options has {strange}, which stage {self.stage} does not read; leave it out.")
        self.options = {name: self.options.get(name) or kind() for name, kind in spec.options.items()}
        check(bool(self.name.strip()), "name is empty; the run's folder is named after it.")
        check(self.init is None or bool(self.init.strip()), "init is empty; name a checkpoint, or write init: null.")
        for family, weight in self.mixture.items():
            glyphs.answers(family)
            check(weight > 0, f"mixture.{family} is {weight}; a weight is a positive number.")
        check(
            bool(self.mixture) != bool(self.data.files),
            "A recipe learns either from `mixture` (at least one Glyphs family with its weight) or from `data.files`.",
        )
        for family, value in self.stop_at.items():
            check(family in self.mixture, f"stop_at names {family!r}, which is not in the mixture.")
            check(0 < value <= 1, f"stop_at.{family} is {value}; an accuracy is above 0 and at most 1.")
        check(
            1 <= self.latents_min <= self.latents_max <= MAX_LATENTS,
            f"latents_min is {self.latents_min} and latents_max {self.latents_max}; "
            f"1 ≤ latents_min ≤ latents_max ≤ {MAX_LATENTS} must hold.",
        )
        check(
            spec.questions or FORMATS[self.data.format].reasoning,
            f"data.format {self.data.format} has questions and answers alone; it serves stage "
            f"{', '.join(name for name, other in STAGES.items() if other.questions)}, not {self.stage}.",
        )
        taught = ", ".join(name for name, other in STAGES.items() if other.teacher)
        check(
            spec.teacher == (self.teacher is not None),
            f"teacher is {self.teacher!r} in a {self.stage} stage; {taught} need one, others have none.",
        )
        check(self.val_size > 0, "val_size is 0; validation takes at least 1 sample; eval_strategy: no does without.")
        check(0 <= self.causal_share <= 1, f"causal_share is {self.causal_share}; it is a share, 0 to 1.")

    @property
    def spec(self) -> StageSpec:
        """The stage's row in the table. Raises ValueError for a name that it lacks."""
        check(self.stage in STAGES, f"stage is {short(self.stage)}; choose one of {', '.join(STAGES)}.")
        return STAGES[self.stage]

    @property
    def stage_options(self) -> Any:
        """The stage's own options, the first of `options`; None for a stage without."""
        return next(iter(self.options.values()), None)

    def tokens(self) -> tuple[str, ...]:
        """Control tokens that a method's checkpoint needs, in Monet's order."""
        return self.pad_token, self.open_token, self.close_token, *OBSERVATION_TAGS

    def method_config(self, provenance: dict[str, object] | None = None) -> MethodConfig:
        """The method.json of the finished checkpoint."""
        latent, taught = {}, self.latents_max if self.spec.unrolled else 0
        if self.method != "text":
            latent = dict(
                open_token=self.open_token,
                close_token=self.close_token,
                pad_token=self.pad_token,
                rule=self.rule,
                convention=self.convention,
                latents=LatentRange(default=self.latents_default, max=max(16, self.latents_default, taught)),
                options=self.method_options,
            )
        world = "glyphs" if self.mixture else None
        decoding = dict(system=self.system, sampling=self.sampling)
        return MethodConfig(method=self.method, world=world, provenance=provenance or {}, **decoding, **latent)


def recipes() -> dict[str, Path]:
    """Name → file of every recipe that ships."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def load_recipe(source: str, overrides: list[str]) -> tuple[Recipe, TrainingArguments]:
    """Reads a recipe by name or file, with `field=value` overrides in YAML's notation.

    Raises:
        ValueError: for an unknown recipe, a misspelt field (naming the nearest one) or a bad value.
    """
    shipped = recipes()
    path = shipped.get(source, Path(source))
    if not path.is_file():
        near = difflib.get_close_matches(source, shipped, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no recipe {source!r}.{hint} Known: {', '.join(shipped)}; or give a YAML file.")
    values = _read(path.read_bytes(), str(path))
    check(isinstance(values, dict), f"{path} holds no fields; a recipe is a list of `field: value` lines.")
    for item in overrides:
        name, equals, text = item.removeprefix("--").partition("=")
        *parents, leaf = name.split(".")
        good = bool(equals) and all((*parents, leaf))
        check(good, f"{short(item)} is no override; write field=value, for example learning_rate=1e-3.")
        target = values
        for depth, parent in enumerate(parents, start=1):
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
            holds = isinstance(target, dict)
            check(holds, f"{short(item)} sets a field of {'.'.join(parents[:depth])}, which is {short(target)}.")
        target[leaf] = _read(text.encode(), short(item))
    return parse(values)


class _Loader(yaml.SafeLoader):
    """YAML 1.1, in which 1e-3 is a number, too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read(text: bytes, what: str) -> object:
    """The values of a YAML text. Raises ValueError that says where it is none, as at a bracket that nothing closes."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{what} is not valid YAML: {' '.join(str(error).split())}.") from error
    except ValueError as error:  # 2024-02-31 is a date that there never was
        raise ValueError(f"{what} cannot be read: {error}; put quotes around text.") from error


def parse(values: dict[str, object]) -> tuple[Recipe, TrainingArguments]:
    """Fields → typed dataclasses; every unknown field is an error that names the nearest known one."""
    values = renamed(values)
    ours = {item.name for item in fields(Recipe)} - {"training", "options"}
    nested = nested_fields()
    _check_names(values, ours | nested.keys() | NAMES, "the recipe")
    values, named = dict(values), []
    for name, kind in nested.items():
        if name in values:
            inner, allowed = values[name], [item.name for item in fields(kind)]
            check(isinstance(inner, dict), f"{name} is {short(inner)}; it holds fields such as {allowed[0]}.")
            _check_names(inner, set(allowed), name)
            named += [f"{name}.{inside}" for inside in inner]
            values[name] = from_json(kind, inner, name) if kind is Sampling else kind(**inner)
    for missing in ("name", "description", "stage"):
        check(missing in values, f"The recipe lacks the field {missing!r}.")
    stage = values["stage"]
    exists = isinstance(stage, str) and stage in STAGES
    check(exists, f"stage is {short(stage)}; choose one of {', '.join(STAGES)}.")
    _check_read(stage, named)
    options = {name: values.pop(name) for name in nested.keys() - SHARED.keys() if name in values}
    training = read_arguments({name: value for name, value in values.items() if name not in ours})
    refuse_unused(training)
    defaults = {
        "output_dir": f"runs/{values['name']}",
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "dataloader_drop_last": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    recipe = Recipe(**{n: value for n, value in values.items() if n in ours}, options=options, training=training)
    arguments = build_arguments(defaults | training)
    _check_method(recipe)
    return recipe, arguments


def renamed(values: dict[str, object]) -> dict[str, object]:
    """The fields of a recipe of any version under their names of today, and so what they hold."""
    values = {FORMER_FIELDS.get(name, name): value for name, value in values.items()}
    rule = values.get("rule")
    return values | ({"rule": FORMER_NAMES[rule]} if isinstance(rule, str) and rule in FORMER_NAMES else {})


def nested_fields() -> dict[str, type]:
    """Every field that holds fields, those of all stages, and the dataclass that it holds."""
    return {name: kind for spec in STAGES.values() for name, kind in spec.options.items()} | SHARED


def _check_method(recipe: Recipe) -> None:
    """Refuses a method's options that it cannot have, and a method that the stage has no use for."""
    with torch.device("meta"):
        method = build_method(recipe.method_config(), lambda token: 0)
    spec = recipe.spec
    spec.stage.check(recipe, method)
    check(
        method.has_latents or not spec.latents,
        f"method is {recipe.method!r}, which has no latents for stage {recipe.stage} to teach; name one that has.",
    )
    check(
        spec.method in (None, recipe.method),
        f"stage {recipe.stage} trains method {spec.method}, not {recipe.method!r}.",
    )


def _check_read(stage: str, names: list[str]) -> None:
    """Refuses fields such as monet.align_weight of which the stage would take no notice."""

    def reads(stage: str, name: str) -> bool:
        return not {name, name.partition(".")[0]}.isdisjoint(("data", "sampling", *STAGES[stage].fields))

    for name in names:
        readers = [other for other in STAGES if reads(other, name)]
        check(
            reads(stage, name),
            f"{name} is given, but stage {stage} does not read it ({', '.join(readers)} would); leave it out.",
        )


def _check_names(values: dict[str, object], allowed: set[str], where: str) -> None:
    for name in values:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown field {short(name)} in {where}.{hint}")
