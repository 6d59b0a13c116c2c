"""What stages and methods leave open: the fields of a recipe that hold fields."""

from dataclasses import dataclass, field, fields, is_dataclass
from sys import float_info
from typing import Literal, get_args, get_origin

from latent_core.config import Sampling
from latent_core.settings import Settings, check, short

DataFormat = Literal["monet", "lvr", "virl", "thyme"]


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
        check_types(self, "monet")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Rows of a published format instead of Glyphs."""

    format: DataFormat = "monet"
    """Monet-SFT-125K's, LVR's rows with boxes, or questions and answers alone: ViRL39K's and Thyme-RL's."""
    files: list[str] = field(default_factory=list)
    """JSON or Parquet files, one per subset."""
    root: str = ""
    """Folder that the rows' image paths start from."""
    instruction: str = ""
    """Appended to every question, e.g. how to write the answer down."""
    on_bad_row: Literal["error", "skip"] = "error"
    """skip: bad rows are left out and listed in the run folder's bad_rows.jsonl."""

    def __post_init__(self) -> None:
        check_types(self, "data")


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
        check_types(self, "caps")
        for who in ("", "teacher_"):
            total, each = getattr(self, f"{who}total"), getattr(self, f"{who}each")
            check(bool(total) == bool(each), f"caps.{who}total is {total}, caps.{who}each {each}; set both or none.")


def is_finite(value: int | float) -> bool:
    """Whether a number is one that floats hold, as whole numbers of hundreds of digits are not."""
    return abs(value) <= float_info.max


def check_types(record: object, name: str = "") -> None:
    """Raises ValueError for a field whose value is not of its type; `name` is the field that holds the record."""
    for item in fields(record):
        if is_dataclass(item.type):
            continue
        value = getattr(record, item.name)
        fits, wanted = _fits(value, item.type)
        check(fits, f"{name + '.' if name else ''}{item.name} is {short(value)}; {wanted}.")


def _fits(value: object, kind: object) -> tuple[bool, str]:
    """Whether a value is of a field's type, and what a sentence says where it is not. Numbers are at least 0."""
    allowed = get_args(kind)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in allowed, f"choose one of {', '.join(allowed)}"
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(v, str) for v in value), "it must list paths"
    if get_origin(kind) is dict:
        named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        if allowed[1] is not float:
            return named, "it must hold fields, as {name: value}"
        numbers = named and all(type(v) in (int, float) and is_finite(v) for v in value.values())
        return numbers, "it gives names their numbers, as {name: 1}"
    if type(None) in allowed:
        fits, wanted = _fits(value, allowed[0])
        return value is None or fits, f"{wanted}, or null"
    if kind is str:
        return isinstance(value, str), "it must be text"
    if kind is bool:
        return isinstance(value, bool), "it must be true or false"
    if kind is int:
        whole = type(value) is int and 0 <= value < 2**31
        return whole, f"it must be a whole number of at least 0{' and below 2^31' if type(value) is int else ''}"
    number = type(value) in (int, float) and 0 <= value and is_finite(value)
    return number, "it must be a number of at least 0"


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
        check_types(self, "lvr")


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
        check_types(self, "valr")


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
        check_types(self, "deeplatent")


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
    """Of rollouts; latents do not count."""
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
    rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 0.9, "boxed": 0.1})
    """Reward → weight: names of trainers/rl/rewards.py, or your own function as `package.module:function`."""
    easy: float = 0.6
    """Groups that are right more often teach nothing, nor do those that are never right."""
    former: bool = False
    """Whether DeepLatent's LatentFormer learns, too, under variant modulation (an ablation of the paper)."""
    samples: int = 3
    """Validation questions whose answers are saved at every evaluation, as traces that the page opens."""
    aggregation: Literal["response", "token"] = "response"
    """Mean per response, then over responses (the papers); or over all actions (Monet's released code)."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of densities over their dimensions; sum is faithful."""

    def __post_init__(self) -> None:
        check_types(self, "rl")
        check(bool(self.rewards), "rl.rewards is empty; it gives names their numbers, as {accuracy: 1}.")
        check(self.group > 1, f"rl.group is {self.group}; a group compares at least 2 responses.")
        check(self.updates > 0, f"rl.updates is {self.updates}; at least 1 is needed.")
        check(self.temperature > 0, "rl.temperature is 0; rollouts have to be sampled.")
        check(self.sigma > 0, "rl.sigma is 0; a density has a width.")
        check(self.easy <= 1, f"rl.easy is {self.easy}; it is a share, 0 to 1.")
        try:
            names = ("temperature", "top_p", "top_k", "max_new_tokens", "max_blocks")
            Settings(**{name: getattr(self, name) for name in names})
        except ValueError as error:
            raise ValueError(f"rl: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeOptions:
    """A language model that judges free-form answers, for the reward `judge`."""

    url: str = ""
    """Of the chat completions, e.g. http://localhost:8000/v1/chat/completions."""
    model: str = ""
    """Its name there."""
    key_variable: str = ""
    """The environment variable that holds the key; the key itself stands nowhere."""
    timeout: float = 60.0
    """Seconds for one answer."""
    retries: int = 3
    """Further tries before the run stops."""
    wait: float = 1.0
    """Seconds before the first further try; doubled before each next."""
    workers: int = 8
    """Questions asked at once."""
    cache: str = "runs/judge.jsonl"
    """File of the verdicts."""

    def __post_init__(self) -> None:
        check_types(self, "judge")
        check(self.timeout > 0, "judge.timeout is 0; a judge needs some seconds.")
        check(self.workers > 0, f"judge.workers is {self.workers}; at least 1 is needed.")
        check(bool(self.url) == bool(self.model), "judge.url and judge.model belong together; set both or neither.")
        good = not self.url or self.url.startswith(("http://", "https://"))
        check(good, f"judge.url is {self.url!r}; it begins with http:// or https://.")


NESTED = {
    "judge": JudgeOptions,
    "rl": RlOptions,
    "monet": MonetOptions,
    "lvr": LvrOptions,
    "valr": ValrOptions,
    "deeplatent": DeepLatentOptions,
    "data": DataOptions,
    "caps": CapOptions,
    "sampling": Sampling,
}
"""Fields that hold fields."""
