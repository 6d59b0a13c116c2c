"""Latents at once against latents one by one: DeepLatent's time per latent and per thought beside Monet's.

`make bench ARGS=parallel`. Both think on the same backbone about the same question; a thought is a block from its
opening to its closing token. The paper has 1.0 ms against 34.9 ms per latent and 86.1 ms against 227 ms per thought,
at 82.7 against 6.5 latents (arXiv 2606.00562, efficiency). Medians of five repeats in one process; writes
runs/bench/parallel.json.
"""

import torch

from latent_core import glyphs
from latent_core.checkpoints.loading import load
from latent_core.config import MethodConfig
from latent_core.decoding.engine import decode
from latent_core.events import FinishEvent
from latent_core.methods import LatentMethod, build_method
from latent_core.settings import Settings
from tests.benchmarks.timing import clock, medians, write_report

PAIRS = (("equal", 9, 9), ("equal", 36, 36), ("the paper's ratio", 81, 6))
"""What is compared: latents of DeepLatent's block and of Monet's."""


def main() -> None:
    torch.set_num_threads(1)
    subject = load("glyph-monet")
    backbone = subject.backbone
    backbone.eos_ids = frozenset()
    tokens = {"open_token": "<latent>", "close_token": "</latent>"}
    options = {"width": backbone.width, "grid": "fixed"}
    config = MethodConfig(method="deeplatent", options=options, **tokens)
    parallel = build_method(config, subject.processor.token_id).eval()
    example = glyphs.sample("find", 0, split="test")
    prompt = subject.processor(example.images, example.question)

    def run(method: LatentMethod, latents: int) -> None:
        settings = Settings(mode="forced", latents=latents, max_blocks=1, max_new_tokens=2)
        events = list(decode(backbone, method, [prompt], [settings], record=False))
        assert isinstance(events[-1], FinishEvent) and events[-1].latents == latents

    def read() -> None:
        list(decode(backbone, subject.method, [prompt], [Settings(mode="text", max_new_tokens=1)], record=False))

    counts = sorted({count for _, *both in PAIRS for count in both})
    tasks = {"prompt": clock(read)}
    for count in counts:
        tasks[f"parallel {count}"] = clock(lambda count=count: run(parallel, count))
        tasks[f"one by one {count}"] = clock(lambda count=count: run(subject.method, count))
    seconds = medians(tasks)
    ratios = {}
    print(f"{subject.name}'s backbone, one CPU thread; thoughts in ms (per latent)")
    for what, many, few in PAIRS:
        at_once, in_turn = (
            1000 * (seconds[f"{kind} {count}"] - seconds["prompt"])
            for kind, count in (("parallel", many), ("one by one", few))
        )
        per_latent, per_thought = (in_turn / few) / (at_once / many), in_turn / at_once
        ratios[f"{many} against {few}"] = {"per latent": per_latent, "per thought": per_thought}
        print(
            f"  {what:18} DeepLatent {many:3} latents {at_once:6.1f} ({at_once / many:5.2f})   "
            f"Monet {few:3} latents {in_turn:6.1f} ({in_turn / few:5.2f})   "
            f"faster {per_latent:5.1f}× per latent, {per_thought:5.2f}× a thought"
        )
    write_report("parallel", seconds, ratios=ratios)


if __name__ == "__main__":
    main()
