"""A checkpoint's reference bank: states of words, latents and patches, laid out on planes once.

It is what a run's trajectory is drawn on, where the lens finds the words nearest to a latent, and what the run's
homogeneity and rank are compared with. One safetensors file beside the weights, no pickle.

Shapes: R bank vectors, D model width.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from latent_core.analysis.geometry import Axes, principal_axes
from latent_core.analysis.plane import NEIGHBOURS, place_by_neighbours, umap_layout, unit
from latent_core.files import write_file
from latent_core.finite import not_finite

FILE = "bank.safetensors"
"""Its name in a checkpoint's folder."""
KINDS = ("patch", "word", "latent")
MOST = 50_000
"""Vectors of a bank; those that ship have 2,100."""
AXES = 3
"""Principal axes; a plane takes the first two."""


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Vectors after the final norm, and where they lie."""

    vectors: torch.Tensor
    """(R, D)"""
    kinds: torch.Tensor
    """(R,) uint8, numbers in KINDS."""
    labels: tuple[str, ...]
    """(R,) the word, or what the patch or latent is from."""
    layouts: Mapping[str, torch.Tensor]
    """UMAPs by name (see `layout_name`): (R, 2) or (R, 3)."""
    notes: Mapping[str, object]
    """How it was made, and what was measured on the same runs."""

    def rows(self, kind: str) -> torch.Tensor:
        """Row numbers of the vectors of a kind."""
        return (self.kinds == KINDS.index(kind)).nonzero()[:, 0]

    def seen(self, vectors: torch.Tensor, *, scaled: bool) -> torch.Tensor:
        """Vectors as they are laid out: scaled to length 1 or as they are."""
        return unit(vectors) if scaled else vectors.float()

    def axes(self, *, scaled: bool) -> Axes:
        """Principal axes of the bank."""
        return principal_axes(self.seen(self.vectors, scaled=scaled), AXES)

    def umap(self, vectors: torch.Tensor, axes: int, *, scaled: bool) -> torch.Tensor:
        """Coordinates (N, axes) of vectors (N, D) among the bank's."""
        layout = self.layouts[layout_name(axes, scaled=scaled)]
        return place_by_neighbours(self.seen(vectors, scaled=scaled), self.seen(self.vectors, scaled=scaled), layout)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file; vectors in float16. Raises OSError with a plain sentence."""
        tensors = {"vectors": self.vectors.half(), "kinds": self.kinds}
        tensors |= {f"layout.{name}": layout.float() for name, layout in self.layouts.items()}
        content = json.dumps({"labels": self.labels, "notes": self.notes})
        write_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"bank": content}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Bank":
        """Reads what `save` wrote. Raises ValueError that says what is wrong with the file."""
        try:
            with safe_open(path, "pt") as file:
                content = json.loads((file.metadata() or {}).get("bank", "null"))
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            return cls._checked(content, stored)
        except (ValueError, RecursionError, SafetensorError, OSError) as error:
            raise ValueError(f"{Path(path).name} is no reference bank that can be read: {error}") from error

    @classmethod
    def _checked(cls, content: object, stored: dict[str, torch.Tensor]) -> "Bank":
        labels = content.get("labels") if isinstance(content, dict) else None
        notes = content.get("notes") if isinstance(content, dict) else None
        names = {f"layout.{layout_name(axes, scaled=scaled)}" for axes in (2, 3) for scaled in (False, True)}
        if (
            not isinstance(labels, list)
            or not isinstance(notes, dict)
            or stored.keys() != {"vectors", "kinds"} | names
        ):
            raise ValueError("it lacks labels, notes, vectors, kinds or a layout.")
        count = len(labels)
        vectors, kinds = stored["vectors"].float(), stored["kinds"]
        layouts = {name.removeprefix("layout."): stored[name].float() for name in sorted(names)}
        fits = vectors.dim() == 2 and len(vectors) == count and NEIGHBOURS < count <= MOST and kinds.shape == (count,)
        fits = fits and kinds.dtype == torch.uint8 and int(kinds.max()) < len(KINDS)
        fits = fits and all(tuple(layout.shape) == (count, int(name[4])) for name, layout in layouts.items())
        if not fits or not all(isinstance(label, str) for label in labels):
            raise ValueError("its parts do not fit together.")
        if not_finite([("vectors", vectors), *layouts.items()]):
            raise ValueError("it has numbers that are nan or infinite.")
        if not isinstance(notes.get("measured"), list) or not isinstance(notes.get("command"), str):
            raise ValueError("its notes do not say what was measured, and by which command.")
        return cls(vectors, kinds, tuple(labels), layouts, notes)


def layout_name(axes: int, *, scaled: bool) -> str:
    """umap2.raw, umap2.unit, umap3.raw or umap3.unit."""
    return f"umap{axes}.{'unit' if scaled else 'raw'}"


def lay_out(
    vectors: torch.Tensor, kinds: torch.Tensor, labels: tuple[str, ...], notes: Mapping[str, object], *, seed: int = 0
) -> Bank:
    """A bank of vectors (R, D), R > 15, with all four UMAPs; takes seconds to a minute.

    What is stored is float16, so that is what is laid out.
    """
    vectors = vectors.half().float()
    layouts = {
        layout_name(axes, scaled=scaled): umap_layout(unit(vectors) if scaled else vectors, axes, seed=seed)
        for axes in (2, 3)
        for scaled in (False, True)
    }
    return Bank(vectors, kinds, labels, layouts, notes)
