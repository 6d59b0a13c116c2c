"""Recipes: which fields a stage reads, what the finished checkpoint says of itself, and what is refused by name."""

import json
from random import Random

import pytest

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED, available
from latent_core.checkpoints.loading import load
from latent_core.config import MethodConfig
from latent_core.model.processor import Processor
from trainers.loop.launch import build_stage, train
from trainers.loop.origin import normal, written
from trainers.loop.vocabulary import add_tokens
from trainers.recipe import load_recipe, nested_fields, recipes
from trainers.stages import STAGES
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer


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
    nested = nested_fields()
    for spec in STAGES.values():
        for name in spec.fields:
            group, _, field = name.partition(".")
            assert group in nested and (not field or field in nested[group].__dataclass_fields__), name


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=text", "method is 'text', which has no latents for stage latent"),
        ("method=monett", "Unknown method 'monett'"),
        ("method=deeplatent", "options lacks the field width"),
        ("method_options={head: mlp}", "options are {'head': 'mlp'}, but method 'monet' has none"),
    ],
)
def test_a_method_that_a_stage_cannot_teach_is_refused(override, words):
    with pytest.raises(ValueError, match=words):
        load_recipe("glyph-latent", [override])


@pytest.mark.slow
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
    batch = recipe.spec.stage(model, processor, recipe).collate([(example, Random(0))])
    ids = batch["rows"][0].prompt.input_ids
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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mixture=find", "^mixture is 'find'; it gives names their numbers, as {name: 1}"),
        ("mixture=[find]", "^mixture is \\['find'\\]; it gives"),
        ("mixture={find: many}", "^mixture is {'find': 'many'}; it gives"),
        ("mixture={find: .inf}", "^mixture is {'find': inf}; it gives"),
        ("mixture={1: 1}", "^mixture is {1: 1}; it gives"),
        ("mixture.find=true", "^mixture is {'find': True, .*; it gives names"),
        ("stop_at=0.9", "^stop_at is 0.9; it gives"),
        ("monet=4", "^monet is 4; it holds fields such as observation_factor"),
        ("monet=[align_weight]", "^monet is .*; it holds fields"),
        ("monet.align_weight=.nan", "^monet.align_weight is nan; it must be a number of at least 0"),
        ("monet.align_weight=[2]", "^monet.align_weight is \\[2\\]; it must be a number"),
        ("monet.aux_self=yess", "^monet.aux_self is 'yess'; it must be true or false"),
        ("monet.align_axis=[hidden]", "^monet.align_axis is .*; choose one of hidden, token"),
        ("data=files", "^data is 'files'; it holds fields such as format"),
        ("data.files=rows.json", "^data.files is 'rows.json'; it must list paths"),
        ("method=[monet]", "^method is \\['monet'\\]; it must be text"),
        ("method_options=mlp", "^method_options is 'mlp'; it must hold fields"),
        ("name=2024-01-01", "^name is datetime.date.*; it must be text"),
        ("name=''", "^name is empty"),
        ("init=[a, b]", "^init is \\['a', 'b'\\]; it must be text, or null"),
        ("system={a: 1}", "^system is {'a': 1}; it must be text, or null"),
        ("stage=[monet3]", "^stage is \\['monet3'\\]; choose one of"),
        ("stage=null", "^stage is None; choose one of"),
        ("rule=null", "^rule is None; choose one of causal"),
        ("train_vision=1", "^train_vision is 1; it must be true or false"),
        ("latents_default=8.5", "^latents_default is 8.5; it must be a whole number"),
        ("latents_default=true", "^latents_default is True; it must be a whole number"),
        ("causal_share=half", "^causal_share is 'half'; it must be a number"),
        ("val_size=0", "^val_size is 0"),
        ("per_device_train_batch_size=0", "^per_device_train_batch_size is 0; at least 1 is needed"),
        ("per_device_train_batch_size=-4", "^per_device_train_batch_size is -4; at least 1 is needed"),
        ("per_device_eval_batch_size=0", "^per_device_eval_batch_size is 0; at least 1 is needed"),
        ("gradient_accumulation_steps=0", "^gradient_accumulation_steps is 0; at least 1 is needed"),
        ("per_device_train_batch_size=1.5", "^per_device_train_batch_size is 1.5; it must be a whole number"),
        ("per_device_train_batch_size=true", "^per_device_train_batch_size is True; it must be a whole number"),
        ("per_device_train_batch_size=[8]", "^per_device_train_batch_size is \\[8\\]; it must be a whole number"),
        ("logging_steps=0", "^logging_steps is 0; at least 1"),
        ("eval_steps=0", "^eval_steps is 0; at least 1"),
        ("learning_rate=.inf", "^learning_rate is inf; it must be a number"),
        ("learning_rate=-1e-3", "^learning_rate is -0.001; it must be at least 0"),
        ("seed=-1", "^seed is -1; it must be at least 0"),
        ("bf16=maybe", "^bf16 is 'maybe'; it must be true or false"),
        ("lr_scheduler_type=fast", "^lr_scheduler_type is 'fast'; choose one of linear, cosine"),
        ("eval_strategy=3", "^eval_strategy is 3; it must be text"),
        ("optim=[adamw_torch]", "^optim is \\['adamw_torch'\\]; it must be text"),
        ("output_dir=3", "^output_dir is 3; it must be text"),
        ("accelerator_config=3", "^accelerator_config is 3; it must be fields or text"),
        ("mixture={find: 1", "^'mixture={find: 1' is not valid YAML: .*line 1, column"),
        ("mixture=find: 1}", "^mixture is {'find': '1}'}; it gives"),
        ("mixture=}", "^'mixture=}' is not valid YAML"),
        ("data.files=[a, b", "^'data.files=\\[a, b' is not valid YAML"),
        ("name='open", "is not valid YAML: .*found unexpected end of stream"),
        ("name=*anchor", "is not valid YAML: .*undefined alias"),
        ("name=2024-02-31", "cannot be read: day is out of range"),
        ("max_steps.more=3", "^'max_steps.more=3' sets a field of max_steps, which is "),
        ("monet.align_weight.x=3", "sets a field of monet.align_weight, which is "),
        ("=3", "^'=3' is no override"),
        ("monet.=3", "is no override"),
        ("mixture..find=3", "is no override"),
    ],
)
def test_a_field_of_the_wrong_shape_is_named(override, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_recipe("glyph-monet", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"mixture: {find: 1", "is not valid YAML: .*line 1"),
        (b"name: a\n\tstage: text", "is not valid YAML"),
        (b"name: \xff\xfe", "is not valid YAML"),
        (b"- name", "holds no fields"),
        (b"", "holds no fields"),
        (b"name: a\n---\nname: b", "is not valid YAML"),
        (b"1: 2\nname: a", "Unknown field 1 in the recipe"),
        (b"name: a\ndescription: b.\nstage: text", "A recipe learns either from `mixture`"),
        (b"name: a\ndescription: b.\nstage: text\nmixture:", "mixture is None; it gives names"),
        (b"name: a\ndescription: b.\nstage: text\nmixture: {find: 1}\nmonet:", "monet is None; it holds fields"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_recipe(str(file), [])
    assert "\n" not in str(caught.value)


def test_numbers_may_be_written_with_an_exponent_everywhere():
    given = [
        "monet.align_weight=1e-1",
        "learning_rate=1e-3",
        "causal_share=5E-1",
        "max_steps=1e3",
        "mixture.find=2e0",
    ]
    recipe, arguments = load_recipe("glyph-monet", given)
    assert (recipe.stage_options.align_weight, recipe.causal_share, recipe.mixture["find"]) == (0.1, 0.5, 2.0)
    assert (arguments.learning_rate, arguments.max_steps) == (1e-3, 1000)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.max_new_tokens=0", "^rl: max_new_tokens is 0"),
        ("rl.top_p=0", "^rl: top_p is 0"),
        ("rl.max_blocks=65", "^rl: max_blocks is 65"),
        ("rl.sigma=0", "^rl.sigma is 0"),
        ("rl.easy=2", "^rl.easy is 2"),
        ("rl.rewards={}", "^rl.rewards is empty"),
        ("rl.rewards=accuracy", "^rl.rewards is 'accuracy'; it gives names their numbers"),
        ("judge.timeout=0", "^judge.timeout is 0"),
        ("judge.workers=0", "^judge.workers is 0"),
        ("judge.url=8000", "^judge.url is 8000; it must be text"),
    ],
)
def test_settings_of_reinforcement_that_cannot_work_are_named(override, words):
    with pytest.raises(ValueError, match=words):
        load_recipe("glyph-monet-rl", [override])


@pytest.mark.parametrize("name", sorted(set(recipes()) & set(available())))
def test_a_recipe_is_written_down_as_when_its_checkpoint_was_made(name):
    """By what is written down a run knows its own checkpoints: 500 must not become 500.0."""
    made = MethodConfig.read(EMBEDDED / name).provenance["run"]
    now = json.loads(json.dumps(written(load_recipe(name, [])[0])))
    assert json.dumps(now, sort_keys=True) == json.dumps(normal(made), sort_keys=True)
