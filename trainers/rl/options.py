"""Options of reinforcement learning: the recipe's fields `rl` and `judge`."""

from dataclasses import dataclass, field
from typing import Literal

from latent_core.settings import Settings, check
from trainers.options import check_types


@dataclass(frozen=True, kw_only=True, slots=True)
class RlOptions:
    """Options of stage rl: rollouts, rewards and objective; the defaults are Monet's settings."""

    variant: Literal["text", "constants", "vlpo", "modulation"] = "constants"
    """text: GRPO on tokens alone. constants: latents replayed as constants (GRPO_latent). vlpo: latents have a
    Gaussian ratio. modulation: DeepLatent's modulations are actions (continuous-space GRPO)."""
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
