"""Weights in bf16 lose no update: copies in fp32 are stepped, saved and resumed, and the plan counts them."""

import re
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.checkpoints.loading import load
from tests.training import curve, small
from trainers.__main__ import main
from trainers.data.monet import write_rows
from trainers.loop.copies import COPY, CopiedAdamW, check_updates
from trainers.loop.launch import build_stage, train
from trainers.planning.costs import Shape, state_memory

SETTINGS = dict(lr=1e-5, betas=(0.9, 0.98), weight_decay=0.1)


def groups(*dtypes: torch.dtype) -> list[dict[str, object]]:
    """Two parameter groups with rates of their own; one parameter never gets a gradient."""
    torch.manual_seed(0)
    parts = [nn.Parameter(torch.randn(8, 6).to(dtype)) for dtype in dtypes for _ in range(2)]
    parts.append(nn.Parameter(torch.randn(5).to(dtypes[0])))
    return [{"params": parts[:1]}, {"params": parts[1:], "lr": 1e-3}]


def weights(given: list[dict[str, object]]) -> list[nn.Parameter]:
    return [weight for group in given for weight in group["params"]]


def step(optimiser: torch.optim.Optimizer, given: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    optimiser.zero_grad()
    for weight in given[:-1]:
        weight.grad = torch.randn(weight.shape).to(torch.bfloat16).to(weight.dtype)
    optimiser.step()


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}, {"fused": False, "foreach": False}])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.float16,), (torch.bfloat16, torch.float32)])
def test_copies_are_stepped_as_fp32_weights_are(kind, dtypes):
    mine, given = groups(*dtypes), groups(*dtypes)
    for group in given:
        group["params"] = [nn.Parameter(weight.detach().float()) for weight in group["params"]]
    optimiser = CopiedAdamW(AdamW(mine, **SETTINGS, **kind).param_groups)
    known = AdamW(given, **SETTINGS, **kind)
    for seed in range(20):
        step(optimiser, weights(mine), seed)
        step(known, weights(given), seed)
    for weight, wanted in zip(weights(mine), weights(given), strict=True):
        assert torch.equal(weight, wanted.to(weight.dtype))
    for copy, wanted in zip(weights(optimiser.param_groups), weights(given), strict=True):
        assert torch.equal(copy, wanted)
    assert all(value.dtype == torch.float32 for state in optimiser.state.values() for value in state.values())


def test_saved_copies_go_on_bit_for_bit(tmp_path):
    whole, first = groups(torch.bfloat16), groups(torch.bfloat16)
    one, two = (CopiedAdamW(AdamW(given, **SETTINGS).param_groups) for given in (whole, first))
    for seed in range(6):
        step(one, weights(whole), seed)
    for seed in range(3):
        step(two, weights(first), seed)
    torch.save([two.state_dict(), weights(first)], tmp_path / "saved.pt")
    state, kept = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = groups(torch.bfloat16)
    for weight, saved in zip(weights(again), kept, strict=True):
        weight.data.copy_(saved)
    three = CopiedAdamW(AdamW(again, **SETTINGS).param_groups)
    three.load_state_dict(state)
    for seed in range(3, 6):
        step(three, weights(again), seed)
    pairs = zip(weights(one.param_groups), weights(three.param_groups), strict=True)
    assert all(torch.equal(copy, other) for copy, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["1e-5", "1e-6"])
def test_no_update_of_a_bf16_run_is_lost(rate, tmp_path):
    """Of the decoder's entries, 94% never moved in 20 steps at 1e-5 where the weights were stepped themselves, and 99%
    at 1e-6; in fp32 all do.
    """
    given = [f"init={EMBEDDED / 'glyph-text'}", "dtype=bfloat16", f"learning_rate={rate}", "weight_decay=0"]
    given += ["warmup_steps=0", "lr_scheduler_type=constant", "max_steps=20", "save_steps=20", "use_cpu=true"]
    final = train(*small("glyph-text", tmp_path / "run", *given, "per_device_train_batch_size=2"))
    start = load(EMBEDDED / "glyph-text", dtype=torch.bfloat16).backbone.model.state_dict()
    saved = torch.load(tmp_path / "run/checkpoint-20/optimizer.pt", weights_only=True)["state"].values()
    copies = {copy.to(torch.bfloat16).view(torch.int16).numpy().tobytes(): copy for copy in (s[COPY] for s in saved)}
    moved = total = 0
    for name, weight in load(final, dtype=torch.bfloat16).backbone.model.state_dict().items():
        if ".layers." in name:
            # what ships is the copies, rounded: it decodes as it was trained
            copy = copies[weight.view(torch.int16).numpy().tobytes()]
            moved += (copy != start[name].float()).sum().item()
            total += copy.numel()
    assert total > 500_000
    assert moved / total > 0.99


@pytest.mark.slow
def test_a_resumed_bf16_run_gives_the_weights_of_an_uninterrupted_one(tmp_path):
    given = ["init=" + str(EMBEDDED / "glyph-text"), "dtype=bfloat16", "max_steps=4", "save_steps=2", "use_cpu=true"]
    given += ["gradient_accumulation_steps=2", "per_device_train_batch_size=2", "lr_scheduler_type=cosine"]
    recipe, arguments = small("glyph-text", tmp_path / "parts", *given)
    train(recipe, arguments)
    whole = shutil.copytree(tmp_path / "parts", tmp_path / "whole")
    (tmp_path / "parts/checkpoint-4/complete").unlink()
    shutil.rmtree(tmp_path / "parts/final")
    final = train(recipe, arguments)
    assert curve(tmp_path / "parts") == curve(whole)
    assert (final / "model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    first, second = (
        torch.load(tmp_path / run / "checkpoint-4/optimizer.pt", weights_only=True)["state"]
        for run in ("whole", "parts")
    )
    assert all(torch.equal(first[number][COPY], second[number][COPY]) for number in first)


@pytest.mark.parametrize("name", ["glyph-vision", "glyph-latent", "glyph-lvr", "glyph-valr", "glyph-deeplatent"])
def test_a_stage_learns_in_bf16_with_heads_of_its_own(name, tmp_path):
    start = EMBEDDED / "glyph-text"
    given = [f"init={'null' if name == 'glyph-vision' else start}", "dtype=bfloat16", "latents_max=4"]
    recipe, _ = small(name, tmp_path, *given, *([f"teacher={start}"] if name == "glyph-deeplatent" else []))
    stage = build_stage(recipe, tmp_path)
    trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.bfloat16}
    assert {buffer.dtype for buffer in stage.model.buffers() if buffer.is_floating_point()} == {torch.float32}
    stage(**stage.collate([(glyphs.sample("find", 0, "train"), Random(0))]))["loss"].backward()
    assert sum(parameter.grad is not None for parameter in trained) > len(trained) / 2
    CopiedAdamW(AdamW(trained, lr=1e-6).param_groups).step()


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adagrad", "rmsprop", "adamw_torch_8bit", "paged_adamw_8bit"])
def test_an_optimiser_without_copies_is_refused_for_bf16_weights(optim, tmp_path, capsys):
    given = ["init=" + str(EMBEDDED / "glyph-text"), f"output_dir={tmp_path}", "use_cpu=true", f"optim={optim}"]
    for more in ([], ["--dry-run"]):
        assert main(["run", "glyph-text", *given, "dtype=bfloat16", *more]) == 2
        error = capsys.readouterr().err
        assert re.search(f"{optim}.*rounded away.*optim=adamw_torch_fused.*dtype=float32", error)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("bfloat16", "sgd", True, "no"), "set mixed_precision: bf16 in accelerate's configuration"),
        (("float32", "adamw_torch", True, "fp16"), "losses to be scaled"),
        (("float32", "lomo", False, "no"), "within the backward pass"),
        (("float32", "galore_adamw_layerwise", False, "no"), "within the backward pass"),
        (("float32", "schedule_free_adamw", False, "no"), "outside of training"),
    ],
)
def test_what_would_step_unchecked_or_rounded_is_refused(given, words):
    dtype, optim, sharded, mixed = given
    with pytest.raises(ValueError, match=words):
        check_updates(dtype, optim, sharded=sharded, mixed_precision=mixed)
    check_updates("bfloat16", "sgd", sharded=True, mixed_precision="bf16")
    check_updates("float32", "sgd", sharded=False, mixed_precision="bf16")


@pytest.mark.parametrize(("strategy", "each"), [("one", 16), ("ddp", 18)])
def test_the_plan_counts_copies_in_fp32(strategy, each):
    shape = Shape(layers=1, width=1, key_width=1, feed_forward=1, vocabulary=1, parameters=100, trainable=100, layer=1)
    assert sum(state_memory(shape, strategy, 8, 2).values()) == each * 100
    assert state_memory(shape, strategy, 8, 4)["optimiser"] == 800


def test_what_an_optimiser_keeps_of_bf16_weights_is_what_the_plan_says():
    given = groups(torch.bfloat16)
    optimiser = CopiedAdamW(AdamW(given, **SETTINGS).param_groups)
    step(optimiser, [*weights(given), None], 0)
    kept = sum(value.nbytes for state in optimiser.state.values() for value in state.values() if value.dim())
    assert kept == 12 * sum(weight.numel() for weight in weights(given))


@pytest.mark.parametrize("config", [None, "trainers/accelerate/ddp.yaml"])
def test_a_7b_run_in_bf16_does_not_fit_one_card(config, tmp_path, capsys):
    file = write_rows([glyphs.sample("find", seed, "train") for seed in range(2)], tmp_path, "glyphs")
    given = ["run", "monet-7b-stage1", "--dry-run", f"data.files=[{file}]", f"data.root={tmp_path}"]
    given += ["eval_strategy=no", *(["--config", config] if config else [])]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert re.search(r"has 80 .*optimiser 91.*Spread it over several GPUs \(--config .*fsdp2.yaml", error)


def test_the_dry_run_says_that_copies_are_kept(capsys):
    given = ["run", "glyph-text", f"init={EMBEDDED / 'glyph-text'}", "--dry-run"]
    assert main([*given, "dtype=bfloat16"]) == 0
    assert "bfloat16; the optimiser steps fp32 copies of the trained ones" in capsys.readouterr().out
    assert main(given) == 0
    assert "copies" not in capsys.readouterr().out


def test_a_sharded_run_without_mixed_precision_is_refused_by_the_dry_run(tmp_path, capsys):
    text = Path("trainers/accelerate/fsdp2.yaml").read_text().replace("mixed_precision: bf16", "mixed_precision: 'no'")
    (tmp_path / "no.yaml").write_text(text)
    given = ["run", "monet-7b-stage1", "--dry-run", "--config", str(tmp_path / "no.yaml")]
    assert main(given) == 2
    assert "set mixed_precision: bf16" in capsys.readouterr().err
