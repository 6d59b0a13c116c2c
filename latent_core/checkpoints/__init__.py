"""Checkpoints: finding, fetching, loading, saving and placing them.

What is imported here is loaded on first use, for the names of the embedded ones are asked for without any model code.
"""

from importlib import import_module

_LOADING = ("find", "load", "load_model", "planned", "save")


def __getattr__(name: str) -> object:
    if name in _LOADING:
        return getattr(import_module("latent_core.checkpoints.loading"), name)
    raise AttributeError(f"module 'latent_core.checkpoints' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LOADING]
