"""A small decoder from a block's latents to the auxiliary image that stands for their latent step.

Shapes: B blocks, K latents of a block, D width of the model that is read, W width of the reader.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from latent_core.analysis.statistics import is_share
from latent_core.files import write_file
from latent_core.finite import not_finite
from latent_core.records import checked_report
from latent_core.settings import check

SIDE = 48
"""Pixels along each side of a decoded image."""
MOST = 16
"""Latents of a block that can be read."""
FILE = "depict.safetensors"
"""Its name in a checkpoint's folder."""
REPORT = "depict.json"
"""Beside it: what `python -m trainers depict` measured."""
_START = 6
_WIDTH = 128


class Depicter(nn.Module):
    """A decoder from some of a block's latents to their auxiliary image.

    x̂ = f(z), f = argmin E ‖f(z) − x‖² over the training runs' auxiliary images x

    So x̂ is the average of all images that fit the latents: what is sharp is in them, what is blurred or grey is not.
    It shows what a trained reader can get out of them, which is not yet what the model itself makes of them;
    interventions test that.
    """

    def __init__(self, width: int) -> None:
        """`width`: D."""
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.enter = nn.Linear(width, _WIDTH)
        self.place = nn.Parameter(torch.randn(MOST, _WIDTH) * 0.02)
        self.ask = nn.Parameter(torch.randn(1, _WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 2 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.seed = nn.Linear(_WIDTH, 64 * _START * _START)
        self.paint = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 48, 3, padding=1),
            nn.GELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(48, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 3 * 2 * 2, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, latents: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
        """Latents (B, K, D) and which of them may be read (B, K) bool → (B, 3, SIDE, SIDE) in 0…1.

        Raises ValueError for more than MOST latents or a wrong width.
        """
        if latents.shape[1] > MOST or latents.shape[2] != self.width:
            raise ValueError(
                f"Blocks of {latents.shape[1]} latents of width {latents.shape[2]} were given; this decoder reads up "
                f"to {MOST} of width {self.width}."
            )
        vectors = self.enter((latents - self.mean) / self.std) + self.place[: latents.shape[1]]
        ask = self.ask.expand(len(vectors), 1, -1)
        hidden = torch.cat([torch.zeros(len(readable), 1, dtype=torch.bool, device=readable.device), ~readable], 1)
        read = self.mix(torch.cat([ask, vectors], 1), src_key_padding_mask=hidden)[:, 0]
        return self.paint(self.seed(read).view(-1, 64, _START, _START)).sigmoid()

    @torch.inference_mode()
    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """(1 + K, SIDE, SIDE, 3) uint8: the image of a block (K, D), K ≥ 1, as a whole, and of each latent alone."""
        count = len(latents)
        readable = torch.cat([torch.ones(1, count, dtype=torch.bool), torch.eye(count, dtype=torch.bool)])
        painted = self(latents.float().expand(1 + count, -1, -1), readable)
        return (painted * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def save(self, path: str | os.PathLike[str], notes: dict[str, object]) -> None:
        """Writes one safetensors file, float16, with `notes` (JSON) on how it was made."""
        tensors = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        write_file(path, save(tensors, {"depict": json.dumps({"width": self.width, **notes})}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Depicter":
        """Reads what `save` wrote. Raises ValueError that says what is wrong with the file."""
        name = Path(path).name
        try:
            with safe_open(path, "pt") as file:
                notes = json.loads((file.metadata() or {}).get("depict", "null"))
                if (
                    not isinstance(notes, dict)
                    or type(notes.get("width")) is not int
                    or not 0 < notes["width"] < 2**16
                ):
                    raise ValueError("it does not say how wide the model is that it reads")
                check(len(file.keys()) <= 100, "it has more than 100 tensors")
                state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118, not a dict
            check(not not_finite(state.items()), "it has numbers that are nan or infinite")
        except (ValueError, RecursionError, SafetensorError, OSError) as error:
            raise ValueError(f"{name} is no decoder of latents that can be read: {error}.") from error
        decoder = cls(notes["width"])
        try:
            decoder.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{name} does not fit this version's decoder: {str(error).splitlines()[-1].strip()}"
            ) from error
        return decoder.eval()


def read_report(path: Path) -> dict[str, Any]:
    """The content of a depict.json, for readers that trust it. Raises ValueError for one that cannot be used."""
    return checked_report(path, _check_report)


def _check_report(report: object) -> None:
    check(isinstance(report, dict), "it is no object of named values")
    assert isinstance(report, dict)
    check(isinstance(report.get("command"), str) and len(report["command"]) <= 1000, "its command is no short text")
    for name in ("latents", "train_samples", "steps"):
        check(type(report.get(name)) is int, f"its {name} is not a whole number")
    read, explained = report.get("read"), report.get("explained")
    check(isinstance(read, dict) and isinstance(explained, dict), "it does not say what was read and explained")
    assert isinstance(read, dict) and isinstance(explained, dict)
    for shares in read.values():
        check(isinstance(shares, dict) and all(map(is_share, shares.values())), "what was read is no share of runs")
    check(
        all(type(value) in (int, float) and abs(value) < 1e6 for value in explained.values()), "a share is no number"
    )
