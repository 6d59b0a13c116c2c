"""DeepLatent's stages: what is aligned with what, what moves, grids from assistant images, bad data by name."""

import dataclasses
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from latent_core import glyphs
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import AuxiliaryImage, Block, Tokens
from latent_core.decoding.unroll import encode_sequences, splice
from latent_core.example import Example, Step
from latent_core.model.backbones import wrap
from latent_core.model.processor import Processor
from latent_core.model.slot_types import AUX, CONTROL, LATENT, slot_class
from tests.tiny import VISION_END, VISION_START, tiny_method, tiny_model, tiny_prompt
from trainers.recipe import load_recipe
from trainers.sft.deeplatent import Distil, Interleaved, frame, framed_row, grid_block
from trainers.sft.interleaved import gather
from trainers.sft.losses import alignment
from trainers.sft.monet import MonetStageOptions
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

TOKENIZER = build_tokenizer()
FAMILIES = ("find", "relate", "count")


def stage(*overrides: str, kind=Distil):
    name = "glyph-deeplatent" if kind is Distil else "glyph-deeplatent-stage1"
    recipe, _ = load_recipe(name, list(overrides))
    torch.manual_seed(0)
    built = kind(build_model(TOKENIZER), Processor(TOKENIZER, build_image_processor()), recipe)
    if kind is Distil:
        built.learn_from(build_model(TOKENIZER, seed=1))
    return built


def batch(built, families=FAMILIES):
    return built.collate([(glyphs.sample(family, 3, "train"), Random(0)) for family in families])


@pytest.mark.parametrize("kind", [Distil, Interleaved])
def test_options_of_another_method_reach_no_stage(kind):
    recipe = stage(kind=kind).recipe
    with pytest.raises(ValueError, match=f"options has monet, which stage {recipe.stage} does not read"):
        dataclasses.replace(recipe, options={**recipe.options, "monet": MonetStageOptions(observation_factor=4.0)})


def test_an_assistant_image_in_place_of_latents_is_aligned_at_every_level():
    """The image's own embeddings in the slots, between the markers of an image: nothing is left to align."""
    backbone = wrap(tiny_model())

    class Bare(type(tiny_method("deeplatent"))):
        def controls(self):
            return None

    method = tiny_method("deeplatent")
    method.__class__ = Bare
    method.open_id, method.close_id = VISION_START, VISION_END
    image = tiny_prompt(7, grids=[(4, 6)])
    picture = AuxiliaryImage(image.pixel_values, image.grid_thw)
    teacher = ForcedSequence(tiny_prompt(), (Tokens((1, 2)), picture, Tokens((3,)), picture, Tokens((4,))))
    block = Block(6, grid=(2, 3))
    student = ForcedSequence(tiny_prompt(), (Tokens((1, 2)), block, Tokens((3,)), block, Tokens((4,))))
    levels = range(backbone.num_layers + 1)
    with torch.no_grad():
        features = encode_sequences(backbone, [teacher])
        read = splice(backbone, method, [teacher], [[]], levels=levels, features=features)
        made = splice(backbone, method, [student], [features.auxiliary_images], levels=levels)
    wanted = gather(read.levels, slot_class(read.layout.slot_types) == AUX)
    given = gather(made.levels, slot_class(made.layout.slot_types) == LATENT)
    assert wanted[0].shape == (len(levels), 12, 32)
    torch.testing.assert_close(given[0], wanted[0], atol=1e-5, rtol=0)
    assert alignment(wanted, given).abs().max() < 1e-6


def test_the_loss_is_the_sum_of_its_parts_worked_out_apart():
    built = stage("method_options={width: 128, noise: 0, noise_floor: 0}")
    given = batch(built)
    out = built(**given)
    with torch.no_grad():
        from latent_core.decoding.unroll import unroll

        levels = range(built.backbone.num_layers + 1)
        made = unroll(built.backbone, built.method, given["rows"], levels=levels)
        backbone = built.teacher
        read = splice(backbone, built.method, given["teacher"], [[]] * 3, rule="causal", levels=levels)
        ces, aligned, scales = [], [], []
        for row in range(3):
            labels = made.layout.labels[row]
            slots = (labels != -100).nonzero()[:, 0]
            logits = built.backbone.logits(made.states[row, slots]).double().numpy()
            logits -= logits.max(-1, keepdims=True)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            ces.append(-logprobs[np.arange(len(slots)), labels[slots].numpy()].mean())
            student = (slot_class(made.layout.slot_types[row]) == LATENT).nonzero()[:, 0].tolist()
            teacher = (slot_class(read.layout.slot_types[row]) == AUX).nonzero()[:, 0].tolist()
            cosines = []
            for level in levels:
                for a, b in zip(teacher, student, strict=True):
                    x, y = read.levels[level][row, a].double().numpy(), made.levels[level][row, b].double().numpy()
                    cosines.append(x @ y / np.sqrt((x @ x) * (y @ y)))
            aligned.append(1 - np.mean(cosines))
            controls = (slot_class(made.layout.slot_types[row]) == CONTROL).nonzero()[:, 0].tolist()[::3]
            blocks = [s for s in given["rows"][row].segments if isinstance(s, Block)]
            for slot, block in zip(controls, blocks, strict=True):
                scores = built.method.sizes(made.states[row, slot]).double()
                true = [size - 1 for size in block.grid]
                scales.append(-sum(scores[i].log_softmax(-1)[true[i]].item() for i in range(2)))
    expected = np.mean(ces) + 4 * np.mean(aligned) + 0.5 * np.mean(scales)
    assert out["loss"].item() == pytest.approx(expected, abs=2e-4)
    assert out["metrics"]["alignment"] == pytest.approx(np.mean(aligned), abs=1e-5)
    assert out["metrics"]["scale"] == pytest.approx(np.mean(scales), abs=1e-4)


def test_grids_are_those_of_the_assistant_images():
    built = stage()
    rows = batch(built)["rows"]
    grids = [[s.grid for s in row.segments if isinstance(s, Block)] for row in rows]
    assert grids == [[(2, 2)], [(2, 2), (2, 2)], [(6, 6)]]
    fixed = stage("method_options={width: 128, grid: fixed}", "latents_min=12", "latents_max=12")
    given = batch(fixed)
    assert {s.grid for row in given["rows"] for s in row.segments if isinstance(s, Block)} == {(3, 4)}
    shown = {tuple(p.grid_thw[0].tolist()) for row in given["teacher"] for p in row.auxiliary_images}
    assert shown == {(1, 6, 8)}
    assert "scale" not in fixed(**given)["metrics"]


def test_large_assistant_images_are_fitted_and_what_does_not_fit_is_refused():
    processor = Processor(TOKENIZER, build_image_processor())
    built = stage()
    wide = Image.new("RGB", (1000, 500))
    assert frame(built, wide, 8).size == (16 * processor.token_side, 8 * processor.token_side)
    scene = glyphs.sample("find", 0, "train").images

    def example(image):
        steps = (Step(text="a", observation="b", image=image),)
        return Example(images=scene, question="?", steps=steps, answer="c", name="one/7")

    (row,) = built.collate([(example(Image.new("RGB", (2000, 40))), Random(0))])["rows"]
    assert [s.grid for s in row.segments if isinstance(s, Block)] == [(1, 16)]
    with pytest.raises(ValueError, match="one/7: a thought has no image"):
        built.collate([(example(None), Random(0))])
    long = Step(text="a", observation="b", image=Image.new("RGB", (20 * processor.token_side, processor.token_side)))
    with pytest.raises(ValueError, match="one/7: an assistant image has 1 × 20 tokens; at most 16 × 16"):
        grid_block(built, long, 8, "one/7")
    fixed = stage("method_options={width: 128, grid: fixed}")
    with pytest.raises(ValueError, match=r"K is 64, a grid of \(8, 8\), but the image processor makes 6 × 6 tokens"):
        framed_row(fixed, glyphs.sample("find", 0, "train"), "latents", 64)


@pytest.mark.parametrize(
    "options",
    [
        "{width: 128}",
        "{width: 128, blocks: 2, feed_forward: 64}",
        "{width: 128, blocks: 0}",
        "{width: 128, modulate_image: false}",
    ],
)
def test_a_step_moves_everything_but_vision_and_teacher(options):
    built = stage(f"method_options={options}").train()
    built(**batch(built))["loss"].backward()
    for name, parameter in built.named_parameters():
        still = "visual" in name
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        # behind a zero-initialised layer nothing moves in the first step
        if ".mlp.0." in name and ("of_latents" in name or "of_image" in name):
            continue
        assert moved != still, name


@pytest.mark.slow
def test_it_learns_to_stand_for_the_image():
    built = stage("method_options={width: 128}").train()
    given = batch(built, ("find", "count"))
    optimiser = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad], 2e-3)
    seen = []
    for _ in range(30):
        optimiser.zero_grad()
        out = built(**given)
        out["loss"].backward()
        optimiser.step()
        seen.append(out["metrics"])
    assert seen[-1]["alignment"] < 0.6 * seen[0]["alignment"] and seen[-1]["scale"] < 0.2 * seen[0]["scale"]


def test_ablations_leave_out_what_they_say():
    without = stage("deeplatent.align_weight=0")
    assert "alignment" not in without(**batch(without))["metrics"]
    silent = stage("deeplatent.words=false")
    rows = batch(silent)["rows"]
    texts = ["".join(silent.processor.decode(s.ids) for s in r.segments if isinstance(s, Tokens)) for r in rows]
    assert all(text.strip().startswith("\\boxed{") for text in texts)
    in_turn = stage("method_options={width: 128, generation: autoregressive, grid: fixed}", "latents_max=6")
    blocks = [s for row in batch(in_turn)["rows"] for s in row.segments if isinstance(s, Block)]
    assert {block.grid for block in blocks} == {None}
    in_turn(**batch(in_turn))["loss"].backward()


def test_stage_one_is_next_token_prediction_with_the_images_in_place():
    built = stage(kind=Interleaved)
    given = batch(built)
    assert [len(row.auxiliary_images) for row in given["rows"]] == [1, 2, 1]
    out = built(**given)
    out["loss"].backward()
    assert set(out["metrics"]) == {f"accuracy_{family}" for family in FAMILIES}


def test_other_methods_are_refused():
    with pytest.raises(ValueError, match="stage deeplatent2 trains method deeplatent, not 'monet'"):
        stage("method=monet", "method_options={}")
