"""A method that nobody has heard of, added as latent_core/methods/README.md says: it decodes, unrolls, loads, is
planned and trains.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from latent_core import load
from latent_core.checkpoints import loading as checkpoints
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import unroll
from latent_core.events import LatentEvent
from latent_core.methods import METHODS
from latent_core.model.backbones import wrap
from latent_core.settings import Settings
from tests.fading import RECIPE, ROOT, SPEC, Fading
from tests.tiny import EOS, OPEN, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt
from trainers.__main__ import main
from trainers.loop.launch import train
from trainers.recipe import load_recipe
from trainers.stages import STAGES


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(METHODS, "fading", Fading)
    monkeypatch.setitem(STAGES, "fading", SPEC)


@pytest.fixture
def method(known):
    return tiny_method("fading", options={"keep": 0.25})


@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
def test_decoding_and_unrolling_agree(known, rule):
    backbone, prompts = wrap(tiny_model()), [tiny_prompt(0), tiny_prompt(1, text=9)]
    method = tiny_method("fading", rule=rule)
    script = [1, OPEN, 3, OPEN, 4]
    settings = [Settings(latents=3), Settings(latents=2)]
    together = list(decode(backbone, method, prompts, settings, sampler=scripted(script, script)))
    for row, (prompt, setting) in enumerate(zip(prompts, settings, strict=True)):
        k = setting.latents
        alone = list(decode(backbone, method, [prompt], [setting], sampler=scripted(script)))
        rows = [ForcedSequence(prompt, (Tokens((1,)), Block(k), Tokens((3,)), Block(k), Tokens((4, EOS))))]
        with torch.no_grad():
            unrolled = unroll(backbone, method, rows)
        fed = torch.stack([event.fed for event in of_sequence(alone, 0, LatentEvent)])
        torch.testing.assert_close(torch.cat(unrolled.latents[0]), fed, atol=1e-5, rtol=0)
        other = torch.stack([event.fed for event in of_sequence(together, row, LatentEvent)])
        torch.testing.assert_close(other, fed, atol=1e-5, rtol=0)


def test_gradients_reach_its_parameters(method):
    backbone = wrap(tiny_model())
    rows = [ForcedSequence(tiny_prompt(), (Tokens((1,)), Block(3), Tokens((4, EOS))))]
    states, labels = unroll(backbone, method, rows).learned()
    torch.nn.functional.cross_entropy(backbone.logits(states), labels).backward()
    assert method.scale.grad.abs() > 0 and method.steer.grad.abs().sum() > 0


def test_its_checkpoint_is_saved_and_loaded(method, tmp_path):
    source = load("glyph-monet")
    config = type(source.config)(
        method="fading",
        open_token=source.config.open_token,
        close_token=source.config.close_token,
        options={"keep": 0.25},
    )
    method.scale.data.fill_(0.9)
    folder = tmp_path / "fading"
    checkpoints.save(folder, model=source.backbone.model, processor=source.processor, config=config, method=method)
    back = load(folder)
    assert back.method.name == "fading" and back.method.options.keep == 0.25 and back.method.scale == 0.9


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "fading.yaml"
    path.write_text(f"name: fading\n{RECIPE}init: {ROOT / 'assets/checkpoints/glyph-text'}\n")
    return str(path)


def overrides(run, rows: int) -> list[str]:
    given = [f"output_dir={run}", f"per_device_train_batch_size={rows}", "eval_strategy=no", "save_strategy=no"]
    return [*given, "warmup_steps=0", "logging_steps=1", "use_cpu=true"]


def test_its_recipe_is_read_and_its_options_are_nobody_elses(known, recipe):
    assert load_recipe(recipe, [])[0].stage_options.weight == 0.5
    for given, words in (
        ("fading.weight=heavy", "fading.weight is 'heavy'"),
        ("fading.weigth=1", "Unknown field 'weigth' in fading. Did you mean 'weight'"),
        ("lvr.weight=1", r"lvr.weight is given, but stage fading does not read it \(lvr would\)"),
        ("method=monet", "stage fading trains method fading, not 'monet'|has none"),
    ):
        with pytest.raises(ValueError, match=words):
            load_recipe(recipe, [given])
    with pytest.raises(ValueError, match=r"fading.weight is given, .* \(fading would\)"):
        load_recipe("glyph-lvr", ["fading.weight=1"])


def test_its_run_is_planned(known, recipe, tmp_path, capsys):
    assert main(["run", recipe, "--dry-run", *overrides(tmp_path / "run", 4)]) == 0
    text = capsys.readouterr().out
    assert "fading: fading from" in text and "latent pass" in text


def test_two_processes_train_it_as_one_does(known, recipe, tmp_path):
    final = train(*load_recipe(recipe, overrides(tmp_path / "one", 4)))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    command = [*launcher, "--rdzv_endpoint=localhost:0", "tests/fading.py", "run", recipe]
    done = subprocess.run(
        [sys.executable, *command, *overrides(tmp_path / "two", 2)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    curves = []
    for run in ("one", "two"):
        lines = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        curves.append([(line["loss"], line["penalty"]) for line in lines if "loss" in line])
    assert len(curves[0]) == 4 and curves[0][0][1] == pytest.approx(0.49) and curves[0][-1][1] != curves[0][0][1]
    for first, second in zip(*curves, strict=True):
        assert second == pytest.approx(first, abs=1e-4)
    back, other = load(final), load(tmp_path / "two/final")
    assert back.method.name == "fading" and back.method.scale != 0.7
    torch.testing.assert_close(other.method.scale, back.method.scale, atol=1e-4, rtol=0)
