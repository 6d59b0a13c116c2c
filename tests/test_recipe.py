"""Recipes: which fields a stage reads, what the finished checkpoint says of itself, and what is refused by name."""

from random import Random

import pytest

from latent_core import glyphs
from latent_core.checkpoints import load
from latent_core.embedded import EMBEDDED
from latent_core.glyphs.model import build_image_processor, build_model, build_tokenizer
from latent_core.processor import Processor
from trainers.options import NESTED
from trainers.recipe import READ, load_recipe
from trainers.start import STAGES, build_stage, train
from trainers.vocabulary import add_tokens


@pytest.mark.parametrize(
    ("name", "override", "readers"),
    [
        ("glyph-deeplatent", "monet.observation_factor=4", "monet1, monet2, monet3"),
        ("glyph-deeplatent-stage1", "monet.observation_tags=context", "monet1, monet2, monet3"),
        ("glyph-deeplatent-stage1", "deeplatent.scale_weight=1", "deeplatent2"),
        ("glyph-monet-stage1", "monet.align_weight=0", "monet2, monet3"),
        ("glyph-monet-stage2", "monet.target_mask=none", "monet3"),
        ("glyph-monet", "monet.latent_only=false", "monet2"),
        ("glyph-monet", "deeplatent.align_levels=last", "deeplatent2"),
        ("glyph-monet-stage1", "caps={teacher_total: 9, teacher_each: 9}", "monet2, monet3, deeplatent2"),
        ("glyph-lvr", "valr.weight=0.5", "valr"),
        ("glyph-valr", "lvr.weight=0.1", "lvr"),
        ("glyph-text", "caps={total: 9, each: 9}", "monet1, monet2, monet3, deeplatent1, deeplatent2, rl"),
        ("glyph-monet", "rl.group=4", "rl"),
        ("glyph-monet-rl", "monet.align_weight=2", "monet2, monet3"),
        ("glyph-text", "judge.workers=2", "rl"),
    ],
)
def test_options_that_a_stage_does_not_read_are_refused_by_name(name, override, readers):
    field = override.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{field}.* is given, but stage .* does not read it \\({readers} would\\)"):
        load_recipe(name, [override])


def test_the_table_of_what_stages_read_names_fields_that_exist():
    for read in READ.values():
        for name in read:
            group, _, field = name.partition(".")
            assert group in NESTED and (not field or field in NESTED[group].__dataclass_fields__), name


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=text", "method is 'text', which has no latents for stage latent"),
        ("method=monett", "Unknown method 'monett'"),
        ("method=deeplatent", "options lacks the field width"),
    ],
)
def test_a_method_that_a_stage_cannot_teach_is_refused(override, words):
    with pytest.raises(ValueError, match=words):
        load_recipe("glyph-latent", [override])


def test_a_checkpoint_is_asked_and_decodes_as_its_recipe_says(tmp_path):
    given = ["max_steps=1", "warmup_steps=0", "eval_strategy=no", "save_strategy=no", "latents_max=20", "init=null"]
    given += ["per_device_train_batch_size=2", f"output_dir={tmp_path / 'run'}", "use_cpu=true"]
    given += ["sampling={temperature: 0.5, top_p: 0.9, top_k: 5, repetition_penalty: 1.1, max_new_tokens: 300}"]
    reasoner = load(train(*load_recipe("glyph-latent", [*given, "system=Be brief.", "convention=start_overwritten"])))
    settings = reasoner.settings(latents=20)
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.5, 0.9, 5)
    assert (settings.repetition_penalty, settings.max_new_tokens) == (1.1, 300)
    assert (reasoner.config.system, reasoner.config.convention) == ("Be brief.", "start_overwritten")
    example = glyphs.sample("find", 0)
    asked = reasoner.prompt(list(example.images), example.question)
    assert "Be brief." in reasoner.processor.decode(asked.input_ids.tolist())


@pytest.mark.parametrize(
    "name",
    ["glyph-text", "glyph-latent", "glyph-monet-stage1", "glyph-monet", "glyph-lvr", "glyph-valr", "glyph-deeplatent"],
)
def test_a_stage_asks_under_the_recipes_system_prompt(name):
    more = ["valr.encoders=[]", "valr.weight=0"] if name == "glyph-valr" else []
    recipe, _ = load_recipe(name, ["system=Look twice.", *more])
    tokenizer = build_tokenizer()
    model, processor = build_model(tokenizer), Processor(tokenizer, build_image_processor())
    processor = processor if recipe.method == "text" else add_tokens(model, processor, recipe.tokens())
    example = glyphs.sample("find", 3, "train")
    batch = STAGES[recipe.stage](model, processor, recipe).collate([(example, Random(0))])
    ids = batch["input_ids"][0] if recipe.method == "text" else batch["rows"][0].prompt.input_ids
    wanted = processor(example.images, example.question, "Look twice.").input_ids
    assert ids[: len(wanted)].equal(wanted)


def test_reinforcement_samples_under_the_recipes_system_prompt(tmp_path):
    start = f"init={EMBEDDED / 'glyph-monet'}"
    recipe, _ = load_recipe("glyph-monet-rl", [start])
    stage = build_stage(recipe, tmp_path)
    stage.recipe.system = "Look twice."
    example = glyphs.sample("find", 3, "train")
    wanted = stage.processor(example.images, example.question, "Look twice.")
    assert stage.prompt(example).input_ids.equal(wanted.input_ids)
    for field, value in (("system", "Look twice."), ("convention", "start_overwritten")):
        recipe, _ = load_recipe("glyph-monet-rl", [start, f"{field}={value}"])
        with pytest.raises(
            ValueError, match=f"^{field} is '{value}', but .*glyph-monet was taught with .*; set {field}"
        ):
            build_stage(recipe, tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampling.temperature=11", "Temperature is 11"),
        ("sampling={max_tokens: 9}", "Unknown field 'max_tokens' in sampling"),
        ("sampling.max_new_tokens=9000", "max_new_tokens is 9000"),
        ("sampling.max_new_tokens=many", "sampling.max_new_tokens is 'many'"),
        ("sampling.top_k=1.5", "sampling.top_k is '1.5'"),
        ("sampling=greedy", "sampling is 'greedy'; it holds fields such as temperature"),
        ("convention=start", "convention is 'start'; choose one of start_fed, start_overwritten"),
    ],
)
def test_a_wrong_way_of_decoding_is_named(override, words):
    with pytest.raises(ValueError, match=words):
        load_recipe("glyph-monet", [override])


@pytest.mark.parametrize(
    ("name", "tokens"), [("monet-7b", 2048), ("deeplatent-7b-rl", 2048), ("lvr-7b", 512), ("glyph-monet", 128)]
)
def test_recipes_that_ship_say_how_long_answers_are(name, tokens):
    assert load_recipe(name, [])[0].method_config().sampling.max_new_tokens == tokens
