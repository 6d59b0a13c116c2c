"""`python -m trainers depict`: trains the decoder from latents to images, and has its images read by a classifier.

The classifier never sees a latent: it learns colour, shape and mark from the true images of the train split. It then
reads the decoder's images of the test split's `find`. Beside them stand the true images, those of a second decoder
that was trained in the same way on the states of the text before the block, and those from another sample's latents.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

from latent_core import glyphs, load
from latent_core.analysis.statistics import Interval, wilson
from latent_core.evaluation.image_decoder import FILE, MOST, REPORT, SIDE, Depicter
from latent_core.evaluation.study import donors
from latent_core.evaluation.tables import percent, table
from latent_core.events import TokenEvent
from latent_core.example import Example
from latent_core.finite import not_finite, shortened
from latent_core.glyphs.scene import COLOURS, MARKS, SHAPES
from latent_core.reasoner import Reasoner
from latent_core.settings import check
from trainers.evidence.measurements import beside_weights
from trainers.evidence.reports import Report, write_report

LABELS = {"colour": tuple(COLOURS), "shape": SHAPES, "mark": MARKS}
BATCH = 64
RATE = 2e-3


@dataclass(frozen=True, slots=True, eq=False)
class Thoughts:
    """Blocks of some runs with the auxiliary images that they stand for, N in all."""

    latents: torch.Tensor
    """(N, MOST, D), zeros where there is none."""
    mask: torch.Tensor
    """(N, MOST) bool."""
    text_states: torch.Tensor
    """(N, MOST, D) the states of the last text tokens before the block, the last one first."""
    text_mask: torch.Tensor
    """(N, MOST) bool."""
    images: torch.Tensor
    """(N, 3, SIDE, SIDE) the true auxiliary image, in 0…1."""
    family: tuple[str, ...]
    sample: tuple[int, ...]
    """Number of the example."""


def thoughts(reasoner: Reasoner, examples: Sequence[Example], latents: Sequence[int], batch: int = 64) -> Thoughts:
    """Runs the examples, the i-th with K = latents[i]. Block b stands for step b; one without a step is left out."""
    parts: list[tuple[torch.Tensor, ...]] = []
    family, sample = [], []
    for start in track(range(0, len(examples), batch), description="Runs"):
        some = examples[start : start + batch]
        traces = reasoner.run_batch(
            [list(example.images) for example in some],
            [example.question for example in some],
            latents=list(latents[start : start + batch]),
            temperature=0.0,
            max_blocks=4,
        )
        for number, (example, trace) in enumerate(zip(some, traces, strict=True), start):
            text_states_before: list[torch.Tensor] = []
            before = []
            for event in trace.steps:
                if isinstance(event, TokenEvent) and event.kind == "open":
                    before.append(text_states_before[-MOST:][::-1])
                if isinstance(event, TokenEvent) and event.kind == "text":
                    text_states_before.append(event.hidden)
            for block, text_states, step in zip(trace.blocks, before, example.steps, strict=False):
                if len(block.latents) and text_states:
                    parts.append((*_padded(block.latents), *_padded(torch.stack(text_states)), _picture(step.image)))
                    family.append(str(example.metadata["family"]))
                    sample.append(number)
    return Thoughts(*(torch.stack(column) for column in zip(*parts, strict=True)), tuple(family), tuple(sample))


def _padded(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(MOST) < len(vectors)
    return F.pad(vectors, (0, 0, 0, MOST - len(vectors))), mask


def _picture(image) -> torch.Tensor:
    small = image.convert("RGB").resize((SIDE, SIDE))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def train_depicter(
    vectors: torch.Tensor, mask: torch.Tensor, images: torch.Tensor, *, steps: int, seed: int
) -> Depicter:
    """Least squares on images; half of the time it reads some of the vectors only, so that it can read one alone."""
    torch.manual_seed(seed)
    decoder = Depicter(vectors.shape[-1])
    decoder.mean.copy_(vectors[mask].mean(0))
    decoder.std.copy_(vectors[mask].std(0).clamp(min=1e-6))
    draw = torch.Generator().manual_seed(seed)

    def batch() -> tuple[torch.Tensor, ...]:
        rows = torch.randint(len(vectors), (BATCH,), generator=draw)
        return vectors[rows], _some(mask[rows], draw), images[rows]

    def loss(v: torch.Tensor, t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(decoder(v, t), p)

    _fit(decoder, batch, loss, steps, "Decoder")
    return decoder.eval()


def _some(mask: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Of half of the rows all vectors, of the others a random share and at least one."""
    keep = torch.rand(mask.shape, generator=draw) < torch.rand(len(mask), 1, generator=draw)
    first = (torch.rand(mask.shape, generator=draw) * mask).argmax(1)
    keep[torch.arange(len(mask)), first] = True
    whole = torch.rand(len(mask), 1, generator=draw) < 0.5
    return mask & (keep | whole)


def _fit(model: nn.Module, batch, loss, steps: int, what: str) -> None:
    """AdamW with a warm-up of 5% and a cosine to zero."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.05)
    for _ in track(range(steps), description=what):
        optimiser.zero_grad()
        loss(*batch()).backward()
        optimiser.step()
        schedule.step()
    bad = not_finite(model.named_parameters())
    check(not bad, f"{what}: training diverged, {shortened(bad)} have nan or infinity. Nothing was written.")


class Classifier(nn.Module):
    """A small network that reads colour, shape and mark of the thing on an image."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.body = nn.Sequential(
            *(
                part
                for before, after in zip(widths, widths[1:], strict=False)
                for part in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.GELU(), nn.MaxPool2d(2))
            ),
            nn.Flatten(),
            nn.Linear(widths[-1] * (SIDE // 8) ** 2, 128),
            nn.GELU(),
            nn.Linear(128, sum(map(len, LABELS.values()))),
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, SIDE, SIDE) → the scores of each label of LABELS, in order."""
        return list(self.body(images).split([len(values) for values in LABELS.values()], -1))

    @torch.inference_mode()
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """(B, labels) the likeliest values."""
        return torch.stack([scores.argmax(-1) for scores in self(images)], -1)


def truth(example: Example) -> list[int]:
    """Colour, shape and mark of the thing that a `find` sample asks for."""
    mark, region = example.answer, example.steps[0].region
    things = example.metadata["scene"].things
    (thing,) = [thing for thing in things if thing.box == region]
    assert thing.mark == mark
    return [LABELS["colour"].index(thing.colour), LABELS["shape"].index(thing.shape), LABELS["mark"].index(mark)]


def train_classifier(images: torch.Tensor, labels: torch.Tensor, *, steps: int, seed: int) -> Classifier:
    """Cross-entropy on true images, blurred by chance, because a decoder's images are."""
    torch.manual_seed(seed)
    classifier = Classifier()
    draw = torch.Generator().manual_seed(seed)

    def batch() -> tuple[torch.Tensor, ...]:
        rows = torch.randint(len(images), (BATCH,), generator=draw)
        small = int(torch.randint(8, SIDE + 1, (1,), generator=draw))
        blurred = F.interpolate(images[rows], size=(small, small), mode="area")
        return F.interpolate(blurred, size=(SIDE, SIDE), mode="bilinear"), labels[rows]

    def loss(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return sum(F.cross_entropy(scores, labels[:, i]) for i, scores in enumerate(classifier(p)))

    _fit(classifier, batch, loss, steps, "Classifier")
    return classifier.eval()


def rates(read: torch.Tensor, labels: torch.Tensor) -> dict[str, Interval]:
    """Of images (N, labels): how often each label is right, and all of them."""
    right = read == labels
    columns = [*right.unbind(1), right.all(1)]
    named = zip([*LABELS, "all three"], columns, strict=True)
    return {name: wilson(int(column.sum()), len(column)) for name, column in named}


def depict(checkpoint: str, *, n: int = 500, train: int = 2500, steps: int = 2000, seed: int = 0) -> Path:
    """Trains on `train` samples of each family, reports on seeds 0…n−1 of test; returns the Markdown table.

    Writes depict.safetensors, .json and .md beside the weights, for one from the Hub to runs/depict/.
    Raises ValueError for a checkpoint without latents.
    """
    reasoner = load(checkpoint)
    if reasoner.method.open_id is None:
        raise ValueError(f"{checkpoint} has no latents, so they depict nothing.")
    usual = reasoner.config.latents.default
    examples = [glyphs.sample(family, i, "train") for i in range(train) for family in glyphs.FAMILIES]
    # every other sample with the usual K, the others with all K in turn
    counts = [usual if i % 2 else 1 + i // 2 % MOST for i in range(len(examples))]
    train_blocks = thoughts(reasoner, examples, counts)
    decoder = train_depicter(train_blocks.latents, train_blocks.mask, train_blocks.images, steps=steps, seed=seed)
    text_decoder = train_depicter(
        train_blocks.text_states, train_blocks.text_mask, train_blocks.images, steps=steps, seed=seed
    )
    finds = [example for example in examples if example.metadata["family"] == "find"]
    true = torch.stack([_picture(example.steps[0].image) for example in finds])
    classifier = train_classifier(true, torch.tensor([truth(e) for e in finds]), steps=steps // 2, seed=seed)

    test_examples = {family: [glyphs.sample(family, i, "test") for i in range(n)] for family in glyphs.FAMILIES}
    tested = {family: thoughts(reasoner, some, [usual] * n) for family, some in test_examples.items()}
    average = train_blocks.images.mean(0)
    find = tested["find"]
    labels = torch.tensor([truth(test_examples["find"][i]) for i in find.sample])
    swapped = torch.tensor(donors([test_examples["find"][i].answer for i in find.sample]))
    rows = {
        "the true picture": rates(classifier.read(find.images), labels),
        "from the block": rates(classifier.read(_paint(decoder, find.latents, find.mask)), labels),
        **{
            f"from latent {t + 1} alone": rates(
                classifier.read(_paint(decoder, find.latents, _only(find.mask, t))), labels
            )
            for t in range(usual)
        },
        "from the words before it": rates(
            classifier.read(_paint(text_decoder, find.text_states, find.text_mask)), labels
        ),
        "from another sample’s block": rates(
            classifier.read(_paint(decoder, find.latents[swapped], find.mask[swapped])), labels
        ),
    }
    errors = {family: _explained(decoder, some, average) for family, some in tested.items()}
    command = f"python -m trainers depict {checkpoint} --n {n}"
    report = {
        "command": command,
        "fingerprint": reasoner.config.provenance.get("fingerprint", "unknown"),
        "latents": usual,
        "n": n,
        "train_samples": len(examples),
        "steps": steps,
        "seed": seed,
        "read": {name: {label: dataclasses.asdict(rate) for label, rate in row.items()} for name, row in rows.items()},
        "explained": errors,
    }
    out = beside_weights(checkpoint, "depict")
    decoder.save(out / FILE, {name: report[name] for name in ("command", "fingerprint", "latents", "steps", "seed")})
    return write_report(out / REPORT, report, markdown)


@torch.inference_mode()
def _paint(decoder: Depicter, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return decoder(vectors, mask)


def _only(mask: torch.Tensor, index: int) -> torch.Tensor:
    return mask & (torch.arange(mask.shape[1]) == index)


def _explained(decoder: Depicter, some: Thoughts, average: torch.Tensor) -> float:
    """Share of the images' variance around the mean training image that the decoder explains; 1 is perfect."""
    missed = (_paint(decoder, some.latents, some.mask) - some.images).square().mean()
    return round(1 - (missed / (average - some.images).square().mean()).item(), 4)


def markdown(report: Report) -> str:
    """A depict.json as Markdown: how it was measured, and a line per kind of image."""
    names = [*LABELS, "all three"]
    explained = ", ".join(f"{family} {value:.2f}" for family, value in report["explained"].items())
    lines = [
        [picture, *(percent(Interval(**shares[name])) for name in names)] for picture, shares in report["read"].items()
    ]
    return (
        f"`{report['command']}`: a decoder trained on {report['train_samples']:,} runs of the train split "
        f"({report['steps']:,} steps, seed {report['seed']}) paints what a block stands for; a classifier that has "
        f"seen true pictures only reads them. `find`, K = {report['latents']}, seeds 0 to {report['n'] - 1} of test; "
        "percent read rightly, 95% Wilson intervals. The question names colour and shape, the mark is what it asks "
        f"for.\n\n{table(['picture', *names], lines)}\n"
        f"Share of the pictures’ variance that the decoder explains (1 is perfect): {explained}.\n"
    )
