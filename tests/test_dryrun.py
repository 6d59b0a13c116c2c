"""What a run would cost, before it costs anything: formulas against measurements, refusals with their reasons."""

import copy
import dataclasses
import json
import re
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from latent_core import glyphs
from latent_core.decoding.layout import lay_out
from latent_core.decoding.unroll import unroll
from latent_core.model.backbones import wrap
from latent_core.model.processor import Processor
from trainers.__main__ import main
from trainers.data.formats import FORMATS
from trainers.data.monet import write_rows
from trainers.loop.launch import build_stage, train
from trainers.loop.vocabulary import add_tokens
from trainers.planning.architectures import published
from trainers.planning.costs import layer_activations, shape, state_memory
from trainers.planning.dryrun import Source, find_source, length
from trainers.recipe import load_recipe
from trainers.tiny_model import build_image_processor, build_model, build_tokenizer

ZERO2 = "trainers/accelerate/zero2.yaml"
SHARES = {"Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976, "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656}
"""Parameters, as the Hub counts them."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[str]:
    """Overrides that point a recipe to Glyphs in the published format."""
    root = tmp_path_factory.mktemp("published")
    examples = [glyphs.sample(family, seed, "train") for seed in range(2) for family in glyphs.FAMILIES]
    file = write_rows(examples, root, "glyphs")
    return [f"data.files=[{file}]", f"data.root={root}", "eval_strategy=no"]


@lru_cache
def tiny_config() -> Qwen2_5_VLConfig:
    return build_model(build_tokenizer()).config


def small(dtype: torch.dtype = torch.float32, **text: int) -> Qwen2_5_VLForConditionalGeneration:
    config = copy.deepcopy(tiny_config())
    for name, value in text.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    return Qwen2_5_VLForConditionalGeneration(config).to(dtype)


@pytest.mark.parametrize("name", SHARES)
def test_a_published_backbone_has_the_published_number_of_parameters(name):
    assert shape(published()[name], train_vision=True).parameters == SHARES[name]


def test_memory_of_weights_gradients_and_optimiser_is_what_a_step_leaves():
    model = small()
    optimiser = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moments = sum(v.nbytes for state in optimiser.state.values() for v in state.values() if v.dim())
    estimate = state_memory(shape(model.config, train_vision=True), "one", 1, 4)
    weights = sum(p.nbytes for p in model.parameters())
    assert estimate == {"weights": weights, "gradients": weights, "optimiser": moments}
    for strategy in ("zero2", "zero3", "fsdp2"):
        eight = state_memory(shape(model.config, train_vision=True), strategy, 8, 2)
        assert eight["optimiser"] <= 12 * weights / 4 / 8


def saved_bytes(model: torch.nn.Module, tokens: int) -> int:
    """What autograd keeps of a pass over the decoder layers, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    backbone = wrap(model)
    embeds = torch.randn(1, tokens, backbone.width, dtype=backbone.dtype, requires_grad=True)
    rotary = backbone.rotary(torch.arange(tokens).expand(3, 1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states, _ = backbone(embeds, rotary)
    assert states.requires_grad  # and keeps alive what was saved
    return sum(found.values())


@pytest.mark.parametrize(("dtype", "b"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("width", [{}, {"intermediate_size": 1024}, {"num_key_value_heads": 4}])
def test_activations_of_a_block_are_what_autograd_keeps(dtype, b, width):
    tokens = 64
    four, two = (small(dtype, num_hidden_layers=layers, **width) for layers in (4, 2))
    measured = (saved_bytes(four, tokens) - saved_bytes(two, tokens)) / 2 / tokens
    assert layer_activations(shape(four.config, train_vision=True), b) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("recipe", ["monet-7b-stage1", "monet-7b-stage2", "monet-7b"])
def test_the_paper_s_runs_can_be_planned(recipe, rows, capsys):
    assert main(["run", recipe, "--dry-run", "--config", ZERO2, *rows]) == 0
    text = capsys.readouterr().out
    assert "8 rows (glyphs 8), 0 left out" in text
    assert "8,292,166,656, 7,615,616,512 of them trained, bfloat16" in text
    assert "128 rows: 1 × 16 steps of accumulation × 8 processes (zero2)" in text
    assert ("teacher" in text) == (recipe != "monet-7b-stage1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "trainers/accelerate/ddp.yaml"], "needs 158 GB a GPU, h100-80 has 80"),
        (["--config", "no.yaml"], "no.yaml cannot be read"),
        (["--config", "README.md"], "README.md (is not valid YAML|holds no settings)"),
        (["--config", "assets/screenshots/ask-light.png"], "ask-light.png is not valid YAML"),
        (["--config", ZERO2, "--gpus", "0"], "processes is 0; at least 1"),
        (["--config", ZERO2, "activation_checkpointing=true"], "drops the cache"),
        (["--config", ZERO2, "warmup_steps=2000"], "warm up for fewer"),
        (["--config", ZERO2, "data.files=[none.json]"], "none.json cannot be read"),
        (["--config", ZERO2, "init=Qwen/Qwen9-VL"], "no backbone known here"),
        (["--config", ZERO2, "latents_max=1000"], "latents_max 1000"),
        (["--config", ZERO2, "caps.totals=3"], "Unknown field 'totals' in caps.*'total'"),
        (["--config", ZERO2, "caps.each=0"], "set both or none"),
        (["--config", ZERO2, "data.on_bad_row=drop"], "on_bad_row is 'drop'; choose one of error, skip"),
        (["--config", ZERO2, "mixture={find: 1}"], "either from `mixture`"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(arguments, words, rows, capsys):
    assert main(["run", "monet-7b-stage2", "--dry-run", *rows, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)


def test_a_glyphs_recipe_can_be_planned_too(capsys):
    assert main(["run", "glyph-monet-stage1", "--dry-run", "init=null"]) == 0
    assert "1,664,896" in capsys.readouterr().out


def test_a_run_over_published_rows_trains_and_lists_what_it_left_out(rows, tmp_path):
    source = Path(rows[0].removeprefix("data.files=[").removesuffix("]"))
    broken = json.loads(source.read_text())
    broken[2]["data"][0]["role"] = "nobody"
    (tmp_path / "rows.json").write_text(json.dumps(broken))
    settings = [
        rows[1],
        "eval_strategy=no",
        f"data.files=[{tmp_path / 'rows.json'}]",
        f"output_dir={tmp_path / 'run'}",
    ]
    settings += [
        "dtype=float32",
        "optim=adamw_torch",
        "max_steps=2",
        "gradient_accumulation_steps=2",
        "warmup_steps=1",
    ]
    start = Path("assets/checkpoints/glyph-text").resolve()
    settings += [f"init={start}", f"teacher={start}", "latents_min=2", "latents_max=2", "logging_steps=1"]
    settings += ["monet.observation_tags=strip", "caps={total: 12, each: 9, teacher_total: 20, teacher_each: 9}"]
    recipe, arguments = load_recipe("monet-7b-stage2", [*settings, "data.on_bad_row=skip"])
    final = train(recipe, arguments)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert "glyphs/2" in (tmp_path / "run/bad_rows.jsonl").read_text()
    assert json.loads((final / "method.json").read_text())["world"] is None


def test_caps_reach_the_rows_of_student_and_teacher(tmp_path):
    start = Path("assets/checkpoints/glyph-text").resolve()
    caps = "caps={total: 24, each: 20, teacher_total: 30, teacher_each: 30}"
    recipe, _ = load_recipe("glyph-monet-stage2", [f"init={start}", f"teacher={start}", caps])
    stage = build_stage(recipe, tmp_path)
    stage.processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 96 * 96}
    example = glyphs.sample("relate", 0, "train")
    big = tuple(image.resize((192, 192)) for image in example.images)
    batch = stage.collate([(dataclasses.replace(example, images=big), Random(0))])
    side = stage.processor.token_side

    def tokens(row) -> list[int]:
        grids = [*row.prompt.grid_thw, *(picture.grid_thw[0] for picture in row.auxiliary_images)]
        return [int(grid.prod()) // stage.backbone.merge_size**2 for grid in grids]

    full = sum(image.width * image.height for image in (*big, *(step.image for step in example.steps))) / side**2
    assert full > 30
    assert sum(tokens(batch["rows"][0])) <= 24 + 8  # auxiliary images keep four tokens at least
    assert sum(tokens(batch["rows"][0])) < sum(tokens(batch["teacher"][0])) <= 30 + 8


@pytest.mark.slow
def test_tokens_that_a_backbone_lacks_get_its_spare_rows_or_new_ones():
    tokenizer, model = build_tokenizer(), build_model(build_tokenizer())
    processor = Processor(tokenizer, build_image_processor())
    rows = model.get_input_embeddings().num_embeddings
    before = model.get_input_embeddings().weight.detach().clone()
    first = add_tokens(model, processor, ["<new_a>", "<|im_end|>", "<new_b>"])
    have = len(tokenizer)
    ids = [first.token_id(token) for token in ("<new_a>", "<new_b>")]
    assert ids == [have - 2, have - 1]
    assert first.encode("<new_a>") != ids[:1]  # a person's text stays text
    after = model.get_input_embeddings().weight
    assert len(after) == max(rows, have)
    assert torch.equal(after[:rows], before)
    if have > rows:
        assert torch.allclose(after[-1], before.mean(0), atol=1e-6)
    more = [f"<more_{i}>" for i in range(rows + 8 - have if rows > have else 8)]
    add_tokens(model, first, more)
    after = model.get_input_embeddings().weight
    assert len(after) == len(tokenizer)
    assert torch.equal(after, model.get_output_embeddings().weight)


def test_lvr_s_run_can_be_planned(tmp_path, capsys):
    """A row's slots are the image tokens of its boxes; everything is one forward."""
    examples = [glyphs.sample("relate", seed, "train") for seed in range(300)]
    file = FORMATS["lvr"].write_rows(examples, tmp_path, "glyphs")
    rows = [f"data.files=[{file}]", f"data.root={tmp_path}"]
    assert main(["run", "lvr-7b", "--dry-run", "--config", ZERO2, *rows]) == 0
    text = capsys.readouterr().out
    assert "8,292,166,656, 7,615,616,512 of them trained, bfloat16" in text
    assert "64 rows: 1 × 8 steps of accumulation × 8 processes (zero2)" in text and "teacher" not in text
    recipe, _ = load_recipe("lvr-7b", rows)
    source = find_source(recipe, tmp_path)
    bare = dataclasses.replace(examples[0], steps=())
    with_boxes, without = (length(example, recipe, source) for example in (examples[0], bare))
    # 96 pixels are 4 × 4 tokens of 28 pixels; a box of 26 touches 2 × 2 of them
    assert with_boxes.forwards == 0 and with_boxes.student - without.student > 2 * (4 + 2)


@pytest.mark.parametrize("recipe", ["valr-7b-stage1", "valr-7b", "deeplatent-7b-stage1", "deeplatent-7b"])
def test_valrs_and_deeplatents_runs_can_be_planned(recipe, rows, capsys):
    assert main(["run", recipe, "--dry-run", "--config", ZERO2, *rows]) == 0
    text = capsys.readouterr().out
    assert "128 rows: 1 × 16 steps of accumulation × 8 processes (zero2)" in text
    former = 8 * 3584**2 + 8 * 3584  # two attentions; biases
    former += 2 * (4 * 3584**2 + 4 * 3584) + 3 * 3584 + 256 * 3584 + 3 * 3584 + 32 * 3585
    own = former if "deeplatent" in recipe else 0  # modulations, norms, template, control vectors, scale head
    assert f"{8_292_166_656 + own:,}, {7_615_616_512 + own:,} of them trained" in text
    assert ("teacher" in text) == (recipe == "deeplatent-7b")
    assert ("frozen, not counted" in text) == (recipe == "valr-7b")


@pytest.mark.parametrize("name", ["glyph-valr", "glyph-deeplatent"])
@pytest.mark.parametrize("family", ["find", "relate", "count"])
def test_planned_rows_are_as_long_as_the_rows_that_are_trained(name, family):
    recipe, _ = load_recipe(name, ["init=null", "latents_max=4"])
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    stage = recipe.spec.stage(model, Processor(tokenizer, build_image_processor()), recipe)
    example = glyphs.sample(family, 3, "train")
    (row,) = stage.collate([(example, Random(0))])["rows"]
    layout = lay_out(stage.backbone, stage.method, [row], ["causal"])
    source = Source(model.config, tokenizer, "tiny")
    planned = length(example, recipe, source)
    overhead = length(dataclasses.replace(example, steps=(), answer=""), recipe, source).student
    text = len(row.prompt.input_ids) + 1  # the prompt's template is estimated, the rest is exact
    assert planned.student - overhead == layout.ids.shape[1] - text
    assert planned.forwards == unroll(stage.backbone, stage.method, [row]).forwards


@pytest.mark.parametrize(("recipe", "format"), [("monet-7b-rl", "thyme"), ("lvr-7b-rl", "virl")])
def test_reinforcement_can_be_planned(recipe, format, tmp_path, capsys):
    file = FORMATS[format].write_rows([glyphs.sample("count", i, "train") for i in range(8)], tmp_path, "glyphs")
    given = [f"data.files=[{file}]", f"data.root={tmp_path}", "eval_strategy=no"]
    assert main(["run", recipe, "--dry-run", "--config", ZERO2, *given]) == 0
    text = capsys.readouterr().out
    assert "8 rows" in text and "64 rows: 1 × 8 steps of accumulation × 8 processes (zero2)" in text
    assert "reference 16.6" in text and "teacher" not in text
    without = main(["run", recipe, "--dry-run", "--config", ZERO2, *given, "rl.kl=0"])
    assert without == 0 and "reference" not in capsys.readouterr().out
    assert main(["run", recipe, "--dry-run", "--config", "trainers/accelerate/zero3.yaml", *given]) == 2
    assert "gathers parameters for its rollouts, which it can do under FSDP2" in capsys.readouterr().err


def test_rows_to_reinforce_are_as_long_as_a_response_may_be():
    recipe, _ = load_recipe("glyph-monet-rl", [])
    found = length(glyphs.sample("count", 0), recipe, find_source(recipe, Path("nowhere")))
    thought = 4 * 24  # blocks of K latents, which the limit on tokens leaves out
    assert (found.learned, found.forwards, found.teacher) == (80, 80 + thought, 0)
    assert 80 + thought + 36 + 20 < found.student < 80 + thought + 36 + 60
