"""The backbones that can be driven, by the model type that config.json names."""

from transformers import PreTrainedConfig, PreTrainedModel

from latent_core.model.backbone import Backbone, ImageGeometry
from latent_core.model.qwen2_5_vl import Qwen2_5_VL

BACKBONES: dict[str, type[Backbone]] = {backbone.model_type: backbone for backbone in (Qwen2_5_VL,)}


def wrap(model: PreTrainedModel) -> Backbone:
    """The backbone around a model of transformers', which it drives and does not copy."""
    return BACKBONES[model.config.model_type](model)


def build(config: PreTrainedConfig) -> Backbone:
    """A backbone with random weights, on the device of the context; on "meta" it has shapes alone."""
    return wrap(BACKBONES[config.model_type].build(config))


def image_geometry(config: PreTrainedConfig) -> ImageGeometry:
    """The image geometry of a backbone of this configuration."""
    return BACKBONES[config.model_type].image_geometry(config)
