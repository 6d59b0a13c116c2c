"""Speed of training: a stage-2 step of Monet on 16 samples at once against sixteen on one, and the memory of each.

`make bench ARGS=train`. Wall time with torch's own number of threads, as in training; medians of five repeats that
take turns in one process; the peaks come from a process each. Writes runs/bench/train.json. The model is untrained:
what it costs does not depend on what it knows.
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from latent_core import glyphs
from latent_core.model.processor import Processor
from tests.benchmarks.timing import clock, medians, write_report
from trainers.recipe import load_recipe
from trainers.sft.monet import AlignObservations
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

BATCH = 16


def stage() -> AlignObservations:
    """glyph-monet-stage2 with random weights, at K = 8."""
    tokenizer = build_tokenizer()
    recipe, _ = load_recipe("glyph-monet-stage2", ["latents_min=8", "latents_max=8"])
    built = AlignObservations(build_model(tokenizer), Processor(tokenizer, build_image_processor()), recipe)
    built.learn_from(build_model(tokenizer))  # as in the recipes, it has the student's vision tower
    return built


def steps(built: AlignObservations, batch: int) -> Callable[[], None]:
    """Forward and backward over the same BATCH samples, `batch` at a time; one and two blocks mixed."""
    families = ("find", "relate", "count", "trace")
    items = [(glyphs.sample(families[i % 4], i, "train"), Random(0)) for i in range(BATCH)]

    def run() -> None:
        for start in range(0, BATCH, batch):
            loss = built(**built.collate(items[start : start + batch]))["loss"]
            (loss * batch / BATCH).backward()
        built.zero_grad()

    return run


def peak(batch: int) -> float:
    """Peak memory in MB of a process that has done one step in parts of `batch`."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (batch,))


def _peak(batch: int) -> float:
    steps(stage(), batch)()
    # getrusage would give the larger peak of the parent, which a process inherits
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    built = stage()
    together, alone = steps(built, BATCH), steps(built, 1)
    seconds = medians({"batch": clock(together, time.perf_counter), "singles": clock(alone, time.perf_counter)})
    ratio = seconds["singles"] / seconds["batch"]
    memory = {"batch": peak(BATCH), "singles": peak(1)}
    verdict = "met" if ratio >= 2.5 else "missed"
    print(
        f"stage 2 of Monet, {BATCH} samples, K = 8, {sum(p.numel() for p in built.model.parameters()) / 1e6:.2f}M, CPU"
    )
    for name, count in (("batch", BATCH), ("singles", 1)):
        print(f"  {count:2} at a time: {BATCH / seconds[name]:.1f} samples/s, peak {memory[name]:.0f} MB")
    print(f"  samples/s against single samples                {ratio:6.2f}×  (target ≥ 2.5×: {verdict})")
    write_report("train", seconds, ratio=ratio, peak_mb=memory)


if __name__ == "__main__":
    main()
