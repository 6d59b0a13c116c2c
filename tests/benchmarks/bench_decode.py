"""Speed of decoding: against `generate`, latents against words, recording against not, a batch against single runs.

`make bench ARGS=decode`. Medians of five repeats, the things compared taking turns in one process; prints a table and
writes runs/bench/decode.json. Measures the embedded glyph-monet, or a random model of its size where there is none.
End of sequence is switched off, so that every run has the length it was asked for.
"""

import copy
import resource

import torch

from latent_core import glyphs
from latent_core.analysis.similarity import nearest_patch
from latent_core.checkpoints.embedded import available
from latent_core.checkpoints.loading import load
from latent_core.config import MethodConfig
from latent_core.decoding.engine import decode
from latent_core.methods import build_method
from latent_core.model.backbones import wrap
from latent_core.model.processor import Processor
from latent_core.reasoner import Reasoner
from latent_core.settings import Settings
from tests.benchmarks.timing import clock, medians, write_report
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

TOKENS = 64
"""Generated tokens of a run of words."""
LATENTS = 48
"""Latents of the one block of a run that compares latents with words at the same places of the sequence."""
ROWS = 32


def reasoner() -> Reasoner:
    """The embedded checkpoint, or a random model of its size."""
    if "glyph-monet" in available():
        return load("glyph-monet")
    tokenizer = build_tokenizer()
    processor = Processor(tokenizer, build_image_processor())
    tokens = {"open": "<abs_vis_token>", "close": "</abs_vis_token>", "pad": "<abs_vis_token_pad>"}
    config = MethodConfig(method="monet", **{f"{name}_token": token for name, token in tokens.items()})
    method = build_method(config, processor.token_id)
    model = build_model(tokenizer).eval()
    return Reasoner(name="random", backbone=wrap(model), processor=processor, method=method, config=config)


def main() -> None:
    torch.set_num_threads(1)  # at this size threads cost more than they give
    subject = reasoner()
    backbone, method = subject.backbone, subject.method
    stock = copy.deepcopy(backbone.model)
    stock.set_attn_implementation("sdpa")
    stock.generation_config.eos_token_id = None
    backbone.eos_ids = frozenset()
    examples = [glyphs.sample("find", seed, split="test") for seed in range(ROWS)]
    prompts = [subject.processor(example.images, example.question) for example in examples]
    prompt, example = prompts[0], examples[0]
    ids = prompt.input_ids[None]

    def generate() -> None:
        out = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == backbone.image_token_id).int(),
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.grid_thw,
            max_new_tokens=TOKENS,
            do_sample=False,
        )
        assert out.shape[1] == ids.shape[1] + TOKENS

    def run(rows: int, settings: Settings, record: bool = True, first: int = 0) -> list:
        chosen = prompts[first : first + rows]
        return list(decode(backbone, method, chosen, [settings] * rows, record=record))

    words = Settings(mode="text", max_new_tokens=TOKENS)
    thought = Settings(mode="forced", latents=LATENTS, max_blocks=1, max_new_tokens=2)
    as_long = Settings(mode="text", max_new_tokens=LATENTS + 3)  # as many forwards: the last token is not fed
    only_prompt = Settings(mode="text", max_new_tokens=1)
    asked = dict(mode="forced", latents=8, max_blocks=1, max_new_tokens=TOKENS)
    block = dict(mode="forced", latents=16, max_blocks=1, max_new_tokens=2)
    both, asking = Settings(**asked), (example.images, example.question)

    def recorded() -> None:
        trace = subject.run(example.images, example.question, **asked)
        vectors = torch.stack([event.hidden for event in trace.events() if hasattr(event, "hidden")])
        nearest_patch(vectors, trace.start.image_states, centred=True)

    seconds = medians(
        {
            "generate": clock(generate),
            "decode": clock(lambda: run(1, words)),
            "prompt and a block": clock(lambda: run(1, thought)),
            "prompt and words": clock(lambda: run(1, as_long)),
            "prompt": clock(lambda: run(1, only_prompt)),
            "plain": clock(lambda: list(subject.stream(*asking, record=False, **asked))),
            "recorded": clock(recorded),
            "run": clock(lambda: list(subject.stream(*asking, **asked))),
            "run with attention": clock(lambda: list(subject.stream(*asking, attention=True, **asked))),
            "block": clock(lambda: list(subject.stream(*asking, **block))),
            "block with attention": clock(lambda: list(subject.stream(*asking, attention=True, **block))),
            "batch": clock(lambda: run(ROWS, both)),
            "singles": clock(lambda: [run(1, both, first=row) for row in range(ROWS)]),
        }
    )
    # beyond the prompt, both runs feed two markers or words, and LATENTS latents or words
    latent_step, text_step = (
        (seconds[name] - seconds["prompt"]) / (LATENTS + 2) for name in ("prompt and a block", "prompt and words")
    )
    ratios = [
        ("text tokens/s with events, against generate", seconds["generate"] / seconds["decode"], "≥", 1.3),
        ("latent step, against text step", latent_step / text_step, "≤", 1.05),
        ("trace and similarity, against plain decoding", seconds["recorded"] / seconds["plain"], "≤", 1.1),
        ("attention of latents kept, all layers", seconds["block with attention"] / seconds["block"], "≤", 1.15),
        ("attention of latents and words kept", seconds["run with attention"] / seconds["run"], "≤", 1.15),
        (f"batch of {ROWS}, against single runs", seconds["singles"] / seconds["batch"], "≥", 5.0),
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{subject.name}, {sum(p.numel() for p in backbone.parameters()) / 1e6:.2f}M parameters, {backbone.dtype}, CPU"
    )
    print(f"  generate {TOKENS / seconds['generate']:.0f} tokens/s, decode {TOKENS / seconds['decode']:.0f} tokens/s")
    print(f"  text step {text_step * 1e3:.2f} ms, latent step {latent_step * 1e3:.2f} ms")
    for name, ratio, sign, target in ratios:
        met = ratio >= target if sign == "≥" else ratio <= target
        print(f"  {name:46} {ratio:6.2f}×  (target {sign} {target}×: {'met' if met else 'missed'})")
    print(f"  peak memory of the process {peak:.0f} MB")
    found = {name: ratio for name, ratio, *_ in ratios}
    write_report("decode", seconds, checkpoint=subject.name, ratios=found, peak_mb=peak)


if __name__ == "__main__":
    main()
