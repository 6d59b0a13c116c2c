"""Inscape's model library: load a checkpoint, stream its text and latents, record, replay and test them.

    from latent_core import load
    trace = load("glyph-monet").run(image, question, latents=8)

What is imported here is loaded on first use, so that `import latent_core` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latent_core import glyphs
    from latent_core.checkpoints.loading import load
    from latent_core.decoding import interventions
    from latent_core.reasoner import Reasoner
    from latent_core.settings import Settings
    from latent_core.trace import Trace

_HOMES = {
    "load": "latent_core.checkpoints.loading",
    "Reasoner": "latent_core.reasoner",
    "Settings": "latent_core.settings",
    "Trace": "latent_core.trace",
}
_MODULES = {"glyphs": "latent_core.glyphs", "interventions": "latent_core.decoding.interventions"}

__all__ = ["Reasoner", "Settings", "Trace", "glyphs", "interventions", "load"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'latent_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
