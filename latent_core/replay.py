"""An alias of latent_core.evaluation.replay, which scripts import by this name."""

from latent_core.evaluation.replay import Replay, lens_by_layer, replay

__all__ = ["Replay", "lens_by_layer", "replay"]
