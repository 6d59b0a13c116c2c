"""Names of checkpoints and runs as people read them."""

import re

from app.view import View, answer

SPELLED = {"lvr": "LVR", "valr": "VaLR", "deeplatent": "DeepLatent", "rl": "RL"}
"""Methods whose names are not written as other words."""
MODES = {"latent": "K {}", "text": "text only", "forced": "forced K {}", "markers": "markers only"}
"""How a run's name tells its mode."""


def run_name(view: View) -> str:
    """The name of a run until it is given another: method, mode, answer."""
    final = answer(view)
    mode = f", {MODES[view.settings.mode].format(view.settings.latents)}" if view.opens else ""
    return f"{method_label(view.checkpoint)}{mode}: {final[0] if final else 'no answer'}"


def method_label(checkpoint: str) -> str:
    """`glyph-monet-faithful` → `Monet faithful`; `owner/Monet-SFT-7B/stage3` → `Monet SFT 7B stage 3`."""
    *_, folder, last = ["", *checkpoint.rstrip("/").split("/")]
    stage = re.fullmatch(r"stage(\d)", last)
    if stage:
        last = f"{folder}-stage-{stage[1]}"
    first, *rest = last.removeprefix("glyph-").split("-")
    return " ".join([SPELLED.get(first.lower(), first.capitalize()), *(SPELLED.get(word, word) for word in rest)])
