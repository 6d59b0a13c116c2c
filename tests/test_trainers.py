"""Recipes, layouts and the training loop: what a run learns, resumes to and refuses."""

import json
import resource
from dataclasses import fields
from random import Random

import pytest
import torch
from transformers import TrainingArguments

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.checkpoints.loading import load
from latent_core.decoding.layout import NO_LABEL, lay_out
from latent_core.model.slot_types import CLOSE, LATENT, OPEN, slot_class
from tests.training import SMALL, curve, small
from trainers.__main__ import main
from trainers.arguments import NAMES
from trainers.data.glyphs import GlyphsDataset
from trainers.data.segments import LatentStep, segments
from trainers.loop.launch import build_stage, check_run, train
from trainers.loop.saves import last_checkpoint
from trainers.planning.architectures import published
from trainers.recipe import Recipe, load_recipe, parse, recipes
from trainers.refused import UNUSED, refuse_unused


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_that_ships_is_valid(name):
    recipe, arguments = load_recipe(name, [])
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert arguments.max_steps > 0
    assert recipe.init is None or recipe.init in recipes() or recipe.init in published()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["max_step=3"], "Unknown field 'max_step'.*'max_steps'"),
        (["mixtures={find: 1}"], "Unknown field 'mixtures'.*'mixture'"),
        (["max_steps=many"], "max_steps is 'many'; it must be a whole number"),
        (["learning_rate=fast"], "learning_rate is 'fast'"),
        (["mixture.search=1"], "Unknown family 'search'"),
        (["mixture.find=-1"], "mixture.find is -1"),
        (["latents_min=0"], "latents_min is 0"),
        (["latents_max=1000"], "latents_max 1000"),
        (["rule=sealedd"], "rule is 'sealedd'"),
        (["stop_at={count: 2}"], "stop_at.count is 2"),
        (["max_steps"], "is no override"),
        (["learning_rate=.nan"], "learning_rate is nan; it must be a number"),
        (["learning_rate=nan"], "learning_rate is nan; it must be a number"),
        (["max_grad_norm=.inf"], "max_grad_norm is inf"),
        (["max_steps=.inf"], "max_steps is inf; it must be a whole number"),
    ],
)
def test_a_wrong_field_is_named(overrides, words):
    with pytest.raises(ValueError, match=words):
        load_recipe("glyph-monet", overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lr_scheduler_type=warmup_stable_decay"], "^lr_scheduler_type=warmup_stable_decay with .*num_decay_steps"),
        (["lr_scheduler_kwargs=nothing"], "^lr_scheduler_kwargs is 'nothing'; it must be fields"),
        (["lr_scheduler_kwargs={a: 1}"], "^lr_scheduler_type=cosine with lr_scheduler_kwargs={'a': 1} cannot be used"),
        (["lr_scheduler_type=polynomial", "lr_scheduler_kwargs={power: x}"], "^lr_scheduler_type=polynomial with"),
        (
            ["lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs={min_lr: x}"],
            "^lr_scheduler_type=cosine_with",
        ),
        (["lr_scheduler_type=nothing"], "^lr_scheduler_type is 'nothing'; choose one of"),
        (["optim=lomo"], "^optim=lomo with"),
        (["optim=adamw_bnb_8bit"], "^optim=adamw_bnb_8bit with .*bitsandbytes"),
        (["optim_args=nothing"], "^optim=adamw_torch_fused with .*optim_args as they are cannot be used"),
        (["adam_beta1=1.5"], "adam_beta1, .* cannot be used: Invalid beta parameter"),
        (["report_to=wandb"], "^report_to names 'wandb', which is not installed or not known"),
        (["report_to=[1]"], "^report_to names 1, which is not"),
        (["log_level=nothing"], "^log_level is 'nothing'; choose one of detail, debug"),
        (["log_level_replica=nothing"], "^log_level_replica is 'nothing'"),
        (["dataloader_num_workers=-1"], "^dataloader_num_workers is -1; it must be at least 0"),
        (["dataloader_num_workers=100000"], "^dataloader_num_workers is 100000; it must be at most 1024"),
        (["dataloader_prefetch_factor=0"], "^dataloader_prefetch_factor is 0; at least 1"),
        (["dataloader_multiprocessing_context=spawn"], "^dataloader_num_workers and the other fields of the loader"),
        (["dataloader_multiprocessing_context=x", "dataloader_num_workers=1"], "valid start method"),
        (
            ["activation_checkpointing_kwargs=nothing"],
            "^activation_checkpointing_kwargs is 'nothing'; it must",
        ),
        (["ddp_timeout=1180591620717411303424"], "^ddp_timeout is 1180591620717411303424; it must be at most"),
        (["seed=4294967296"], "^seed is 4294967296; it must be at most 4294967295"),
        (["data_seed=1180591620717411303424"], "^data_seed is 1180591620717411303424; it must be at most"),
        (["val_size=99999999999999999999"], "^val_size is 99999999999999999999; it must be a whole number"),
        (
            ["causal_share=1" + 400 * "0"],
            "^causal_share is a number of 80 digits or more; it",
        ),
        (["init=''"], "^init is empty; name a checkpoint"),
    ],
)
def test_settings_of_which_nothing_can_be_built_are_named_before_a_model_is_there(overrides, words):
    with pytest.raises(ValueError, match=words) as error:
        check_run(*load_recipe("glyph-vision", overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["nothing", str(2**70), "[1]", "{a: 1}"])
def test_no_value_of_any_field_ends_in_a_traceback(value):
    refused = 0
    for name in sorted(NAMES | {item.name for item in fields(Recipe)}):
        try:
            check_run(*load_recipe("glyph-vision", [f"{name}={value}"]))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error), name
    assert refused > 60


@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/run", "/proc/run", "x" * 300])
def test_a_place_that_no_run_can_be_kept_in_is_named(path, capsys):
    assert main(["run", "glyph-vision", f"output_dir={path}", "use_cpu=true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and path[:80] in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("num_train_epochs=3", "max_steps"),
        ("load_best_model_at_end=true", "stop_at"),
        ("train_sampling_strategy=group_by_length", "before it starts"),
        ("train_sampling_strategy=random", "before it starts"),
        ("metric_for_best_model=loss", "stop_at"),
        ("save_strategy=best", "save_steps"),
        ("save_strategy=epoch", "save_steps"),
        ("eval_strategy=epoch", "eval_steps"),
        ("save_only_model=true", "gone on from"),
        ("ignore_data_skip=true", "repeats none"),
        ("auto_find_batch_size=true", "--dry-run"),
        ("label_smoothing_factor=0.1", "its own loss"),
        ("neftune_noise_alpha=5", "from within"),
        ("torch_compile=true", "compiled again"),
        ("use_liger_kernel=true", "from within"),
        ("fp16=true", "bf16=true"),
        ("bf16_full_eval=true", "per_device_eval_batch_size"),
        ("push_to_hub=true", "hf upload"),
        ("logging_nan_inf_filter=true", "ends where one comes"),
        ("resume_from_checkpoint=runs/x", "--restart"),
        ("dataloader_in_order=false", "repeats none"),
        ("accelerator_config={split_batches: true}", "repeats none"),
        ("do_train=true", "trains"),
    ],
)
def test_a_field_that_would_do_nothing_or_harm_is_refused_with_what_to_set_instead(override, instead):
    name = override.partition("=")[0]
    with pytest.raises(ValueError, match=f"{name}=.*has no use here: .*{instead}"):
        load_recipe("glyph-monet", [override])


def test_every_field_of_the_training_arguments_is_used_or_refused():
    known = {item.name for item in fields(TrainingArguments)}
    assert set(UNUSED) <= known
    for name, (harmless, _) in UNUSED.items():  # what says that nothing is asked for stays valid
        for value in harmless:
            refuse_unused({name: value})
    with pytest.raises(ValueError) as error:
        load_recipe("glyph-monet", ["hub_token=secret"])
    assert "secret" not in str(error.value)


def test_validation_before_the_first_step_needs_something_to_validate_on(tmp_path):
    with pytest.raises(ValueError, match="eval_on_start is true.*set eval_strategy=steps"):
        train(*small("glyph-vision", tmp_path, "max_steps=2", "eval_on_start=true"))


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'glyph-monte'. Did you mean 'glyph-monet'"):
        load_recipe("glyph-monte", [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(str(broken), [])
    with pytest.raises(ValueError, match="lacks the field 'stage'"):
        parse({"name": "x", "description": "y."})


def test_the_command_line_says_what_is_wrong_in_one_sentence(capsys):
    assert main(["run", "glyph-monet", "lerning_rate=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "learning_rate" in error and error.count("\n") == 1
    assert main(["study", "glyph-money"]) == 2
    assert "glyph-monet" in capsys.readouterr().err
    assert main(["study", "glyph-monet", "--families", "found"]) == 2
    assert "found" in capsys.readouterr().err


def test_a_run_without_its_start_says_what_to_run_first(tmp_path):
    recipe, arguments = load_recipe("glyph-text", [f"output_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match="python -m trainers run glyph-backbone"):
        train(recipe, arguments)


def test_data_are_a_function_of_seed_and_index():
    first, again, other = (GlyphsDataset({"find": 1, "count": 2}, 30, seed=seed) for seed in (0, 0, 1))
    names = [[data[i][0].name for i in range(30)] for data in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert {name.split("/")[0] for name in names[0]} == {"find", "count"}


@pytest.mark.parametrize("family", [*glyphs.FAMILIES, "list"])
def test_a_response_is_text_thought_observation_answer(family):
    example = glyphs.sample(family, 1, "train")
    parts = segments(example)
    assert sum(isinstance(part, LatentStep) for part in parts) == len(example.steps)
    words = "".join(part.text for part in parts if not isinstance(part, LatentStep))
    assert words.endswith(f"\\boxed{{{example.answer}}}" if example.steps else example.answer)
    assert "  " not in words


def test_every_position_that_samples_in_a_free_run_has_a_label(tmp_path):
    stage = build_stage(small("glyph-latent", tmp_path)[0], tmp_path)
    for family in glyphs.FAMILIES:
        batch = stage.collate([(glyphs.sample(family, 3, "train"), Random(0))])
        layout = lay_out(stage.backbone, stage.method, batch["rows"], batch["rules"])
        ids, labels = layout.ids[0], layout.labels[0]
        kinds = slot_class(layout.slot_types[0])
        start = len(batch["rows"][0].prompt.input_ids)
        for slot in range(start - 1, len(ids) - 1):
            following = kinds[slot + 1]
            # latents are fed and the closing token is forced; everything else the model chose itself
            if following in (LATENT, CLOSE):
                assert labels[slot] == NO_LABEL
            else:
                assert labels[slot] == ids[slot + 1]
        assert (kinds == OPEN).sum() == len(glyphs.sample(family, 3, "train").steps)
        assert ids[-1] == stage.processor.eos_id


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glyph-vision", "glyph-search", "glyph-latent"])
def test_a_step_moves_what_it_trains_and_nothing_else(name, tmp_path):
    recipe, arguments = small(name, tmp_path / name, "max_steps=2", "learning_rate=1e-2", "save_strategy=no")
    before = build_stage(recipe, tmp_path).model.state_dict()
    after = load(train(recipe, arguments)).backbone.model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    vision = {key for key in before if ".visual." in key}
    words = set(before) - vision
    if name == "glyph-vision":
        assert moved == vision
    else:
        # keys of words whose gradient is exactly zero do not exist in two steps of real text
        assert moved == words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glyph-vision", "glyph-search", "glyph-latent"])
def test_a_resumed_run_gives_the_curve_of_an_uninterrupted_one(name, tmp_path):
    schedule = ("max_steps=4", "save_steps=2", "lr_scheduler_type=cosine")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*small(name, whole, *schedule))
    recipe, arguments = small(name, parts, *schedule)
    train(recipe, arguments)
    # as after a kill: the last checkpoint is half-written, the end was never reached
    (parts / "checkpoint-4" / "complete").unlink()
    (parts / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    for file in (parts / "final").iterdir():
        file.unlink()
    (parts / "final").rmdir()
    assert last_checkpoint(parts).name == "checkpoint-2"
    final = train(recipe, arguments)
    assert curve(parts) == curve(whole)
    weights = [load(folder).backbone.model.state_dict() for folder in (final, whole / "final")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_a_changed_one_is_refused(tmp_path):
    recipe, arguments = small("glyph-vision", tmp_path, "max_steps=1", "save_steps=1")
    final = train(recipe, arguments)
    stamp = (final / "method.json").stat().st_mtime_ns
    assert train(recipe, arguments) == final
    assert (final / "method.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="another version of this recipe"):
        train(*small("glyph-vision", tmp_path, "max_steps=1", "save_steps=1", "learning_rate=1e-4"))


@pytest.mark.slow
def test_a_full_disk_while_saving_keeps_what_was_there(tmp_path, monkeypatch):
    recipe, arguments = small("glyph-vision", tmp_path, "max_steps=1", "save_strategy=no")
    final = train(recipe, arguments)
    before = {file.name: file.read_bytes() for file in final.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device.*nothing was overwritten"):
        train(recipe, arguments, resume=False)
    assert {file.name: file.read_bytes() for file in (tmp_path / "earlier-1/final").iterdir()} == before
    assert [path.name for path in tmp_path.glob(".final*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [1_000, 3_000_000])  # of the logs; of the weights
def test_a_full_disk_while_a_checkpoint_is_written_ends_in_a_sentence(size, tmp_path, capsys):
    """A limit on the size of files says what a full disk says. What was saved before is gone on from."""
    given = [*SMALL, "max_steps=2", "save_steps=1", "per_device_train_batch_size=1", "use_cpu=true"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        assert main(["run", "glyph-vision", *given, f"output_dir={tmp_path}"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.splitlines()[-1].startswith("error: ")
    assert "File too large" in error.splitlines()[-1]
    assert "No checkpoint is complete yet" in error and not list(tmp_path.glob("checkpoint-*/*"))


@pytest.mark.slow
def test_what_torch_says_of_a_full_disk_is_told_as_one(tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", full)
    given = [*SMALL, "max_steps=1", "save_steps=1", "per_device_train_batch_size=1", "use_cpu=true"]
    assert main(["run", "glyph-vision", *given, f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint-1 could not be saved: " in error and "Free some space. No checkpoint is complete yet" in error


@pytest.mark.slow
def test_one_example_is_learned_and_then_decoded_freely(tmp_path):
    """Behaviour: the latent stage overfits one example, and a free run through the engine gives its answer."""
    recipe, _ = small("glyph-latent", tmp_path, "latents_min=3", "latents_max=3")
    stage = build_stage(recipe, tmp_path)
    example = glyphs.sample("find", 5, "train")
    batch = stage.collate([(example, Random(0))])
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        stage(**batch)["loss"].backward()
        optimizer.step()
    from latent_core.reasoner import Reasoner

    reasoner = Reasoner(
        name="overfit",
        backbone=stage.backbone.eval(),
        processor=stage.processor,
        method=stage.method,
        config=recipe.method_config(),
    )
    trace = reasoner.run(example.images, example.question, latents=3)
    assert trace.answer == example.answer
    assert [len(block.latents) for block in trace.blocks] == [3]


def test_activation_checkpointing_changes_no_result(tmp_path):
    def run(name: str, *more: str) -> list[float]:
        given = [f"init={EMBEDDED / 'glyph-text'}", f"output_dir={tmp_path / name}", "per_device_train_batch_size=2"]
        given += ["max_steps=2", "warmup_steps=0", "eval_strategy=no", "save_strategy=no", "logging_steps=1", *more]
        final = train(*load_recipe("glyph-text", [*given, "use_cpu=true"]))
        lines = map(json.loads, (final.parent / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    less = run("less", "activation_checkpointing=true", "activation_checkpointing_kwargs={use_reentrant: false}")
    assert less == pytest.approx(run("more"), abs=1e-6)


def test_batches_are_not_cut_up_among_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 2))
    with pytest.raises(ValueError, match="sees 2 GPUs"):
        train(*load_recipe("glyph-vision", [f"output_dir={tmp_path}"]))
