"""Text alone: the same model without latents, the baseline of every comparison."""

from latent_core.methods.base import LatentMethod


class Text(LatentMethod):
    """No opening token, so no block ever opens."""

    name = "text"
