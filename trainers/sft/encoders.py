"""Frozen vision encoders as teachers of latents (VaLR): images → features on a grid of patches. Used in training only.

Any encoder of transformers that returns one state per patch fits (DINOv2, DINOv3, SigLIP, SigLIP2 at a fixed size,
CLIP), as does the model's own vision tower. Another one, of geometry say, needs the two methods of `Encoder`.

Shapes: M images, P patches, E width of the encoder.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from latent_core.assets import ASSETS
from latent_core.finite import not_finite, shortened
from latent_core.model.backbone import Backbone
from latent_core.model.processor import Processor
from latent_core.settings import check

TEACHERS = ASSETS / "teachers"
"""Encoders for Glyphs; `python -m trainers teachers` trains them."""
OWN = "self"
"""Names the model's own vision tower."""

Grid = tuple[int, int]


class Encoder(Protocol):
    """A frozen vision encoder, as a stage calls it: images in, features on a grid of patches out."""

    width: int
    """E."""

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The input of `features`, on the CPU."""

    def features(self, prepared: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[Grid]]:
        """Per image (P, E) row by row, and its grid (rows, columns)."""


class PatchEncoder:
    """A vision transformer of transformers, frozen.

    Images are brought to the encoder's own square without cropping, for every patch counts. Class and register tokens,
    which all these models put in front, are dropped.
    """

    def __init__(self, model: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        model = getattr(model, "vision_model", model)
        self.model = model.requires_grad_(False).eval()
        self.width: int = model.config.hidden_size
        self.size: int = model.config.image_size
        self.grid: Grid = (self.size // model.config.patch_size,) * 2
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """See Encoder; pixels (M, 3, size, size)."""
        square = (self.size, self.size)
        resized = [image.convert("RGB").resize(square, Image.Resampling.BICUBIC) for image in images]
        pixels = (np.stack([np.asarray(image, np.float32) / 255 for image in resized]) - self.mean) / self.std
        return {"pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()}

    @torch.no_grad()
    def features(self, prepared: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[Grid]]:
        """See Encoder."""
        pixels = prepared["pixels"]
        if self.model.device != pixels.device:
            self.model.to(pixels.device)
        states = self.model(pixel_values=pixels.to(self.model.dtype)).last_hidden_state
        patches = self.grid[0] * self.grid[1]
        return list(states[:, states.shape[1] - patches :]), [self.grid] * len(states)


class OwnTower:
    """The model's own vision tower as it was at the start: its merged tokens. Sound only while the tower is frozen."""

    def __init__(self, backbone: Backbone, processor: Processor) -> None:
        self._backbone = (backbone,)  # in a tuple: the stage holds it already
        self.processor, self.width = processor, backbone.width

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """See Encoder."""
        pixels, grids = zip(*(self.processor.patches(image) for image in images), strict=True)
        return {"pixels": torch.cat(pixels), "grids": torch.cat(grids)}

    @torch.no_grad()
    def features(self, prepared: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[Grid]]:
        """See Encoder."""
        (backbone,) = self._backbone
        grids = [(rows, columns) for rows, columns in (prepared["grids"][:, 1:] // backbone.merge_size).tolist()]
        features = backbone.encode_images(prepared["pixels"], prepared["grids"]).tokens
        return list(features.split([rows * columns for rows, columns in grids])), grids


def load_encoder(source: str) -> PatchEncoder:
    """A teacher of TEACHERS by name, a folder or a Hub id; tensors and settings only, never code.

    Raises ValueError with the reason where there is none or where it has no single grid of patches.
    """
    folder = TEACHERS / source if (TEACHERS / source / "config.json").is_file() else source
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source!r} is no encoder that can be loaded: {reason}") from error
    bad = not_finite(model.named_parameters())
    check(not bad, f"{source!r} cannot be learned from: {shortened(bad)} have nan or infinity.")
    config = getattr(model, "vision_model", model).config
    has_grid = all(
        isinstance(getattr(config, name, None), int) for name in ("image_size", "patch_size", "hidden_size")
    )
    check(has_grid, f"{source!r} ({config.model_type}) has no single image_size, patch_size and hidden_size.")
    check("image_mean" in settings, f"{source!r}: preprocessor_config.json names no image_mean.")
    return PatchEncoder(model, settings["image_mean"], settings["image_std"])
