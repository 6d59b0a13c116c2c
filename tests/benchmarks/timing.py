"""Medians of interleaved repeats."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 5


def medians(timed: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, float]:
    """Seconds of each, taking turns; the first round warms up and does not count."""
    rounds = [{name: run() for name, run in timed.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(r[name] for r in rounds[1:]) for name in timed}


def clock(run: Callable[[], object], now: Callable[[], float] = time.process_time) -> Callable[[], float]:
    """A function that runs `run` and returns the seconds that it took.

    CPU time by default: with one thread that is the wall time of a machine that does nothing else, and stays so on one
    that does. `time.perf_counter` gives wall time, for what uses all cores.
    """

    def timed() -> float:
        began = now()
        run()
        return now() - began

    return timed


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Memory at its highest during `run`, weights included: PyTorch's on a GPU, the process's on the CPU (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    run()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def write_report(name: str, seconds: dict[str, float], **found: object) -> None:
    """runs/bench/<name>.json: medians, what was found, and on what."""
    report = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "repeats": REPEATS,
        "median_seconds": seconds,
        **found,
    }
    path = Path("runs/bench") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
