"""The ablations: for each method the variants of one table, what they train, and what its paper says of them.

Every variant of a table trains the same stages for the same steps, from the same start, and answers the same
questions. All use the attention rule of the embedded checkpoints: under `causal` the answers hardly depend on the
latents, so that no variant could show anything.
"""

from dataclasses import dataclass

from latent_core import glyphs


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A variant of a method: one row of an ablation's table."""

    name: str
    options: tuple[str, ...] = ()
    """Fields of the first stage's recipe."""
    paper: float | None = None
    """The paper's figure in percent."""
    lower: bool | None = None
    """Where the paper gives no figure: whether it says that this is worse."""
    recipe: str | None = None
    """Another recipe instead of the table's one stage."""
    latents: int | None = None
    """K in decoding, where it is not the table's."""
    sweep: tuple[int, ...] = ()
    """Further K to decode with."""
    replace: bool = True
    """Whether latents are replaced; blocks that end when they like have no latents of another run to take."""
    against: str | None = None
    """The variant that it is compared with; none: the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """The ablation of one checkpoint: the variants of one table, and what they share."""

    checkpoint: str
    """The embedded checkpoint that it stands beside."""
    stages: tuple[tuple[str, int], ...]
    """Recipes and steps, one after the other; each teaches the next."""
    start: str
    """The recipe whose finished run all variants start from and the first stage learns from."""
    figure: str
    """What the paper's figures are."""
    variants: tuple[Variant, ...]
    shared: tuple[str, ...] = ()
    """Fields that all variants share."""
    families: tuple[str, ...] = ("find", "relate", "count")
    latents: int = 8
    """K in decoding."""
    replace: tuple[str, ...] = ("sham", "donor")
    """Interventions, on find."""
    note: str = ""
    """What the reader has to know besides."""


MONET = Ablation(
    checkpoint="glyph-monet",
    stages=(("glyph-monet-stage2", 100), ("glyph-monet", 150)),
    start="glyph-monet-stage1",
    figure="V*",
    shared=("mixture={find: 3, relate: 3, count: 3, trace: 1}",),
    families=glyphs.FAMILIES,
    replace=("sham", "zero", "noise", "permute", "donor"),
    variants=(
        Variant(name="whole method", paper=82.20),
        Variant(name="no latent-only backpropagation", options=("monet.latent_only=false",), paper=46.07),
        Variant(name="no auxiliary image", options=("monet.aux_image=false",), paper=73.30),
        Variant(name="no observation alignment", options=("monet.align_weight=0",), paper=75.39),
        Variant(name="alignment at the last level only", options=("monet.align_levels=last",)),
    ),
)

MLP = "an MLP head"
LVR = Ablation(
    checkpoint="glyph-lvr",
    stages=(("glyph-lvr", 400),),
    start="glyph-latent",
    figure="V*",
    shared=("mixture={find: 3, relate: 4, count: 4}",),
    latents=4,
    note="The exits are compared with the MLP head at its fixed four latents, and may use up to eight.",
    variants=(
        Variant(name="no head, fixed length", options=("method_options={head: none}",), paper=81.7),
        Variant(name=MLP, options=("method_options={head: mlp, width: 128}",), paper=74.4),
        Variant(name="a GLU head", options=("method_options={head: glu, width: 128}",), paper=79.6),
        Variant(
            name="exit by a learned vector",
            options=("method_options={head: mlp, width: 128, exit: latent_end, threshold: 1.0}",),
            latents=8,
            replace=False,
            lower=True,
            against=MLP,
        ),
        Variant(
            name="exit by mode switch",
            options=("method_options={head: mlp, width: 128, exit: mode_switch}",),
            latents=8,
            replace=False,
            lower=True,
            against=MLP,
        ),
    ),
)


def _with_latents(latents: int, paper: float) -> Variant:
    options = (f"latents_min={latents}", f"latents_max={latents}", f"latents_default={latents}")
    return Variant(name=f"K = {latents}", options=options, latents=latents, paper=paper)


VALR = Ablation(
    checkpoint="glyph-valr",
    stages=(("glyph-valr", 80),),
    start="glyph-latent",
    figure="BLINK",
    shared=(
        "mixture={find: 3, relate: 4, count: 4}",
        "valr.encoders=[glyph-dinov2]",
        "latents_min=9",
        "latents_max=9",
    ),
    latents=9,
    note="The whole method is aligned with one encoder, at K = 9 in place of the paper's 16.",
    variants=(
        Variant(name="whole method", paper=62.8),
        Variant(name="no alignment", options=("valr.encoders=[]", "valr.weight=0"), paper=57.1),
        Variant(name="the model's own tower as encoder", options=("valr.encoders=[self]",), paper=58.9),
        Variant(name="two encoders", options=("valr.encoders=[glyph-dinov2, glyph-siglip]",), paper=64.7),
        Variant(name="an early layer (4 of 28)", options=("valr.layer=1",), paper=59.2),
        Variant(name="the last layer (27 of 28)", options=("valr.layer=4",), paper=62.8),
        _with_latents(1, 58.6),
        _with_latents(4, 62.0),
        _with_latents(16, 63.1),
        _with_latents(25, 63.2),
    ),
)

BUDGETS = (4, 9, 16, 25, 36)
DEEPLATENT = Ablation(
    checkpoint="glyph-deeplatent",
    stages=(("glyph-deeplatent", 300),),
    start="glyph-deeplatent-stage1",
    figure="V*",
    shared=("mixture={find: 1}",),
    families=("find",),
    latents=36,
    note="One family alone, for all together take thousands of steps. Fixed grids were trained with 4 to 36 latents.",
    variants=(
        Variant(name="whole method", paper=84.3),
        Variant(name="no LatentFormer block", options=("method_options.blocks=0",), paper=83.2),
        Variant(name="two LatentFormer blocks", options=("method_options.blocks=2",), paper=84.3),
        Variant(name="no latent modulation", options=("method_options.modulate_latents=false",), paper=82.7),
        Variant(name="no image modulation", options=("method_options.modulate_image=false",), paper=83.2),
        Variant(name="no distillation", options=("deeplatent.align_weight=0",), paper=82.1),
        Variant(name="text only", recipe="glyph-text", paper=81.3),
        Variant(name="visual thoughts only", options=("deeplatent.words=false",), paper=80.7),
        Variant(
            name="fixed grids, in parallel",
            options=("method_options.grid=fixed", "latents_min=4", "latents_max=36"),
            sweep=BUDGETS[:-1],
        ),
        Variant(
            name="fixed grids, one by one",
            options=(
                "method_options.grid=fixed",
                "method_options.generation=autoregressive",
                "latents_min=4",
                "latents_max=36",
            ),
            sweep=BUDGETS[:-1],
            lower=True,
            against="fixed grids, in parallel",
        ),
    ),
)
ABLATIONS = {ablation.checkpoint: ablation for ablation in (MONET, LVR, VALR, DEEPLATENT)}
