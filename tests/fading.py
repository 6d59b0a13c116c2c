"""A method that nobody has heard of, with its stage, in the places that latent_core/methods/README.md names.

    torchrun … tests/fading.py run RECIPE field=value …

is `python -m trainers` with both of them known.
"""

import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the repository's root has to be importable first

from latent_core.decoding.layout import ForcedSequence  # noqa: E402
from latent_core.decoding.sequence import Block, Tokens  # noqa: E402
from latent_core.methods import METHODS, LatentMethod  # noqa: E402
from latent_core.methods.requests import Context, Feed  # noqa: E402
from latent_core.records import from_json  # noqa: E402
from trainers.data.segments import TextSpan, segments  # noqa: E402
from trainers.options import check_types  # noqa: E402
from trainers.planning.lengths import Length, RowSizes  # noqa: E402
from trainers.stage import Item, Stage, StageSpec, families_of  # noqa: E402
from trainers.stages import STAGES  # noqa: E402

RECIPE = """
description: A method of a test.
stage: fading
method: fading
method_options: {keep: 0.25, width: 128}
fading: {weight: 0.5}
mixture: {find: 1, count: 1}
latents_max: 4
latents_default: 4
learning_rate: 1e-3
max_steps: 4
"""


@dataclass(frozen=True, kw_only=True)
class FadingOptions:
    keep: float = 0.5
    width: int = 32


class Fading(LatentMethod):
    """Feeds a running mean of states, scaled by a learned number and moved by a learned vector."""

    name = "fading"
    has_options = True

    def __init__(self, config, token_id) -> None:
        super().__init__(config, token_id)
        self.options = from_json(FadingOptions, config.options, "options")
        self.scale = torch.nn.Parameter(torch.tensor(0.7))
        self.steer = torch.nn.Parameter(torch.linspace(-1, 1, self.options.width))

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        mean = context.hidden
        for _ in range(context.num_latents):
            hidden = yield Feed(self.scale * mean + self.steer)
            mean = self.options.keep * mean + (1 - self.options.keep) * hidden


@dataclass(frozen=True, kw_only=True)
class FadingStageOptions:
    """Options of stage fading."""

    weight: float = 0.1
    """Of the scale's square."""

    def __post_init__(self) -> None:
        check_types(self, "fading")


class FadingStage(Stage):
    """Cross-entropy around unrolled blocks, and a penalty on the method's own number."""

    method: Fading
    options: FadingStageOptions
    one_pass = True

    @classmethod
    def length(cls, recipe, row: RowSizes) -> Length:
        return row.length(**row.blocks(recipe.latents_max))

    def collate(self, items: Sequence[Item]) -> dict[str, object]:
        latents, rule = self.draw(items[0][1])
        rows = []
        for example, _ in items:
            parts = [
                Tokens(tuple(self.processor.encode(part.text))) if isinstance(part, TextSpan) else Block(latents)
                for part in segments(example)
            ]
            prompt = self.processor(example.images, example.question, self.recipe.system)
            rows.append(ForcedSequence(prompt, (*parts, Tokens((self.processor.eos_id,)))))
        return {"rows": rows, "rules": [rule] * len(rows), "families": families_of(items)}

    def forward(self, rows, rules, families) -> dict[str, object]:
        loss, metrics = self.cross_entropy(self.unroll(rows, rules), families)
        penalty = self.method.scale.square()
        return {"loss": loss + self.options.weight * penalty, "metrics": metrics | {"penalty": penalty.item()}}


SPEC = StageSpec(stage=FadingStage, options={"fading": FadingStageOptions}, method="fading", unrolled=True)

if __name__ == "__main__":
    from trainers.__main__ import main

    METHODS["fading"], STAGES["fading"] = Fading, SPEC
    sys.exit(main(sys.argv[1:]))
