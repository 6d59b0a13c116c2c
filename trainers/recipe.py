"""A run is one complete YAML file. Its fields are a Recipe's or a transformers.TrainingArguments'; nothing else."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from latent_core import glyphs
from latent_core.config import LatentRange, MethodConfig
from latent_core.settings import MAX_LATENTS, Rule, check

OBSERVATION_TAGS = "<observation>", "</observation>"
RECIPES = Path(__file__).parent / "recipes"
Stage = Literal[
    "vision", "text", "latent", "monet1", "monet2", "monet3", "lvr", "valr", "deeplatent1", "deeplatent2", "rl"
]
TAUGHT: tuple[Stage, ...] = ("monet2", "monet3", "deeplatent2")
"""Stages with a frozen teacher."""
UNROLLED: tuple[Stage, ...] = ("latent", "monet2", "monet3", "valr", "deeplatent2")
"""Stages that generate latents while training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonetOptions:
    """What Monet's stages leave open, or what its paper and its released code decide differently."""

    observation_factor: float = 1.0
    """Weight of an observation's words in the cross-entropy; the paper takes 2 in stage 1 and 4 later."""
    align_weight: float = 2.0
    """α of stage 2, β of stage 3; 0 leaves the alignment out (an ablation of the paper)."""
    align_axis: Literal["hidden", "token"] = "hidden"
    """What the cosine runs over: the model's width as in the equations, or the tokens as in the released code."""
    align_levels: Literal["all", "last"] = "all"
    """Which levels of hidden states are aligned; the paper's ablation keeps the last."""
    latent_only: bool = True
    """Whether stage 2's alignment reaches parameters through the latents alone (False: an ablation)."""
    surrogate_weight: float = 1.0
    """Factor on stage 2's surrogate; the released scripts multiply by 2 once more."""
    aux_image: bool = True
    """Whether stage 2's student is shown the auxiliary image (False: an ablation)."""
    aux_readers: Literal["latents", "open+latents"] = "latents"
    """Who sees it: the block's latents, or its opening token too, whose state is latent 1 under `start_fed`."""
    aux_self: bool = True
    """Whether its tokens see each other; released: False."""
    latent_pass_mask: Literal["same", "causal"] = "same"
    """Mask of the pass that generates stage 2's latents: the losses' own; released: none for images and thoughts."""
    target_mask: Literal["flow", "none"] = "flow"
    """Mask of the pass that makes stage 3's targets; the released script builds it and does not pass it."""
    observation_tags: Literal["strip", "context"] = "strip"
    """context: `<observation>` and `</observation>` stand around observations, unlearned, as released. The closing
    token of a block then never learns what follows it."""

    def __post_init__(self) -> None:
        _check_options(self, "monet")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Rows of a published format instead of Glyphs."""

    format: Literal["monet", "lvr"] = "monet"
    """Monet-SFT-125K's, or LVR's rows with boxes."""
    files: list[str] = field(default_factory=list)
    """JSON files, one per subset."""
    root: str = ""
    """Folder that the rows' image paths start from."""
    on_bad_row: Literal["error", "skip"] = "error"
    """skip: bad rows are left out and listed in the run folder's bad_rows.jsonl."""

    def __post_init__(self) -> None:
        _check_options(self, "data")


@dataclass(frozen=True, kw_only=True, slots=True)
class CapOptions:
    """Caps on a row's images in tokens of the language model (28 × 28 pixels of Qwen2.5-VL); 0: none."""

    total: int = 0
    """All images of a row, the question's and the auxiliary ones together."""
    each: int = 0
    """One image of a row above `total`."""
    teacher_total: int = 0
    """As `total`, for the teacher's rows."""
    teacher_each: int = 0
    """As `each`, for the teacher's rows."""

    def __post_init__(self) -> None:
        _check_options(self, "caps")
        for who in ("", "teacher_"):
            total, each = getattr(self, f"{who}total"), getattr(self, f"{who}each")
            check(bool(total) == bool(each), f"caps.{who}total is {total}, caps.{who}each {each}; set both or none.")


def _check_options(options: object, name: str) -> None:
    """Checks values against the fields' types."""
    for item in fields(options):
        value, allowed = getattr(options, item.name), get_args(item.type)
        what = f"{name}.{item.name} is {value!r}"
        if item.type == list[str]:
            check(isinstance(value, list) and all(isinstance(v, str) for v in value), f"{what}; it must list paths.")
        elif item.type == int | None:
            ok = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
            check(ok, f"{what}; it must be a whole number of at least 0, or null.")
        elif item.type is str:
            check(isinstance(value, str), f"{what}; it must be a path.")
        elif allowed:
            check(value in allowed, f"{what}; choose one of {', '.join(allowed)}.")
        elif item.type is bool:
            check(isinstance(value, bool), f"{what}; it must be true or false.")
        else:
            number = isinstance(value, int if item.type is int else (int, float)) and not isinstance(value, bool)
            kind = "a whole number" if item.type is int else "a number"
            check(number and value >= 0, f"{what}; it must be {kind} of at least 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class LvrOptions:
    """What LVR's stage leaves open."""

    weight: float = 0.1
    """Of the reconstruction of the slots' embeddings beside the cross-entropy."""
    loss: Literal["mse", "mae", "cosine"] = "mse"
    """Between a slot's embedding and the state before it, in float32."""
    slots_max: int = 0
    """Most slots of a block, thinned out above, see `step_slots`; 0: no cap, as released."""
    switch_weight: float = 0.1
    """Of the mode-switch loss, where the method's exit is `mode_switch`."""

    def __post_init__(self) -> None:
        _check_options(self, "lvr")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValrOptions:
    """What VaLR's stage 2 leaves open."""

    weight: float = 0.5
    """λ of the alignment beside the cross-entropy; 0 leaves it out (an ablation of the paper)."""
    encoders: list[str] = field(default_factory=list)
    """Names, folders or Hub ids of vision encoders; `self` is the model's own tower. Several: mean of their losses."""
    layer: int | None = None
    """The decoder block, 0-based, whose states are aligned; none: block 12 of 28, as far down in other models."""
    states: Literal["producers", "slots"] = "producers"
    """producers: positions whose outputs become the latents. slots: the latents' own."""
    upsample: Literal["2d", "1d"] = "2d"
    """From K states to the encoder's patches: as a square (K is then a square number) or as a line."""
    projector: int = 2048
    """Width inside ψ."""
    projector_rate: float = 0.0
    """Learning rate of ψ; 0: that of all."""
    blocks: Literal["each_step", "first_step"] = "each_step"
    """Before which steps a block stands."""

    def __post_init__(self) -> None:
        _check_options(self, "valr")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLatentOptions:
    """What DeepLatent's supervised stages leave open."""

    align_weight: float = 4.0
    """Of the alignment with the teacher's states; 0 leaves it out (an ablation of the paper)."""
    align_levels: Literal["all", "last"] = "all"
    """Which levels of hidden states are aligned."""
    scale_weight: float = 0.5
    """Of the scale head's cross-entropy, where the grid is dynamic."""
    words: bool = True
    """False trains on thoughts and answers alone, without text between them (an ablation of the paper)."""

    def __post_init__(self) -> None:
        _check_options(self, "deeplatent")


@dataclass(frozen=True, kw_only=True, slots=True)
class RlOptions:
    """What reinforcement learning leaves open; the defaults are Monet's settings."""

    variant: Literal["text", "constants", "vlpo", "modulation"] = "constants"
    """text: GRPO on words alone. constants: latents replayed as constants (GRPO_latent). vlpo: latents have a Gaussian
    ratio. modulation: DeepLatent's modulations are actions (continuous-space GRPO)."""
    group: int = 8
    """Responses per prompt."""
    updates: int = 4
    """Steps per batch of rollouts."""
    temperature: float = 0.5
    """Of rollouts; log-probabilities are those of logits / temperature."""
    top_p: float = 0.99
    """Of rollouts."""
    top_k: int = 0
    """Of rollouts; 0: none."""
    max_new_tokens: int = 128
    """Of rollouts, latents included."""
    max_blocks: int = 4
    """Of rollouts."""
    low: float = 0.2
    """Ratios are clipped below 1 − low."""
    high: float = 0.3
    """Ratios are clipped above 1 + high."""
    dual: float = 3.0
    """Dual clip of actions with a negative advantage; 0: none."""
    kl: float = 0.01
    """Weight of the divergence from the policy at the start."""
    sigma: float = 10.0
    """σ of VLPO's ratio for deterministic latents."""
    noise: float = 0.0
    """ρ: latents of VLPO's rollouts are sampled with ρ times their root mean square; 0: deterministic."""
    accuracy_weight: float = 0.9
    """Of the answer in the reward."""
    format_weight: float = 0.1
    """Of `\\boxed{…}` in the reward."""
    bonus: float = 0.0
    """Of opening a block."""
    easy: float = 0.6
    """Groups that are right more often teach nothing, nor do those that are never right."""
    aggregation: Literal["response", "token"] = "response"
    """Mean per response, then over responses (the papers); or over all actions (Monet's released code)."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of densities over their dimensions; sum is faithful."""

    def __post_init__(self) -> None:
        _check_options(self, "rl")
        check(self.group > 1, f"rl.group is {self.group}; a group compares at least 2 responses.")
        check(self.updates > 0, f"rl.updates is {self.updates}; at least 1 is needed.")
        check(self.temperature > 0, "rl.temperature is 0; rollouts have to be sampled.")


NESTED = {
    "rl": RlOptions,
    "monet": MonetOptions,
    "lvr": LvrOptions,
    "valr": ValrOptions,
    "deeplatent": DeepLatentOptions,
    "data": DataOptions,
    "caps": CapOptions,
}
"""Fields that hold fields."""


@dataclass(kw_only=True)
class Recipe:
    """What is trained on what; the optimiser's settings are TrainingArguments."""

    name: str
    """Names the run and its checkpoint."""
    description: str
    """One sentence for `python -m trainers list`."""
    stage: Stage
    """Which loss: trainers/sft/<stage>.py."""
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
    """The frozen model of the stages in TAUGHT: a recipe, or a checkpoint's folder."""
    monet: MonetOptions = field(default_factory=MonetOptions)
    """Options of stages monet1, monet2 and monet3."""
    lvr: LvrOptions = field(default_factory=LvrOptions)
    """Options of stage lvr."""
    valr: ValrOptions = field(default_factory=ValrOptions)
    """Options of stage valr."""
    deeplatent: DeepLatentOptions = field(default_factory=DeepLatentOptions)
    """Options of stages deeplatent1 and deeplatent2."""
    rl: RlOptions = field(default_factory=RlOptions)
    """Options of stage rl."""
    method_options: dict[str, object] = field(default_factory=dict)
    """What the method itself leaves open (method.json's `options`)."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Glyphs family → weight."""
    data: DataOptions = field(default_factory=DataOptions)
    """Published data, instead of a mixture."""
    caps: CapOptions = field(default_factory=CapOptions)
    """How large images may be (Monet's and DeepLatent's stages)."""
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
    rule: Rule = "latents_only"
    """Attention rule after a block (latent stages)."""
    everything_share: float = 0.0
    """Share of the batches trained under `everything` instead of `rule`, in 0…1."""
    detach_feedback: bool = False
    """No gradient from a latent's input to the state that it was."""
    val_size: int = 120
    """Validation samples per family; the share that is right word for word gives accuracy_<family>."""
    stop_at: dict[str, float] = field(default_factory=dict)
    """Family → accuracy; training ends once every one is reached on `val`."""
    training: dict[str, object] = field(default_factory=dict)
    """The TrainingArguments that the recipe names; filled in by `parse`."""

    def __post_init__(self) -> None:
        for family, weight in self.mixture.items():
            glyphs.answers(family)
            check(weight > 0, f"mixture.{family} is {weight}; a weight is a positive number.")
        check(
            bool(self.mixture) != bool(self.data.files),
            "A recipe learns either from `mixture` (at least one Glyphs family with its weight) or from `data.files`.",
        )
        check(self.dtype in ("float32", "bfloat16"), f"dtype is {self.dtype!r}; choose one of float32, bfloat16.")
        for family, value in self.stop_at.items():
            check(family in self.mixture, f"stop_at names {family!r}, which is not in the mixture.")
            check(0 < value <= 1, f"stop_at.{family} is {value}; an accuracy is above 0 and at most 1.")
        check(self.stage in get_args(Stage), f"stage is {self.stage!r}; choose one of {', '.join(get_args(Stage))}.")
        check(self.rule in get_args(Rule), f"rule is {self.rule!r}; choose one of {', '.join(get_args(Rule))}.")
        check(
            1 <= self.latents_min <= self.latents_max <= MAX_LATENTS,
            f"latents_min is {self.latents_min} and latents_max {self.latents_max}; "
            f"1 ≤ latents_min ≤ latents_max ≤ {MAX_LATENTS} must hold.",
        )
        needs_teacher = self.stage in TAUGHT
        check(
            needs_teacher == (self.teacher is not None),
            f"teacher is {self.teacher!r} in a {self.stage} stage; {', '.join(TAUGHT)} need one, others have none.",
        )
        check(0 <= self.everything_share <= 1, f"everything_share is {self.everything_share}; it is a share, 0 to 1.")

    def tokens(self) -> tuple[str, ...]:
        """Control tokens that a method's checkpoint needs, in Monet's order."""
        return self.pad_token, self.open_token, self.close_token, *OBSERVATION_TAGS

    def method_config(self, provenance: dict[str, object] | None = None) -> MethodConfig:
        """What the finished checkpoint says about itself."""
        latent = {}
        if self.method != "text":
            latent = dict(
                open_token=self.open_token,
                close_token=self.close_token,
                pad_token=self.pad_token,
                rule=self.rule,
                latents=LatentRange(default=self.latents_default, max=max(16, self.latents_default)),
                options=self.method_options,
            )
        world = "glyphs" if self.mixture else None
        return MethodConfig(method=self.method, world=world, provenance=provenance or {}, **latent)


def recipes() -> dict[str, Path]:
    """Name → file of every recipe that ships."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def load_recipe(source: str, overrides: list[str]) -> tuple[Recipe, TrainingArguments]:
    """Reads a recipe by name or file, with `field=value` overrides in YAML's notation.

    Raises:
        ValueError: for an unknown recipe, a misspelt field (naming the nearest one) or a bad value.
    """
    known = recipes()
    path = known.get(source, Path(source))
    if not path.is_file():
        near = difflib.get_close_matches(source, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no recipe {source!r}.{hint} Known: {', '.join(known)}; or give a YAML file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from error
    check(isinstance(values, dict), f"{path} holds no fields; a recipe is a list of `field: value` lines.")
    for item in overrides:
        name, equals, text = item.removeprefix("--").partition("=")
        check(bool(equals), f"{item!r} is no override; write field=value, for example learning_rate=1e-3.")
        target = values
        *parents, leaf = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = yaml.safe_load(text)
    return parse(values)


def parse(values: dict[str, object]) -> tuple[Recipe, TrainingArguments]:
    """Fields → typed dataclasses; every unknown field is an error that names the nearest known one."""
    ours = {item.name for item in fields(Recipe)} - {"training"}
    known = ours | {item.name for item in fields(TrainingArguments)}
    _check_names(values, known, "the recipe")
    values = dict(values)
    for name, kind in NESTED.items():
        if name in values:
            given, inner = values[name], [item.name for item in fields(kind)]
            check(isinstance(given, dict), f"{name} is {given!r}; it holds fields such as {inner[0]}.")
            _check_names(given, set(inner), name)
            values[name] = kind(**given)
    for missing in ("name", "description", "stage"):
        check(missing in values, f"The recipe lacks the field {missing!r}.")
    for item in fields(TrainingArguments):
        if item.name in values and type(item.default) in (int, float):
            values[item.name] = _number(item.name, values[item.name], type(item.default))
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if values.get(name) is False:  # YAML 1.1 reads no as false
            values[name] = "no"
    given = {name: value for name, value in values.items() if name not in ours}
    defaults = {
        "output_dir": f"runs/{values['name']}",
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_total_limit": 2,
        "dataloader_drop_last": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        recipe = Recipe(**{name: value for name, value in values.items() if name in ours}, training=given)
        (arguments,) = HfArgumentParser((TrainingArguments,)).parse_dict(defaults | given)
    except TypeError as error:
        raise ValueError(f"A field of the recipe has the wrong type: {error}.") from error
    return recipe, arguments


def _check_names(values: dict[str, object], known: set[str], where: str) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown field {name!r} in {where}.{hint}")


def _number(name: str, value: object, kind: type) -> int | float:
    """A number as `kind` says; YAML 1.1 reads 1e-3 as text, which is a number all the same."""
    try:
        number = float(value) if isinstance(value, str) else value
        if isinstance(number, (int, float)) and (kind is float or number == int(number)):
            return kind(number)
    except ValueError:
        pass
    raise ValueError(f"{name} is {value!r}; it must be {'a whole number' if kind is int else 'a number'}.")
