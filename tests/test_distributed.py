"""Two processes learn what one does, for a stage of every method, and a killed run goes on where it was.

Rows have one block or two, so that the processes' numbers of forwards differ.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tests.distributed import RECIPES, ROOT, overrides
from trainers.loop.copies import COPY

CONFIGS = ROOT / "trainers/accelerate"


def environment(config: str | None = None) -> dict[str, str]:
    """Of a child: one thread; for sharding, the variables that accelerate makes of its configuration file."""
    values = os.environ | {"OMP_NUM_THREADS": "1"}
    if config is not None:
        values["ACCELERATE_USE_FSDP"] = "true"
        for name, value in yaml.safe_load((CONFIGS / config).read_text())["fsdp_config"].items():
            name = name.replace("layer_cls", "cls").upper()
            values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return values


LAUNCHER = (
    "-m",
    "torch.distributed.run",
    "--nproc_per_node=2",
    "--rdzv_backend=c10d",
    "--rdzv_endpoint=localhost:0",
)


def start(*command: str, env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def two(folder: Path, config: str | None = None) -> Path:
    start(*LAUNCHER, "tests/distributed.py", str(folder), "2", env=environment(config))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    start("tests/distributed.py", str(folder), "4", env=environment())
    return folder


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> Path:
    return two(tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory) -> Path:
    return two(tmp_path_factory.mktemp("fsdp2"), "fsdp2.yaml")


def curve(run: Path, *names: str) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[name] for name in names) for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(kind, recipe, one, request):
    folder = request.getfixturevalue(kind)
    part = {
        "glyph-monet-stage1": (),
        "glyph-lvr": ("reconstruction",),
        "glyph-valr": ("repa",),
        "glyph-monet-rl": ("reward", "taught"),
    }.get(recipe, ("alignment",))
    alone, together = (curve(run / recipe, "step", "loss", *part) for run in (one, folder))
    assert len(alone) >= 8
    if recipe == "glyph-monet-rl":  # its loss says nothing: minus the advantages' mean at each phase's start
        assert {0.0, 0.25} < {taught for *_, taught in alone}
    else:
        assert alone[0][1] > alone[-1][1] + 0.1
    for first, second in zip(alone, together, strict=True):
        assert second == pytest.approx(first, abs=1e-4)
    weights = [load_file(run / recipe / "final/model.safetensors") for run in (one, folder)]
    assert weights[0].keys() == weights[1].keys()
    assert max((weights[0][key] - weights[1][key]).abs().max() for key in weights[0]) < 1e-3
    own = [run / recipe / "final/method.safetensors" for run in (one, folder)]
    assert own[0].exists() == own[1].exists() == (recipe in ("glyph-lvr", "glyph-deeplatent"))
    if own[0].exists():
        first, second = map(load_file, own)
        assert max((first[key] - second[key]).abs().max() for key in first) < 1e-3


def test_processes_of_which_one_diverges_all_stop_and_keep_what_is_good(tmp_path):
    command = [sys.executable, *LAUNCHER, "tests/distributed.py", str(tmp_path), "diverge"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "Finished" not in done.stdout
    assert "after 2 of 6 steps the loss is inf" in done.stderr
    assert [path.name for path in tmp_path.glob("*/complete")] == ["complete"] and not (tmp_path / "final").exists()
    kept = torch.load(tmp_path / "checkpoint-2/optimizer.pt", weights_only=True)["state"].values()
    assert {state[COPY].dtype for state in kept} == {torch.float32}


def test_a_run_killed_in_the_middle_of_stage_2_goes_on_with_the_same_curve(tmp_path):
    def command(folder: str) -> list[str]:
        given = overrides(tmp_path / folder, "glyph-monet-stage2", 2)
        given += ["max_steps=10", "save_strategy=steps", "save_steps=3", "lr_scheduler_type=cosine"]
        return ["-m", "trainers", "run", "glyph-monet-stage2", *given]

    start(*command("whole"), env=environment())
    run = tmp_path / "killed/glyph-monet-stage2"
    child = subprocess.Popen(
        [sys.executable, *command("killed")], env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while not (run / "checkpoint-3/complete").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (run / "final").exists()
    start(*command("killed"), env=environment())
    whole = tmp_path / "whole/glyph-monet-stage2"
    assert curve(run, "step", "loss", "alignment") == curve(whole, "step", "loss", "alignment")
    first, second = (load_file(folder / "final/model.safetensors") for folder in (run, whole))
    assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_one_that_accelerate_reads(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
