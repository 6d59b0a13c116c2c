"""The functions by which each figure is computed; the page shows their docstrings."""

import inspect
from collections.abc import Callable

from latent_core.analysis import attention, geometry, lens, plane, regions, similarity
from latent_core.evaluation.image_decoder import Depicter
from latent_core.model.attention import AttentionRollout

FORMULAS: dict[str, tuple[Callable[..., object], ...]] = {
    "space": (geometry.principal_axes, plane.place_by_neighbours, plane.umap_layout, plane.unit),
    "homogeneity": (geometry.cosine_matrix, geometry.adjacent_cosine, geometry.effective_rank, geometry.rank_at),
    "shares": (attention.shares, attention.entropy, AttentionRollout),
    "norms": (geometry.norm_ratio,),
    "lens": (lens.neighbours, lens.logit_lens),
    "depict": (Depicter,),
    "region": (regions.mass, regions.enrichment, similarity.nearest_patch),
}
"""Figure → the functions behind it."""


def formulas(name: str) -> list[dict[str, str]]:
    """Name and docstring of every function behind a figure."""
    return [{"name": f.__name__, "text": inspect.getdoc(f) or ""} for f in FORMULAS[name]]


def all_formulas() -> dict[str, list[dict[str, str]]]:
    """`formulas` of every figure of the Inspect page."""
    return {figure: formulas(figure) for figure in FORMULAS}
