"""VaLR's alignment against plain arithmetic, where its blocks stand, its encoders, and that decoding knows none."""

from random import Random

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from latent_core import glyphs, load
from latent_core.checkpoints import loading as checkpoints
from latent_core.decoding.engine import decode
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import unroll
from latent_core.events import LatentEvent
from latent_core.example import Example, LatentStep, Step, TextSpan
from latent_core.model.backbones import wrap
from latent_core.model.processor import Processor
from latent_core.settings import Settings
from tests.tiny import OPEN, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt
from trainers.loop.launch import train
from trainers.recipe import load_recipe
from trainers.sft import encoders
from trainers.sft.encoders import OwnTower, PatchEncoder, load_encoder
from trainers.sft.valr import ValrStage, projector, repa, upsample
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

TOKENIZER = build_tokenizer()
FAMILIES = ("find", "relate", "count", "views")
HALF = ([0.5] * 3, [0.5] * 3)


def stage(*overrides: str) -> ValrStage:
    recipe, _ = load_recipe("glyph-valr", list(overrides))
    torch.manual_seed(0)
    return ValrStage(build_model(TOKENIZER), Processor(TOKENIZER, build_image_processor()), recipe)


def batch(built: ValrStage, families=FAMILIES):
    return built.collate([(glyphs.sample(family, 3, "train"), Random(0)) for family in families])


def test_a_ramp_is_stretched_linearly_with_corners_not_aligned():
    ramp = torch.tensor([0.0, 1, 2, 3])
    expected = torch.tensor([0, 0.5, 7 / 6, 11 / 6, 2.5, 3])
    torch.testing.assert_close(upsample(ramp[None, :, None], (1, 6), "1d")[0, :, 0], expected)
    square = ramp.expand(4, 4).reshape(1, 16, 1)  # rows alike: the columns are the ramp
    torch.testing.assert_close(upsample(square, (4, 6), "2d")[0, :, 0], expected.repeat(4))
    torch.testing.assert_close(
        upsample(square.view(1, 4, 4, 1).mT.mT.transpose(1, 2).reshape(1, 16, 1), (6, 4), "2d")[0, :, 0],
        expected.repeat_interleave(4),
    )
    states = torch.randn(2, 9, 5)
    assert torch.equal(upsample(states, (3, 3), "2d"), states) and torch.equal(upsample(states, (3, 3), "1d"), states)
    with pytest.raises(ValueError, match="K is 8, no square number"):
        upsample(torch.randn(1, 8, 2), (3, 3), "2d")


def test_the_alignment_is_minus_the_mean_cosine():
    torch.manual_seed(0)
    head, states = projector(6, 10, 7), torch.randn(3, 4, 6)
    grids = [(4, 4), (2, 3), (4, 4)]
    given = [head(upsample(states[i : i + 1], grid, "2d"))[0].detach() for i, grid in enumerate(grids)]
    torch.testing.assert_close(repa(states, given, grids, head, "2d"), -torch.ones(3))
    torch.testing.assert_close(repa(states, [-g for g in given], grids, head, "2d"), torch.ones(3))
    targets = [torch.randn_like(g) for g in given]
    found = repa(states, targets, grids, head, "2d")
    torch.testing.assert_close(repa(states, [3 * t for t in targets], grids, head, "2d"), found)
    for i, (g, t) in enumerate(zip(given, targets, strict=True)):
        g, t = g.double().numpy(), t.double().numpy()
        cosine = (g * t).sum(1) / np.sqrt((g**2).sum(1) * (t**2).sum(1))
        assert found[i].item() == pytest.approx(-cosine.mean(), abs=1e-6)


def test_several_encoders_give_the_mean_of_their_losses():
    one, two = stage("valr.encoders=[glyph-siglip]"), stage("valr.encoders=[glyph-siglip, glyph-siglip]")
    two.heads[1].load_state_dict(two.heads[0].state_dict())
    one.heads[0].load_state_dict(two.heads[0].state_dict())
    two.model.load_state_dict(one.model.state_dict())
    first, second = one(**batch(one)), two(**batch(two))
    assert second["loss"].item() == pytest.approx(first["loss"].item(), abs=1e-6)
    assert first["metrics"]["repa"] == pytest.approx(second["metrics"]["repa"], abs=1e-6)
    assert first["loss"].item() == pytest.approx(first["metrics"]["ce"] + 0.5 * first["metrics"]["repa"], abs=1e-5)


def test_without_weight_the_loss_is_that_without_alignment():
    bare = stage("valr.encoders=[]", "valr.weight=0")
    full = stage()
    full.model.load_state_dict(bare.model.state_dict())
    object.__setattr__(full.options, "weight", 0.0)
    rows = batch(full)
    assert torch.equal(full(**rows)["loss"], bare(**{**rows, "targets": []})["loss"])


def test_rows_without_blocks_do_not_divide_by_zero():
    built = stage()
    example = glyphs.sample("list", 0, "train")
    given = built.collate([(example, Random(0))])
    assert given["targets"] == []
    out = built(**given)
    out["loss"].backward()
    assert out["metrics"]["repa"] == 0 and out["loss"].isfinite()


def test_the_producer_of_one_latent_moves_only_the_blocks_below():
    built = stage("latents_min=1", "latents_max=1", "valr.layer=2", "valr.encoders=[glyph-siglip]")
    given = batch(built, ("find",))
    unrolled = unroll(built.backbone, built.method, given["rows"], levels=(3,))
    built.alignment(unrolled, given["targets"]).backward()
    layers = built.backbone.layers
    moved = [sum(p.grad.abs().sum().item() for p in layer.parameters() if p.grad is not None) > 0 for layer in layers]
    assert moved == [True, True, True, False, False]


def test_producers_and_slots_are_the_states_that_they_say():
    for states, shift in (("producers", 1), ("slots", 0)):
        built = stage(f"valr.states={states}", "latents_min=4", "latents_max=4")
        given = batch(built)
        with torch.no_grad():
            unrolled = unroll(built.backbone, built.method, given["rows"], levels=(built.layer + 1,))
        blocks, found = [], built.segments(unrolled)
        for row in range(len(given["rows"])):
            kinds = unrolled.layout.slot_types[row].tolist()
            for number in range(4):
                slots = [i for i, kind in enumerate(kinds) if kind == 6 + 16 * number]  # LATENT of this block
                if slots:
                    blocks.append(unrolled.levels[0][row, [slot - shift for slot in slots]])
        assert torch.equal(found, torch.stack(blocks))
    assert built.layer == 2  # block 12 of 28, as far down


def test_a_block_before_every_step_sees_the_view_that_the_step_speaks_of():
    built = stage()
    example = glyphs.sample("views", 3, "train")
    response, seen = built.respond(example, 4)
    assert isinstance(response[0], Block) and isinstance(response[1], Tokens)
    assert seen == [example.images[example.steps[0].image_index]]
    relate = glyphs.sample("relate", 3, "train")
    kinds = [type(segment) for segment in built.respond(relate, 4)[0]]
    assert kinds == [Block, Tokens, Tokens, Block, Tokens, Tokens, Tokens, Tokens]
    once = stage("valr.blocks=first_step")
    assert [type(s) for s in once.respond(relate, 4)[0]].count(Block) == 1
    inserted = relate.steps[1].image
    step = Step(text="", observation="", image=inserted)
    mixed = Example(
        images=relate.images,
        question="?",
        steps=(step,),
        answer="x",
        name="interleaved",
        parts=(TextSpan("First.", "text"), LatentStep(step), TextSpan(" Then.", "text")),
    )
    response, seen = built.respond(mixed, 4)
    assert [type(s) for s in response] == [Tokens, Block, Tokens, Tokens] and seen == [inserted]


def test_a_step_that_looks_at_no_image_names_its_sample():
    example = glyphs.sample("views", 3, "train")
    with pytest.raises(ValueError, match="two/1: a step looks at image 4 of 2"):
        Example(
            images=example.images,
            question="?",
            steps=(Step(text="", observation="", image_index=3),),
            answer="x",
            name="two/1",
        )


def test_k_is_a_square_number_or_a_line():
    assert stage().sizes == [4, 9] and stage("valr.upsample=1d").sizes == [4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="latents_min 5 to latents_max 8 holds no square number"):
        stage("latents_min=5", "latents_max=8", "latents_default=8")
    with pytest.raises(ValueError, match=r"valr\.weight is 0\.5, valr\.encoders \[\]; name an encoder"):
        stage("valr.encoders=[]")
    with pytest.raises(ValueError, match=r"valr\.layer is 7; the model's blocks are 0 to 4"):
        stage("valr.layer=7")
    with pytest.raises(ValueError, match="it must be frozen"):
        stage("valr.encoders=[self]", "train_vision=true")


def test_delimiters_may_count():
    backbone = wrap(tiny_model())
    for options, latents in (({}, 4), ({"count_delimiters": True}, 2)):
        method = tiny_method("valr", options=options)
        events = list(decode(backbone, method, [tiny_prompt()], [Settings(latents=4)], sampler=scripted([OPEN, 1])))
        assert len(of_sequence(events, 0, LatentEvent)) == latents


SIZE = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
TOWERS = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZE, image_size=24, patch_size=8)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZE, image_size=24, patch_size=8)),
    "dinov3": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**SIZE, intermediate_size=32, image_size=24, patch_size=8, num_register_tokens=4)
    ),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZE, intermediate_size=32, image_size=24, patch_size=8)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZE, intermediate_size=32, image_size=24, patch_size=8)),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_encoders_give_their_patches_and_nothing_in_front(kind):
    torch.manual_seed(0)
    model = TOWERS[kind]()
    encoder = PatchEncoder(model, *HALF)
    images = [glyphs.sample("find", seed, "train").images[0] for seed in range(2)]
    prepared = encoder.prepare(images)
    assert prepared["pixels"].shape == (2, 3, 24, 24) and prepared["pixels"].abs().max() <= 1
    features, grids = encoder.features(prepared)
    assert grids == [(3, 3)] * 2 and all(f.shape == (9, 16) for f in features)
    # patch p moves most where its pixels change
    for p in (0, 4, 8):
        pixels = prepared["pixels"].clone()
        row, column = p // 3, p % 3
        pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3 * torch.randn(2, 3, 8, 8)
        changed, _ = encoder.features({"pixels": pixels})
        assert (changed[0] - features[0]).norm(dim=-1).argmax() == p
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_encoders_are_loaded_from_folders_and_both_towers(tmp_path):
    config = SiglipVisionConfig(**SIZE, intermediate_size=32, image_size=24, patch_size=8)
    model = SiglipModel(
        SiglipConfig(
            vision_config=config.to_dict(),
            text_config=dict(SIZE, intermediate_size=32, vocab_size=9, projection_size=16),
        )
    )
    model.save_pretrained(tmp_path / "pair")
    SiglipImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "pair")
    assert load_encoder(str(tmp_path / "pair")).grid == (3, 3)
    (tmp_path / "pair/preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no encoder that can be loaded"):
        load_encoder(str(tmp_path / "pair"))
    with pytest.raises(ValueError, match="'glyph-dino' is no encoder that can be loaded"):
        load_encoder("glyph-dino")


def test_the_teachers_tell_marks_apart():
    """What stands in a cell is told by its patches' features: nearest centroid of other scenes."""
    encoder = load_encoder("glyph-siglip")
    found: dict[str, list[torch.Tensor]] = {}
    for seed in range(120):
        example = glyphs.sample("find", seed, "train")
        (features,), _ = encoder.features(encoder.prepare(example.images))
        for thing in example.metadata["scene"].things:
            patches = features.view(6, 6, -1)[
                2 * thing.row : 2 * thing.row + 2, 2 * thing.column : 2 * thing.column + 2
            ]
            found.setdefault(thing.mark, []).append(patches.mean((0, 1)))
    names = list(found)
    centres = torch.stack([torch.stack(found[name][:-20]).mean(0) for name in names])
    tests = [(name, state) for name in names for state in found[name][-20:]]
    right = [names[(centres - state).norm(dim=1).argmin()] == name for name, state in tests]
    assert np.mean(right) > 0.9


def test_the_own_tower_gives_the_models_image_tokens():
    built = stage("valr.encoders=[self]")
    tower = OwnTower(built.backbone, built.processor)
    example = glyphs.sample("find", 0, "train")
    (features,), grids = tower.features(tower.prepare(example.images))
    prompt = built.processor(example.images, "")
    assert grids == [(6, 6)]
    torch.testing.assert_close(features, built.backbone.encode_images(prompt.pixel_values, prompt.grid_thw).tokens)
    built(**batch(built))["loss"].backward()


def test_training_needs_the_encoders_and_decoding_none(tmp_path, monkeypatch):
    start = tmp_path / "start"
    processor = Processor(TOKENIZER, build_image_processor())
    source = load("glyph-text")
    checkpoints.save(start, model=build_model(TOKENIZER), processor=processor, config=source.config)
    given = [f"output_dir={tmp_path / 'run'}", f"init={start}", "max_steps=1", "warmup_steps=0", "use_cpu=true"]
    given += ["per_device_train_batch_size=2", "eval_strategy=no", "save_strategy=no"]
    final = train(*load_recipe("glyph-valr", given))
    assert not (final / "method.safetensors").exists()
    monkeypatch.setattr(encoders, "TEACHERS", tmp_path / "gone")
    with pytest.raises(ValueError, match="'glyph-dinov2' is no encoder"):
        train(*load_recipe("glyph-valr", [*given, f"output_dir={tmp_path / 'other'}"]))
    reasoner = load(final)
    names = {name for name, _ in [*reasoner.backbone.named_modules(), *reasoner.method.named_modules()]}
    assert not any("head" in name and "lm_head" not in name for name in names) and not list(
        reasoner.method.parameters()
    )
    example = glyphs.sample("find", 0)
    assert reasoner.run(list(example.images), example.question, mode="forced", max_new_tokens=16).finish.latents == 9
