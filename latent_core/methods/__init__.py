"""The methods, by the name that method.json gives. How to add one: README.md in this folder."""

from collections.abc import Callable

from latent_core.config import MethodConfig
from latent_core.methods.base import LatentMethod
from latent_core.methods.deeplatent import DeepLatent
from latent_core.methods.lvr import Lvr
from latent_core.methods.monet import Monet
from latent_core.methods.text import Text
from latent_core.methods.valr import Valr

METHODS: dict[str, type[LatentMethod]] = {method.name: method for method in (Text, Monet, Lvr, Valr, DeepLatent)}


def build_method(config: MethodConfig, token_id: Callable[[str], int]) -> LatentMethod:
    """The configured method. Raises ValueError for a name that no method has."""
    if config.method not in METHODS:
        raise ValueError(f"Unknown method {config.method!r}; this version knows {', '.join(METHODS)}.")
    return METHODS[config.method](config, token_id)


__all__ = ["METHODS", "DeepLatent", "LatentMethod", "Lvr", "Monet", "Text", "Valr", "build_method"]
