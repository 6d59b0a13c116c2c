"""Published checkpoints on the Hub: the facts that their repositories do not state, and what they must hold.

They have no method.json, nor has a plain backbone. Facts are from the papers and the public code named in each entry's
provenance; what those leave open stands in `unknown`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latent_core.config import LatentRange, MethodConfig, PixelLimits, Sampling
from latent_core.model.qwen2_5_vl_facts import FIRST_ADDED, ROWS_7B, parameters_7b
from latent_core.settings import check

BYTES = {"bf16": 2, "fp32": 4}
"""Per parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One published checkpoint."""

    repository: str
    """Hub id."""
    subfolder: str = ""
    """Where in the repository it lies; empty for its root."""
    config: MethodConfig
    """What its method.json would say."""
    tokens: tuple[str, ...]
    """Control tokens that it adds to Qwen's, in the order of their ids, from FIRST_ADDED on."""
    rows: int
    """Embedding rows as published. One padded to ROWS_7B is accepted too."""
    licence: str
    """Of code and weights."""
    unknown: tuple[str, ...]
    """What the sources leave open, and what is done here instead."""

    @property
    def name(self) -> str:
        """The name that it is loaded by: Hub id, then subfolder."""
        return "/".join(filter(None, (self.repository, self.subfolder)))

    @property
    def parameters(self) -> int:
        """Of the backbone."""
        return parameters_7b(self.rows)

    def weights(self, precision: str) -> int:
        """Bytes of the weights in "bf16" or "fp32"."""
        return self.parameters * BYTES[precision]

    def summary(self) -> str:
        """One line for whoever is about to fetch it: sizes, licence, what was chosen for want of a source."""
        sizes = ", ".join(f"{self.weights(precision) / 1e9:.1f} GB in {precision}" for precision in BYTES)
        return f"{self.name}: {sizes}. Licence: {self.licence}. Not published: {'; '.join(self.unknown)}."

    def check_vocabulary(self, token_id: Callable[[str], int], rows: int) -> None:
        """Raises ValueError where tokenizer or embedding are not those of the published checkpoint.

        token_id: the tokenizer's, raising ValueError for a token that it lacks; rows: of the stored embedding.
        """
        for expected, token in enumerate(self.tokens, FIRST_ADDED):
            try:
                id = token_id(token)
            except ValueError as error:
                raise ValueError(
                    f"The tokenizer of {self.name} lacks {token}, which it should add to Qwen's."
                ) from error
            check(id == expected, f"The tokenizer of {self.name} gives {token} id {id}, not {expected}.")
        check(
            rows in (self.rows, ROWS_7B),
            f"The embedding of {self.name} has {rows} rows; {self.rows} or, padded, {ROWS_7B} are expected.",
        )


_MONET_TOKENS = (
    "<abs_vis_token_pad>",
    "<abs_vis_token>",
    "</abs_vis_token>",
    "<observation>",
    "</observation>",
)


def _monet(default: int) -> MethodConfig:
    return MethodConfig(
        method="monet",
        open_token="<abs_vis_token>",
        close_token="</abs_vis_token>",
        pad_token="<abs_vis_token_pad>",
        convention="start_overwritten",  # as its inference code feeds; its training code and figure are start_fed
        latents=LatentRange(default=default, min=0, max=16),
        system=(
            "You are a helpful multimodal assistant. You are required to answer the question based on the image "
            "provided. Put your final answer in \\boxed{}."
        ),
        sampling=Sampling(temperature=0.1, top_k=50, top_p=0.8, repetition_penalty=1.01, max_new_tokens=2048),
        image=PixelLimits(min_pixels=256 * 28 * 28, max_pixels=8192 * 28 * 28),
        provenance={"paper": "arXiv 2511.21395", "code": "NOVAglow646/Monet at 0893999"},
    )


_MONET_LICENCE = "none stated for the code outside RL/, not known for the weights; see the repository"


def _monet_sft(stage: int, *unknown: str) -> Published:
    return Published(
        repository="NOVAglow646/Monet-SFT-7B",
        subfolder=f"stage{stage}",
        config=_monet(default=8),  # K in training
        tokens=_MONET_TOKENS,
        rows=151670,
        licence=_MONET_LICENCE,
        unknown=(
            "how it was meant to be asked (system prompt, sampling and image limits are Monet-7B's here)",
            *unknown,
        ),
    )


_ENTRIES = (
    Published(
        repository="NOVAglow646/Monet-7B",
        config=_monet(default=10),  # as its inference example sets; 8, 10, 12 and 16 were tried
        tokens=_MONET_TOKENS,
        rows=151670,
        licence=_MONET_LICENCE,
        unknown=("the longest answer (2048 tokens here)",),
    ),
    _monet_sft(1, "whether it opens blocks (no latents were trained in this stage)"),
    _monet_sft(2),
    _monet_sft(3),
    Published(
        repository="vincentleebang/LVR-7B",
        config=MethodConfig(
            method="lvr",
            open_token="<|lvr_start|>",
            close_token="<|lvr_end|>",
            pad_token="<|lvr|>",
            latents=LatentRange(default=8, min=0, max=16),  # 4, 8 and 16 were tried, 8 is what the paper reports
            system="You are a helpful assistant.",
            sampling=Sampling(max_new_tokens=512),  # as its evaluation code sets
            provenance={"paper": "arXiv 2509.24251", "code": "VincentLeebang/lvr at 637a9f7"},
        ),
        tokens=("<|lvr_start|>", "<|lvr|>", "<|lvr_latent_end|>", "<|lvr_end|>"),
        rows=ROWS_7B,
        licence="Apache-2.0 for the code, not known for the weights; see the repository",
        unknown=(
            "sampling (greedy here)",
            "image limits (those of its preprocessor_config.json here)",
            "whether it has a head (none is expected, and tensors of one are an error)",
        ),
    ),
)

PUBLISHED: dict[str, Published] = {entry.name: entry for entry in _ENTRIES}

PLAIN = MethodConfig(method="text", sampling=Sampling(max_new_tokens=512))
"""What the method.json of a plain backbone would say, the baseline of all that was trained from it: text alone,
greedily, after the chat template's own system prompt, and the image limits of the image processor's file."""

FINAL = "final"
"""The folder in which a run of the trainers leaves its checkpoint."""


def full_name(name: str | os.PathLike[str]) -> str:
    """The full name of a checkpoint: `LVR-7B` → `vincentleebang/LVR-7B`, a folder → its last part, `runs/mine/final` →
    `mine`.

    A folder without method.json that ends like a published name (`/data/Monet-7B`) is a copy of that one. A trace
    carries the name to other machines, where the path to a folder says nothing and tells too much.
    """
    path = Path(name)
    endings = ["/".join(path.parts[-count:]) for count in (3, 2, 1)]
    if not path.is_dir() or not (path / "method.json").exists():
        for published in PUBLISHED:
            if {published, published.partition("/")[2]} & set(endings if path.is_dir() else [str(name)]):
                return published
    if not name or not path.is_dir():
        return str(name)
    path = path.resolve()
    return path.parent.name if path.name == FINAL else path.name
