"""Speed of rollouts against `generate`, forwards of a step, and memory of a phase.

`make bench ARGS=rl`. 32 responses of a fixed length to four questions, eight each: `generate` in words, the engine in
words and latents; per position fed, prompts included. One thread, medians of five repeats that take turns in one
process; the peak is a process of its own. Writes runs/bench/rl.json.
"""

import copy
import multiprocessing
from pathlib import Path

import torch

from latent_core import glyphs
from latent_core.checkpoints.loading import load
from latent_core.model.backbone import Backbone
from latent_core.settings import Settings
from tests.benchmarks.timing import clock, medians, write_report
from trainers.data.glyphs import GlyphsDataset
from trainers.loop.launch import build_stage
from trainers.recipe import load_recipe
from trainers.rl.rollouts import roll_out
from trainers.rl.stage import RlStage

GROUP, QUESTIONS, TOKENS = 8, 4, 64


def phase() -> tuple[RlStage, dict[str, object]]:
    """The stage of glyph-monet-rl at K = 8 and a batch for it."""
    stage = build_stage(load_recipe("glyph-monet-rl", ["latents_default=8"])[0], Path("runs")).train()
    data = GlyphsDataset({"count": 1}, 16, batch=16, seed=0)
    return stage, stage.collate([data[index] for index in range(16)])


def peak() -> float:
    """Peak memory in MB of a process that has rolled out 128 responses and learned from them once."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak)


def _peak() -> float:
    stage, batch = phase()
    stage(**batch)["loss"].backward()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def forwards() -> dict[str, int]:
    """Calls of the policy's and the reference's first decoder layer, in a phase's first step and in each further."""
    stage, batch = phase()
    counted = {"policy": 0, "reference": 0}

    def count(name: str, backbone: Backbone) -> None:
        def call(*_: object) -> None:
            counted[name] += 1

        backbone.layers[0].register_forward_pre_hook(call)

    count("policy", stage.backbone)
    count("reference", stage.reference[0])
    stage.collect(**batch)  # its own forwards, to tell them from the step's
    first = dict(counted)
    stage(**batch)
    rolled = counted["policy"] - first["policy"] - 1
    before = dict(counted)
    stage(**batch)
    further = {name: counted[name] - before[name] for name in counted}
    assert rolled == first["policy"]
    return {"rollouts": rolled, "reference, once a phase": first["reference"], "a step": further["policy"]} | {
        "reference, a further step": further["reference"]
    }


def main() -> None:
    torch.set_num_threads(1)  # at this size threads cost more than they give
    subject = load("glyph-monet")
    backbone, method = subject.backbone, subject.method
    stock = copy.deepcopy(backbone.model)
    stock.set_attn_implementation("sdpa")
    stock.generation_config.eos_token_id = None
    backbone.eos_ids = frozenset()
    examples = [glyphs.sample("count", seed, split="test") for seed in range(QUESTIONS)]
    prompts = [p for e in examples for p in [subject.processor(e.images, e.question)] * GROUP]
    longest = max(len(prompt.input_ids) for prompt in prompts)
    pad = subject.processor.tokenizer.pad_token_id
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.input_ids) :] = prompt.input_ids
        mask[row, longest - len(prompt.input_ids) :] = 1
    pixels = torch.cat([prompt.pixel_values for prompt in prompts])
    grids = torch.cat([prompt.grid_thw for prompt in prompts])

    def generate() -> None:
        out = stock.generate(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == backbone.image_token_id).int(),
            pixel_values=pixels,
            image_grid_thw=grids,
            max_new_tokens=TOKENS,
            do_sample=True,
            top_k=0,
        )
        assert out.shape[1] == longest + TOKENS

    fed: dict[str, int] = {}

    def rolled(mode: str) -> None:
        settings = [Settings(mode=mode, temperature=1.0, max_new_tokens=TOKENS, seed=n) for n in range(len(prompts))]
        found = roll_out(backbone, method, prompts, settings, subject.processor.decode)
        thought = sum(len(block) for rollout in found for block in rollout.latents)
        fed[mode] = sum(len(segment.ids) for r in found for segment in r.row.segments if hasattr(segment, "ids"))
        fed[mode] += thought + 2 * sum(len(rollout.latents) for rollout in found)

    seconds = medians(
        {
            "generate": clock(generate),
            "rollouts in words": clock(lambda: rolled("text")),
            "rollouts": clock(lambda: rolled("latent")),
        }
    )
    per = {
        "generate": seconds["generate"] / (len(prompts) * TOKENS),
        "rollouts in words": seconds["rollouts in words"] / fed["text"],
        "rollouts": seconds["rollouts"] / fed["latent"],
    }
    counted, memory = forwards(), peak()
    print(f"{subject.name}, {len(prompts)} responses of {TOKENS}, {QUESTIONS} questions, one CPU thread")
    for name, each in per.items():
        print(f"  {name:18} {1e6 * each:7.1f} µs per position fed  {per['generate'] / each:5.2f}× as fast as generate")
    ratio = per["generate"] / per["rollouts"]
    verdict = "met" if ratio >= 0.9 else "missed"
    print(f"  rollouts with latents, against generate {ratio:.2f}×  (target ≥ 0.9×: {verdict})")
    print("  forwards: " + ", ".join(f"{name} {count}" for name, count in counted.items()))
    print(f"  peak memory of a phase of 128 responses and a step {memory:.0f} MB")
    write_report("rl", seconds, per_position=per, ratio=ratio, forwards=counted, peak_mb=memory)


if __name__ == "__main__":
    main()
