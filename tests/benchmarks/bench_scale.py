"""Speed at a published model's size: words, latents one by one and at once, beside `generate` and the memory's speed.

`make bench ARGS=scale`: Qwen2.5-VL-7B's shape in bfloat16 on a GPU, or the embedded models' shape in float32 where
there is none; `python -m tests.benchmarks.bench_scale --shape 7b --device cpu` measures what it names. The weights are
random: time depends on their shapes alone. Beside each step stands its limit, the bytes of the weights that it reads
over the rate at which this device copies memory. Medians in one process, taking turns; writes runs/bench/scale.json.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.config import MethodConfig
from latent_core.decoding.engine import decode
from latent_core.events import FinishEvent
from latent_core.methods import LatentMethod, build_method
from latent_core.model.attention import IMPLEMENTATION
from latent_core.model.backbones import wrap
from latent_core.model.processor import Prompt
from latent_core.settings import Settings
from tests.benchmarks.timing import clock, medians, peak_bytes, write_report
from trainers.planning.architectures import published

SHAPES = {"glyph": None, "3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}
SIDE = 16
"""Merged tokens along each side of the image: 448 × 448 pixels of a published model."""
WORDS = 48
"""Words of the question."""
COPIED = 1 << 28
"""Bytes of the buffer by which the device's memory is measured, more than caches hold."""


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Measures, prints and writes; milliseconds by what took them."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="bench_scale", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b" if gpu else "glyph")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--steps", type=int, default=32, help="words of a run, latents of a block (default: 32)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(options.shape, torch.device(options.device), options.steps)
    seconds = medians(bench.tasks(), options.repeats)
    found = bench.found(seconds)
    bench.show(found)
    peaks = {name: peak_bytes(run, bench.device) / 1e9 for name, run in bench.whole_runs().items()}
    print("  peak memory, GB: " + ", ".join(f"{name} {peak:.2f}" for name, peak in peaks.items()))
    facts = {"repeats": options.repeats, "options": vars(options), "on": bench.on}
    write_report("scale", seconds, milliseconds=found, peak_gb=peaks, **facts)
    return found


class Bench:
    """A random model, its prompt, and the runs that are compared."""

    def __init__(self, shape: str, device: torch.device, steps: int) -> None:
        self.shape, self.device, self.steps = shape, device, steps
        self.dtype = torch.float32 if shape == "glyph" else torch.bfloat16
        model = random_model(shape, device, self.dtype)
        self.backbone = wrap(model)
        self.backbone.eos_ids = frozenset()
        model.generation_config.eos_token_id = None
        tokens = {"<open>": 3, "</open>": 2, "<pad>": 1}
        names = dict(open_token="<open>", close_token="</open>", pad_token="<pad>")

        def token_id(token: str) -> int:
            return self.backbone.vocabulary - tokens[token]

        self.monet = build_method(MethodConfig(method="monet", **names), token_id)
        wide = {"width": self.backbone.width, "grid": "fixed"}
        parallel = MethodConfig(method="deeplatent", options=wide, **{**names, "pad_token": None})
        self.deeplatent = build_method(parallel, token_id).to(device, self.dtype).eval()
        self.prompt = prompt(model.config)
        layers = sum(p.numel() * p.element_size() for p in self.backbone.layers.parameters())
        weight = model.get_output_embeddings().weight
        head = weight.numel() * weight.element_size()
        self.read = {"text token": layers + head, "latent": layers}
        """Bytes of the weights that a step reads."""
        parameters = sum(p.numel() for p in model.parameters())
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        self.on = f"{shape}, {parameters / 1e9:.3f}B parameters, {self.dtype}, {name}, torch {torch.__version__}"

    def run(self, method: LatentMethod, settings: Settings, *, record: bool = False, layers: tuple[int, ...] = ()):
        """One run to its end."""
        *_, last = decode(self.backbone, method, [self.prompt], [settings], record=record, attention=layers)
        assert isinstance(last, FinishEvent)
        return last

    def generate(self, tokens: int) -> None:
        """transformers' own loop, with its own attention."""
        model, ids = self.backbone.model, self.prompt.input_ids[None].to(self.device)
        with stock_attention(model):
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == self.backbone.image_token_id).int(),
                pixel_values=self.prompt.pixel_values.to(self.device, self.dtype),
                image_grid_thw=self.prompt.grid_thw.to(self.device),
                max_new_tokens=tokens,
                do_sample=False,
            )
        assert out.shape[1] == ids.shape[1] + tokens

    def whole_runs(self) -> dict[str, Callable[[], object]]:
        """Runs from the prompt to their end, by name. One step more than is counted: the last word is never fed."""
        words = Settings(mode="text", max_new_tokens=self.steps + 1)
        block = dict(mode="forced", latents=self.steps, max_blocks=1)
        thought = Settings(**block, max_new_tokens=2)
        seen = tuple(range(0, self.backbone.num_layers, max(1, self.backbone.num_layers // 8)))
        return {
            "generate": lambda: self.generate(self.steps + 1),
            "words": lambda: self.run(self.monet, words),
            "words, all recorded": lambda: self.run(self.monet, words, record=True, layers=seen),
            "latents one by one": lambda: self.run(self.monet, thought),
            "latents, all recorded": lambda: self.run(self.monet, thought, record=True, layers=seen),
            "latents at once": lambda: self.run(self.deeplatent, thought),
        }

    def tasks(self) -> dict[str, Callable[[], float]]:
        """What is timed: whole runs, runs that end after the prompt, and a copy of memory."""
        one = Settings(mode="text", max_new_tokens=1)
        buffer = torch.ones(COPIED // 4, device=self.device)
        target = torch.empty_like(buffer)
        runs = {
            **self.whole_runs(),
            "generate, prompt": lambda: self.generate(1),
            "prompt": lambda: self.run(self.monet, one),
            "copy": lambda: target.copy_(buffer),
        }
        return {name: clock(self._finished(run), time.perf_counter) for name, run in runs.items()}

    def _finished(self, run: Callable[[], object]) -> Callable[[], None]:
        def finished() -> None:
            run()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return finished

    def found(self, seconds: dict[str, float]) -> dict[str, float]:
        """Milliseconds per step and prompt, and the limits of the steps.

        A run of words feeds `steps` words behind the prompt; a block `steps` latents between two markers, of which a
        parallel one has all in two forwards.
        """
        rate = 2 * COPIED / seconds["copy"]
        past = {name: time - seconds["prompt"] for name, time in seconds.items()}
        found = {
            "prompt": seconds["prompt"],
            "prompt, generate": seconds["generate, prompt"],
            "text token": past["words"] / self.steps,
            "text token, all recorded": past["words, all recorded"] / self.steps,
            "text token, generate": (seconds["generate"] - seconds["generate, prompt"]) / self.steps,
            "text token, limit": self.read["text token"] / rate,
            "latent": past["latents one by one"] / (self.steps + 2),
            "latent, all recorded": past["latents, all recorded"] / (self.steps + 2),
            "latent, limit": self.read["latent"] / rate,
            "latent of a parallel block": past["latents at once"] / self.steps,
            "parallel block": past["latents at once"],
        }
        return {name: 1000 * value for name, value in found.items()} | {"copy rate, GB/s": rate / 1e9}

    def show(self, found: dict[str, float]) -> None:
        """A table."""
        print(f"{self.on}; {len(self.prompt.input_ids)} tokens of prompt, {SIDE**2} of them an image; ms")
        for name, value in found.items():
            print(f"  {name:28}{value:10.3f}")
        print(
            f"  against generate {found['text token, generate'] / found['text token']:.2f}×, latent against word "
            f"{found['latent'] / found['text token']:.2f}×, word against its limit "
            f"{found['text token'] / found['text token, limit']:.2f}×"
        )


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """A model of this shape with random weights, made where it will run."""
    name = SHAPES[shape]
    config = published()[name] if name else Qwen2_5_VLConfig.from_pretrained(EMBEDDED / "glyph-monet")
    torch.manual_seed(0)
    with device:
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype).eval()


def prompt(config: Qwen2_5_VLConfig) -> Prompt:
    """WORDS words around an image of SIDE × SIDE tokens, of random pixels."""
    vision = config.vision_config
    side = SIDE * vision.spatial_merge_size
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    picture = [config.vision_start_token_id, *[config.image_token_id] * SIDE**2, config.vision_end_token_id]
    words = list(range(5, 5 + WORDS // 2))
    return Prompt(
        input_ids=torch.tensor([*words, *picture, *words]),
        pixel_values=torch.randn(side**2, channels, generator=torch.Generator().manual_seed(0)),
        grid_thw=torch.tensor([[1, side, side]]),
        images=(torch.zeros(side * vision.patch_size, side * vision.patch_size, 3, dtype=torch.uint8),),
    )


@contextmanager
def stock_attention(model: Qwen2_5_VLForConditionalGeneration) -> Iterator[None]:
    """transformers' sdpa in place of ours; a copy of the model would need its memory twice."""
    language = model.model.language_model
    language.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        language.set_attn_implementation(IMPLEMENTATION)


if __name__ == "__main__":
    main()
