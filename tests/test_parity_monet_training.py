"""Monet's training stages against the reference implementation's masks, losses and gradients."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from latent_core.decoding.layout import ForcedSequence, lay_out
from latent_core.decoding.sequence import AuxiliaryImage, Block, Tokens
from latent_core.model.attention import Flow, attend, tables
from latent_core.model.backbones import wrap
from latent_core.model.processor import Prompt
from latent_core.model.slot_types import PAD
from tests.test_parity_monet import CASE, FOLDER, TENSORS, method
from trainers.recipe import Recipe
from trainers.sft.losses import alignment
from trainers.sft.monet import (
    AlignLatents,
    AlignObservations,
    MonetStageOptions,
    WarmUp,
    think,
    weighted_cross_entropy,
)
from trainers.stage import Stage

TRAINING = json.loads((FOLDER / "training.json").read_text())
GOLDEN = load_file(FOLDER / "training.safetensors") | TENSORS
SECTIONS = TRAINING["sections"]
RELEASED = dict(
    align_axis="token",
    aux_self=False,
    latent_pass_mask="causal",
    target_mask="none",
    observation_tags="context",
    surrogate_weight=2.0,
)
TOLERANCE = {"atol": 1e-4, "rtol": 0}


def golden(section: str, key: str) -> torch.Tensor:
    return GOLDEN[f"{section}.{key}"]


def rows_of(section: str, part: str = "", ids: torch.Tensor | None = None) -> list[ForcedSequence]:
    """A section's row cut into words, images and blocks, as its layout names them. The prompt ends with the tokens
    after which the reference learns."""
    about = SECTIONS[section] if not part else SECTIONS[section][part]
    ids = golden(section, f"{part}.input_ids".lstrip(".")) if ids is None else ids
    return [
        build_row(ids, about["layout"], about["observation_positions"] if "observation_positions" in about else [])
    ]


def build_row(ids: torch.Tensor, layout: list[dict], observed: list[int]) -> ForcedSequence:
    prompt_end = next(part["end"] for part in layout if part["name"] == "assistant.open")
    segments = []
    for part in layout:
        name, start, end = part["name"], part["start"], part["end"]
        if start < prompt_end:
            continue
        kind, _, role = name.partition(".")
        if kind.startswith("latent"):
            if role == "pads":
                segments.append(Block(end - start))
        elif kind.startswith("aux_image"):
            if role == "tokens":
                pixels, grid = (GOLDEN[f"images.aux{kind[-1]}.{key}"] for key in ("pixel_values", "grid_thw"))
                segments.append(AuxiliaryImage(pixels, grid))
        else:
            tag = kind.startswith("observation") and role in ("open", "close")
            segments.append(Tokens(tuple(ids[start:end].tolist()), learn=not tag, observation=start in observed))
    pixels, grid = (GOLDEN[f"images.question.{key}"] for key in ("pixel_values", "grid_thw"))
    prompt = Prompt(input_ids=ids[:prompt_end], pixel_values=pixels, grid_thw=grid, images=())
    return ForcedSequence(prompt, tuple(segments))


def build(kind: type[Stage], *, detach_feedback: bool = True, **options) -> Stage:
    """A stage around the fixture's model, which is its own teacher; no processor, for rows are given."""
    model, teacher = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER / "model", dtype=torch.float32) for _ in range(2)
    )
    number = {WarmUp: 1, AlignObservations: 2, AlignLatents: 3}[kind]
    recipe = Recipe(
        name="parity",
        description="",
        stage=f"monet{number}",
        method="monet",
        teacher=None if number == 1 else "itself",
        open_token="latent_start",
        close_token="latent_end",
        pad_token="latent_pad",
        rule="causal",
        train_vision=False,
        detach_feedback=detach_feedback,
        mixture={"find": 1},
        options={"monet": MonetStageOptions(**(RELEASED | options))},
    )
    stage = kind(model, SimpleNamespace(token_id=CASE["tokens"].__getitem__), recipe)
    if number > 1:
        stage.learn_from(teacher)
    return stage


@pytest.mark.parametrize("name", ["one_step", "two_steps", "batch_right_padded", "two_steps_keep_image_visible"])
def test_mask_equals_the_reference(name):
    given = golden("mask", f"{name}.input_ids")
    lengths = golden("mask", f"{name}.attention_mask").sum(1).tolist()
    steps = ["one_step" if length == 78 else "two_steps" for length in lengths]
    rows = [
        build_row(ids[seen.bool()], SECTIONS["mask"][f"layout_{step}"], [])
        for ids, seen, step in zip(given, golden("mask", f"{name}.attention_mask"), steps, strict=True)
    ]
    backbone = wrap(Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER / "model"))
    layout = lay_out(backbone, method("causal_one_block"), rows, ["causal"] * len(rows))
    slots = torch.arange(layout.slot_types.shape[1]).expand(len(rows), -1)
    flow = Flow() if name.endswith("visible") else Flow(readers="latents", within_image=False)
    found = attend(layout.slot_types, tables(["causal"] * len(rows)), slots, flow)
    padded = layout.slot_types == PAD
    found = found & ~padded[:, :, None]  # ours lets padding see padding, so that no row is empty
    assert torch.equal(found, golden("mask", name)[:, 0])


@pytest.mark.parametrize("section", ["stage2_one_step", "stage2_two_steps"])
@pytest.mark.parametrize("axis", ["token", "hidden"])
def test_stage_2_equals_the_reference(section, axis):
    expected = SECTIONS[section]["expected"]
    stage = build(AlignObservations, observation_factor=4.0, align_weight=2.0, align_axis=axis)
    rows, teacher = rows_of(section), rows_of(section, "teacher")
    spliced, latents = think(stage, rows, ["causal"])
    layout = spliced.layout
    assert torch.equal(layout.positions[:, 0], golden(section, "position_ids"))
    labels = golden(section, "labels")
    assert layout.labels[0, :-1].tolist() == labels[1:].tolist()
    torch.testing.assert_close(latents, golden(section, "latents"), **TOLERANCE)
    logits = stage.backbone.logits(spliced.states[0])
    torch.testing.assert_close(logits, golden(section, "logits"), **TOLERANCE)
    student = torch.stack([level[0, SECTIONS[section]["observation_positions"]] for level in spliced.levels])
    torch.testing.assert_close(student, golden(section, "student.states"), **TOLERANCE)
    wanted = stage.targets(teacher, ["causal"])
    torch.testing.assert_close(wanted[0], golden(section, "teacher.states"), **TOLERANCE)

    cross_entropy, _ = weighted_cross_entropy(stage, spliced, ["all"])
    assert cross_entropy.item() == pytest.approx(expected["loss_ce_observation_factor_4"], abs=1e-4)
    aligned = alignment(wanted, [student], axis).mean()
    assert aligned.item() == pytest.approx(expected[f"loss_align_{axis}_axis"], abs=1e-4)
    (gradient,) = torch.autograd.grad(2 * aligned, latents, retain_graph=True)
    close(gradient, golden(section, f"grad_latents.align_{axis}_axis"))
    (gradient,) = torch.autograd.grad(cross_entropy, latents, retain_graph=True)
    close(gradient, golden(section, "grad_latents.ce"))

    passes = {"surrogate": stage.guide(2 * aligned, latents) / 2} if axis == "token" else {}
    passes |= {"surrogate_hidden_axis": stage.guide(2 * aligned, latents) / 2} if axis == "hidden" else {}
    if axis == "token":
        passes |= {"ce": cross_entropy, "total": cross_entropy + stage.guide(2 * aligned, latents)}
        assert passes["total"].item() == pytest.approx(expected["loss_total"], abs=1e-4)
    for name, loss in passes.items():
        check_gradients(stage, section, name, loss)


def check_gradients(stage: Stage, section: str, name: str, loss: torch.Tensor) -> None:
    stage.zero_grad()
    loss.backward(retain_graph=True)
    found = {key: p.grad for key, p in stage.model.named_parameters() if p.grad is not None}
    norms = SECTIONS[section]["gradient_norms"][name]
    for key, norm in norms.items():
        assert found[key].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), (name, key)
    for key in GOLDEN:
        prefix = f"{section}.grad.{name}."
        if key.startswith(prefix) and not key.endswith("latent_pad_row"):
            close(found[key.removeprefix(prefix)], GOLDEN[key])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("section", ["stage2_one_step", "stage2_two_steps"])
def test_stage_1_equals_the_reference(section):
    stage, about = build(WarmUp, observation_factor=2.0), SECTIONS[section]["teacher"]
    result = stage(rows_of(section, "teacher"), ["causal"], ["all"])
    assert result["loss"].item() == pytest.approx(about["loss_ce_observation_factor_2"], abs=1e-4)
    plain = build(WarmUp, observation_factor=1.0)(rows_of(section, "teacher"), ["causal"], ["all"])
    assert plain["loss"].item() == pytest.approx(about["loss_ce"], abs=1e-4)


@pytest.mark.parametrize("axis", ["token", "hidden"])
def test_stage_3_equals_the_reference(axis):
    section = "stage3_two_steps"
    expected = SECTIONS[section]["expected"]
    stage = build(AlignLatents, observation_factor=4.0, align_weight=2.0, align_axis=axis)
    rows, teacher = rows_of(section), rows_of(section, "target")
    (wanted,) = stage.targets(teacher, ["causal"])
    torch.testing.assert_close(wanted, golden(section, "target.states"), **TOLERANCE)
    spliced, latents = think(stage, rows, ["causal"])
    torch.testing.assert_close(latents, golden(section, "latents"), **TOLERANCE)
    student = torch.stack([level[0, SECTIONS[section]["latent_positions"]] for level in spliced.levels])
    torch.testing.assert_close(student, golden(section, "student.states"), **TOLERANCE)
    result = stage(rows, ["causal"], ["all"], teacher)
    assert result["metrics"]["alignment"] == pytest.approx(expected[f"loss_align_{axis}_axis"], abs=1e-4)
    if axis == "token":
        assert result["loss"].item() == pytest.approx(expected["loss_total"], abs=1e-4)
        check_gradients(stage, section, "total", result["loss"])
