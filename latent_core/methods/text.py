"""The method without latents: text alone, the baseline of every comparison."""

from latent_core.methods.base import LatentMethod


class Text(LatentMethod):
    """The method without an opening token, so that no block ever opens."""

    name = "text"
