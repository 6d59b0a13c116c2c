"""DeepLatent: a grid of latents at once, made from the question's image (arXiv 2606.00562).

Behind the opening token stand three learned vectors. Their states say how large the grid is (scale), move a learned
template of queries (latent modulation) and move the image's features (image modulation); the LatentFormer makes the
latents of both, and they enter in one forward with the closing token. No code of the authors is public: whatever their
text leaves open is a field of `DeepLatentOptions`.

Shapes: N = rows · columns latents, T image tokens of all the question's images, D model width.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from latent_core.config import MethodConfig
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Context, Feed
from latent_core.model.slot_types import IMAGE
from latent_core.records import from_json
from latent_core.settings import check

Grid = tuple[int, int]
SIDE = 16
"""Most rows and most columns of a grid; the frame that all coordinates are scaled to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLatentOptions:
    """The options of DeepLatent. [S] stated by the authors, [R] reconstructed, [?] unknown."""

    width: int
    """D."""
    heads: int = 4
    """Of the LatentFormer [?]."""
    blocks: int = 1
    """Blocks of the LatentFormer; 0 and 2 are ablations [S]."""
    feed_forward: int = 0
    """Width inside a block's feed-forward part; 0: none [?]."""
    grid: Literal["dynamic", "fixed"] = "dynamic"
    """dynamic: as the scale head says, at most K latents [S]. fixed: the squarest grid of at most K."""
    generation: Literal["parallel", "autoregressive"] = "parallel"
    """autoregressive: states fed back one by one, as a counterpart for sweeps of the budget."""
    modulate_latents: bool = True
    """Whether the template is moved (False: an ablation)."""
    modulate_image: bool = True
    """Whether the image's features are moved (False: an ablation)."""
    positions: Literal["image", "text"] = "image"
    """image: latent (i, j) stands where an image's token would, as the teacher's did [R]. text: one after another."""
    antialias: bool = False
    """Of the template's resizing [?]."""
    noise: float = 0.1
    """σ at the start over the root mean square of what it is added to, while training [R]."""
    noise_floor: float = 0.02
    """The smallest such share [R]."""
    rope_base: float = 100.0
    """Of the LatentFormer's rotary positions, whose coordinates end at 16 [?]."""

    def __post_init__(self) -> None:
        check(self.width > 0, f"options.width is {self.width}; it must be the model's width D.")
        fits = self.heads > 0 and self.width % (4 * self.heads) == 0
        check(fits, f"options.heads is {self.heads}; D / heads must be a multiple of 4, D is {self.width}.")
        check(
            0 <= self.noise_floor <= self.noise,
            f"options.noise_floor is {self.noise_floor} and noise {self.noise}; 0 ≤ noise_floor ≤ noise must hold.",
        )


def fit(grid: Grid, most: int) -> Grid:
    """The grid, or the largest of about its shape with at most `most` cells."""
    rows, columns = grid
    if rows * columns <= most:
        return grid
    factor = math.sqrt(most / (rows * columns))
    rows = min(most, max(1, math.floor(rows * factor)))
    return rows, min(most // rows, max(1, math.floor(columns * factor)))


def squarest(most: int) -> Grid:
    """The squarest grid of at most `most` cells: 8 → 2 × 4, 9 → 3 × 3."""
    rows = math.isqrt(most)
    return rows, most // rows


def centres(grid: Grid) -> torch.Tensor:
    """(N, 2) centres of a grid's cells, row by row, in a frame of SIDE × SIDE whatever the grid."""
    rows, columns = grid
    down = (torch.arange(rows) + 0.5) * SIDE / rows
    across = (torch.arange(columns) + 0.5) * SIDE / columns
    return torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).flatten(0, 1)


def image_tokens(prompt: Feed) -> tuple[torch.Tensor, torch.Tensor]:
    """The image tokens (T, D) of a prompt and their centres (T, 2), every image in a frame of its own."""
    is_image = torch.tensor([slot_type == IMAGE for slot_type in prompt.slots.types])
    features = prompt.embeds[is_image.to(prompt.embeds.device)]
    if not is_image.any():
        return features, torch.zeros(0, 2)
    places = prompt.slots.positions[:, is_image]
    places_of_images = []
    for start in places[0].unique_consecutive().tolist():  # an image's tokens share their temporal position
        grid = places[1:, places[0] == start].amax(1) - start + 1
        places_of_images.append(centres((int(grid[0]), int(grid[1]))))
    return features, torch.cat(places_of_images)


@dataclass(frozen=True, slots=True)
class Modulated:
    """The Gaussian N(γ ⊙ x + β, σ²) that a state makes of vectors x (N, D), in float32."""

    scale: torch.Tensor
    """γ (D,)"""
    shift: torch.Tensor
    """β (D,)"""
    sigma: torch.Tensor
    """σ (D,)"""

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D)"""
        return self.scale * x.float() + self.shift

    def at(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(N, D) the value for noise ε (N, D)."""
        return self.mean(x) + self.sigma * noise

    def log_density(self, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(N, D) log N(value; γ ⊙ x + β, σ²)."""
        away = (value - self.mean(x)) / self.sigma
        return -0.5 * away.square() - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def divergence(self, other: "Modulated", x: torch.Tensor) -> torch.Tensor:
        """(N, D) KL(self ‖ other) = log(σ_r / σ) + (σ² + (μ − μ_r)²) / (2 σ_r²) − ½."""
        gap = self.mean(x) - other.mean(x)
        spread = (self.sigma.square() + gap.square()) / (2 * other.sigma.square())
        return (other.sigma / self.sigma).log() + spread - 0.5


@dataclass(frozen=True, slots=True)
class Drawn:
    """A continuous action of a block: the Gaussian that a state made of vectors, and the noise that was drawn."""

    modulated: Modulated
    noise: torch.Tensor
    """ε (N, D)"""
    of: int
    """0: the template, 1: the image's features."""


class Modulation(nn.Module):
    """The modulation of vectors by a state, channel by channel: γ ⊙ x + β, and σ.

        γ = 1 + Δ,  σ = σ_min + softplus(s + b), σ₀ = noise · rms(x) where s = 0, σ_min = noise_floor · rms(x)

    The last layer starts at zero. All densities are in float32, whatever the weights are.
    """

    def __init__(self, width: int, noise: float, floor: float) -> None:
        super().__init__()
        self.noise, self.floor = noise, floor
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * width))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, state: torch.Tensor, x: torch.Tensor) -> Modulated:
        """state (D,), x (N, D)."""
        # a mean that is rounded to bfloat16 moves a summed log-ratio by hundreds, so that autocast must not reach it
        with torch.autocast(state.device.type, enabled=False):
            scale, shift, spread = self.mlp(state.to(self.mlp[0].weight.dtype)).float().chunk(3)
        rms = x.detach().float().square().mean().sqrt()
        offset = torch.log(torch.expm1((self.noise - self.floor) * rms))
        return Modulated(1 + scale, shift, self.floor * rms + F.softplus(spread + offset))


class Attention(nn.Module):
    """Multi-head attention with rotary positions in two dimensions: half of a head turns by row, half by column."""

    def __init__(self, width: int, heads: int, base: float) -> None:
        super().__init__()
        self.heads, self.base = heads, base
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, x_places: torch.Tensor, y: torch.Tensor, y_places: torch.Tensor
    ) -> torch.Tensor:
        """(N, D) of x (N, D) at x_places (N, 2), which attends to y (T, D) at y_places (T, 2)."""
        query = self._turn(self._split(self.query(x)), x_places)
        key = self._turn(self._split(self.key(y)), y_places)
        out = F.scaled_dot_product_attention(query, key, self._split(self.value(y)))
        return self.out(out.transpose(0, 1).flatten(1))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), self.heads, -1).transpose(0, 1)

    def _turn(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        quarter = x.shape[-1] // 4
        rates = self.base ** -(torch.arange(quarter, device=x.device) / quarter)
        angles = (places.to(x.device)[:, :, None] * rates).flatten(1)  # (N, half a head)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class FormerBlock(nn.Module):
    """A block of the LatentFormer: latents attend to each other, then to the image; before each a norm, around each a
    residual."""

    def __init__(self, options: DeepLatentOptions) -> None:
        super().__init__()
        width, shape = options.width, (options.width, options.heads, options.rope_base)
        self.norm_self, self.norm_cross, self.norm_image = (nn.RMSNorm(width, eps=1e-6) for _ in range(3))
        self.own, self.cross = Attention(*shape), Attention(*shape)
        if options.feed_forward:
            self.feed_forward = nn.Sequential(
                nn.RMSNorm(width, eps=1e-6),
                nn.Linear(width, options.feed_forward),
                nn.SiLU(),
                nn.Linear(options.feed_forward, width),
            )

    def forward(
        self, x: torch.Tensor, places: torch.Tensor, image: torch.Tensor, image_places: torch.Tensor
    ) -> torch.Tensor:
        normed = self.norm_self(x)
        x = x + self.own(normed, places, normed, places)
        if len(image):
            x = x + self.cross(self.norm_cross(x), places, self.norm_image(image), image_places)
        return x + self.feed_forward(x) if hasattr(self, "feed_forward") else x


class DeepLatent(LatentMethod):
    """A grid of latents in one forward."""

    name = "deeplatent"
    has_options = True
    num_latents_is_maximum = True
    most_blocks = 5

    def __init__(self, config: MethodConfig, token_id: Callable[[str], int]) -> None:
        super().__init__(config, token_id)
        options = self.options = from_json(DeepLatentOptions, config.options, "options")
        width, spread = options.width, (options.noise, options.noise_floor)
        self.steer = nn.Parameter(0.02 * torch.randn(3, width))
        if options.grid == "dynamic":
            self.scale = nn.Linear(width, 2 * SIDE)
        if options.generation == "parallel":
            self.template = nn.Parameter(0.02 * torch.randn(SIDE, SIDE, width))
            self.former = nn.ModuleList(FormerBlock(options) for _ in range(options.blocks))
            if options.modulate_latents:
                self.of_latents = Modulation(width, *spread)
            if options.modulate_image and options.blocks:
                self.of_image = Modulation(width, *spread)

    def controls(self) -> torch.Tensor:
        """e_s, e_q, e_v: scale, latent modulation, image modulation."""
        return self.steer

    def places(self, grid: Grid) -> torch.Tensor | None:
        """As an image's merged tokens have them: (0, row, column). Latents made one by one count on like text."""
        if self.options.positions == "text" or self.options.generation == "autoregressive":
            return None
        rows, columns = grid
        index = torch.arange(rows * columns)
        return torch.stack([torch.zeros_like(index), index // columns, index % columns])

    def sizes(self, states: torch.Tensor) -> torch.Tensor:
        """(…, 2, SIDE) scores of rows and columns, class c meaning c + 1, from states (…, D) of e_s."""
        return self.scale(states).float().unflatten(-1, (2, SIDE))

    def queries(self, grid: Grid) -> torch.Tensor:
        """(N, D) the template, resized."""
        image = self.template.permute(2, 0, 1)[None]
        return (
            F.interpolate(image, size=grid, mode="bilinear", align_corners=False, antialias=self.options.antialias)[0]
            .flatten(1)
            .T
        )

    def modulated(
        self, states: torch.Tensor, queries: torch.Tensor, features: torch.Tensor
    ) -> tuple[Modulated | None, Modulated | None]:
        """The modulations of the template (N, D) by h_q and of the features (T, D) by h_v; None for what stays."""
        of_queries = self.of_latents(states[1], queries) if self.options.modulate_latents else None
        of_image = self.of_image(states[2], features) if hasattr(self, "of_image") and len(features) else None
        return of_queries, of_image

    def form(self, queries: torch.Tensor, grid: Grid, features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(N, D) latents of queries (N, D) and image tokens (T, D) at places (T, 2), in any order."""
        x, grid_places = queries.to(self.template.dtype), centres(grid)
        for block in self.former:
            x = block(x, grid_places, features.to(x.dtype), places)
        return x

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        """All latents in one feed; noise is drawn while training."""
        states, most = context.hidden, context.num_latents
        if not most:
            return
        grid = context.grid or self._grid(states, most, free=context.free)
        if self.options.generation == "autoregressive":
            hidden = states[2:]
            for _ in range(grid[0] * grid[1]):
                hidden = yield Feed(hidden)
            return
        features, places = image_tokens(context.prompt)
        inputs, drawn = [self.queries(grid), features], []
        for number, modulated in enumerate(self.modulated(states, *inputs)):
            if modulated is not None:
                x = inputs[number]
                noise = torch.randn_like(x, dtype=torch.float32) if self.training else torch.zeros_like(x)
                inputs[number] = modulated.at(x, noise)
                drawn.append(Drawn(modulated, noise, number))
        latents = self.form(inputs[0], grid, inputs[1], places)
        yield Feed(latents.to(states.dtype), grid=grid, final=True, drawn=tuple(drawn))

    def _grid(self, states: torch.Tensor, most: int, *, free: bool) -> Grid:
        if self.options.generation == "autoregressive" and not free:
            return 1, most
        if self.options.grid == "fixed":
            return squarest(most)
        rows, columns = (self.sizes(states[0]).argmax(-1) + 1).tolist()
        return fit((rows, columns), most)
