"""The settings of a run as a person or a program gives them: one table, in the order in which handlers get the values.

The page's fields and the parameters of /ask are made from it (fields.py), what they bring is read by it (asking.py),
and an instance's limits name its rows (limits.py). What a value may be at all is checked by `latent_core.Settings`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from latent_core.settings import FORMER_NAMES, Rule, Settings

OWN_RULE = "own"
"""Stands for the checkpoint's own attention rule where a field needs a value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """One setting: a field of `latent_core.Settings`, or the app's own `speed`."""

    name: str
    label: str
    """On the page."""
    kind: Literal["choice", "whole", "fraction"]
    """One of `choices`, a whole number, any number."""
    choices: tuple[tuple[str, str], ...] = ()
    """Label and value of each."""
    default: str | int | None = None
    """What it begins with; None: what the checkpoint in view was taught with."""
    step: float | None = None
    """By which the page's field changes a number; None: Gradio's own."""
    limit: str | None = None
    """Field of `Limits` that is the most that an instance gives."""
    called: str | None = None
    """What sentences call it, if not by its name."""
    former: tuple[str, ...] = ()
    """What programs may still call choices, beside their names of today."""
    folded: bool = True
    """Whether the page keeps it under “Sampling, limits, attention rule”."""
    program: bool = True
    """Whether /ask has it as a parameter."""
    optional: bool = False
    """Whether a program may leave it out, for the checkpoint's own."""

    def read(self, value: Any) -> Any:
        """The value as the type that it has. Raises ValueError for any other."""
        words = self.name.replace("_", " ")
        if value is None:
            raise ValueError(f"The setting {words} is empty; write a number.")
        if self.kind == "choice":
            return None if self.name == "rule" and value == OWN_RULE else value
        if type(value) not in (int, float) or (type(value) is float and not math.isfinite(value)):
            raise ValueError(f"The setting {words} is {str(value)[:40]!r}; write a number.")
        return int(value) if self.kind == "whole" else value  # a browser may send 8.0


def k_label(caps: bool) -> str:
    """What K is called: `caps` where a block may hold fewer."""
    return "K, most latents per block" if caps else "K, latents per block"


_MODES = (("Latent", "latent"), ("Text only", "text"), ("Forced", "forced"), ("Markers only", "markers"))
_SPEEDS = (("Real", "real"), ("Slow, 25 a second", "slow"))
_RULES = (("the checkpoint’s own", OWN_RULE), *((rule, rule) for rule in Rule.__args__))
_PLAIN = Settings()

CONTROLS = (
    Control(name="mode", label="Mode", kind="choice", choices=_MODES, default=_PLAIN.mode, folded=False),
    Control(
        name="latents",
        label=k_label(False),
        kind="whole",
        limit="latents",
        called="K",
        folded=False,
        optional=True,
    ),
    Control(name="speed", label="Speed", kind="choice", choices=_SPEEDS, default="slow", folded=False, program=False),
    Control(name="temperature", label="Temperature (0 is greedy)", kind="fraction", step=0.1),
    Control(name="top_p", label="Top p", kind="fraction", step=0.05),
    Control(name="top_k", label="Top k (0 is off)", kind="whole"),
    Control(name="repetition_penalty", label="Repetition penalty", kind="fraction", step=0.1),
    Control(name="max_new_tokens", label="Most tokens", kind="whole", limit="tokens"),
    Control(name="max_blocks", label="Most blocks", kind="whole", limit="blocks", default=_PLAIN.max_blocks),
    Control(name="seed", label="Seed", kind="whole", default=_PLAIN.seed),
    Control(
        name="rule",
        label="Attention rule",
        kind="choice",
        choices=_RULES,
        former=tuple(FORMER_NAMES),
        default=OWN_RULE,
    ),
)
"""In the order of the page."""

_ORDER = {"choice": 0, "whole": 1, "fraction": 1}
PARAMETERS = tuple(sorted((c for c in CONTROLS if c.program), key=lambda c: (c.optional, _ORDER[c.kind])))
"""In the order of /ask: choices, then numbers, then what may be left out."""


def by_name(values: Sequence[Any], controls: tuple[Control, ...] = CONTROLS) -> dict[str, Any]:
    """The values of some controls, given in their order, by their names; without those that were left out."""
    named = zip(controls, values, strict=True)
    return {control.name: value for control, value in named if value is not None or not control.optional}


def read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from outside as `latent_core.Settings` takes them. Raises ValueError with a sentence for the person."""
    known = {control.name: control for control in CONTROLS}
    return {name: known[name].read(value) if name in known else value for name, value in settings.items()}
