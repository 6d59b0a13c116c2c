"""Traces that fit their format and cost whoever opens them as much as they may: long, wide, or answered with a lot."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from tests.instance import CHECKPOINT

RECORDED = Path(__file__).parent.parent / "assets" / "traces" / f"find_{CHECKPOINT}.safetensors"
"""What they are made from."""
WIDTH, WIDTH_OF_7B = 128, 3584
"""Of the recorded checkpoint, whose bank lays a run out beside 3,000 states, and of a model of 7B."""


def wordy(text: str, *, pieces: int = 1) -> bytes:
    """A run that said `text`, in so many words of its record."""
    content, tensors = _recorded()
    size = -(-len(text) // pieces)
    words = [_word(text=text[at : at + size]) for at in range(0, len(text), size)]
    return _written(content, {"image_states": tensors["image_states"]}, words, image=tensors["image.0"])


def wide(words: int = 600, width: int = WIDTH_OF_7B) -> bytes:
    """A run of a model of this width in 16 bits: 4.5 MB for 600 words of 7B's."""
    content, tensors = _recorded()
    hidden = torch.randn(words, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    stacks = {"image_states": torch.randn(6, 1, width).bfloat16(), "token.hidden": hidden}
    content["start"]["grids"] = [[1, 1]]
    return _written(content, stacks, [_word(row=row) for row in range(words)], image=tensors["image.0"])


def filled(words: int, latents: int, grid: tuple[int, int], *, width: int = WIDTH, levels: int = 2) -> bytes:
    """A run of so many words and latents, each with a vector of its own; 16 bits keep it small on the disk.

    Args:
        grid: rows and columns of patches. Maps have (words + latents) × rows × columns numbers.
    """
    content, tensors = _recorded()
    draw = torch.Generator().manual_seed(0)

    def vectors(*size: int) -> torch.Tensor:
        return torch.randn(*size, width, generator=draw).half()

    stacks = {"image_states": vectors(levels, grid[0] * grid[1])}
    if words:
        stacks["token.hidden"] = vectors(words)
    if latents:
        stacks |= {"latent.fed": vectors(latents), "latent.hidden": vectors(latents)}
    content["start"] |= {"grids": [list(grid)], "levels": list(range(levels))}
    steps = [_word(row=n) for n in range(words)]
    for n in range(latents):
        rows = {"fed": n, "hidden": n}
        steps.append(
            {"event": "latent", "rows": rows, "position": 0, "block": n // 512, "index": n % 512, "seconds": 0.0}
        )
    return _written(content, stacks, steps, image=tensors["image.0"])


def tiny() -> bytes:
    """The smallest run: a word without its state, so that there is nothing to draw."""
    return wordy("ring")


def _recorded() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(RECORDED, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        content = json.loads(file.metadata()["trace"])
    content["start"]["layers"] = []
    return content, tensors


def _word(*, text: str = " a", row: int | None = None) -> dict[str, Any]:
    rows = {} if row is None else {"hidden": row}
    return {"event": "token", "rows": rows, "position": 0, "token_id": 0, "text": text} | dict.fromkeys(
        ("logprob", "p_open", "seconds"), 0.0
    )


def _written(
    content: dict[str, Any], stacks: dict[str, torch.Tensor], steps: list[dict[str, Any]], *, image: torch.Tensor
) -> bytes:
    finish = {**content["finish"], "tokens": len(steps), "latents": 0, "blocks": 0}
    if stacks["image_states"].shape[-1] != WIDTH:  # of a model that the page does not know, for it would not fit
        content["source"] |= {"checkpoint": "unknown", "world": None}
    record = {**content, "steps": steps, "finish": finish}
    return save({**stacks, "image.0": image}, {"trace": json.dumps(record)})
