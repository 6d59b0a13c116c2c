"""The name under which scripts import latent_core.evaluation.replay."""

from latent_core.evaluation.replay import Replay, lens_by_layer, replay

__all__ = ["Replay", "lens_by_layer", "replay"]
