"""The reinforcement-learning stage: what a phase holds, what each variant moves, what resuming repeats."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.inspect_payload import view_of
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.trace import Trace
from trainers.data.glyphs import GlyphsDataset
from trainers.data.repeated import Repeated
from trainers.loop.launch import build_data, build_stage, check_run, train
from trainers.recipe import load_recipe
from trainers.rl import rollouts
from trainers.rl.judge import JudgeFailed
from trainers.rl.rollouts import replay
from trainers.rl.stage import RlStage

QUICK = ["rl.group=4", "rl.max_new_tokens=80", "rl.temperature=1.5", "rl.top_p=1", "rl.easy=1", "mixture={count: 1}"]
STARTS = {
    "text": ("glyph-text", "text"),
    "constants": ("glyph-lvr", "lvr"),
    "vlpo": ("glyph-monet", "monet"),
    "modulation": ("glyph-deeplatent", "deeplatent"),
}
TOKENS = {
    "monet": ["open_token=<abs_vis_token>", "close_token=</abs_vis_token>", "pad_token=<abs_vis_token_pad>"],
    "lvr": ["open_token=<|lvr_start|>", "close_token=<|lvr_end|>", "pad_token=<|lvr|>"],
    "deeplatent": ["open_token=<latent>", "close_token=</latent>", "pad_token=<|vision_pad|>"],
}


def overrides(variant: str, *more: str) -> list[str]:
    start, method = STARTS[variant]
    config = json.loads((EMBEDDED / start / "method.json").read_text())
    options, latents = json.dumps(config.get("options", {})), config.get("latents", {}).get("default", 8)
    given = [f"init={EMBEDDED / start}", f"method={method}", f"method_options={options}", f"rl.variant={variant}"]
    given += [f"latents_default={latents}", *TOKENS.get(method, []), *QUICK]
    return [*given, *more]


def stage(variant: str, tmp_path, *more: str) -> RlStage:
    recipe, _ = load_recipe("glyph-monet-rl", overrides(variant, *more))
    torch.manual_seed(0)
    return build_stage(recipe, tmp_path).train()


def batch(built: RlStage, family: str = "count", n: int = 3) -> dict[str, object]:
    data = GlyphsDataset({family: 1}, n, batch=n, seed=4)
    return built.collate([data[index] for index in range(n)])


@pytest.mark.slow
@pytest.mark.parametrize("variant", STARTS)
def test_the_first_update_is_on_the_policy_and_moves_what_may_move(variant, tmp_path):
    built = stage(variant, tmp_path)
    # a family of which some answers are right and some wrong
    given = batch(built, "trace" if variant == "modulation" else "count", n=4)
    out = built(**given)
    held = built._held[0]
    assert held.rollouts and out["metrics"]["taught"] > 0
    for kind in ("token", "latent"):
        if f"{kind}_ratio" in out["metrics"]:
            assert out["metrics"][f"{kind}_ratio"] == pytest.approx(1, abs=0.02)
            assert out["metrics"][f"{kind}_clipped"] == 0
            assert out["metrics"][f"{kind}_kl"] == pytest.approx(0, abs=1e-3)
    assert ("latent_ratio" in out["metrics"]) == (variant in ("vlpo", "modulation"))
    assert any(rollout.latents for rollout in held.rollouts) != (variant == "text")
    out["loss"].backward()
    moved = {name for name, p in built.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("language_model" in name for name in moved) and not any("visual" in name for name in moved)
    own = {name.split(".")[1] for name in moved if name.startswith("method.")}
    assert own <= {"of_latents", "of_image"} and (variant == "modulation") == bool(own)
    torch.optim.SGD([p for p in built.parameters() if p.grad is not None], 0.5).step()
    again = built(**given)
    assert built._held[0] is held  # the same rollouts
    assert built.collect(given["examples"], given["seed"] + 1).key != held.key
    assert again["metrics"]["token_ratio"] != pytest.approx(1, abs=1e-6) and again["metrics"]["token_kl"] > 0


@pytest.mark.slow
def test_what_a_method_draws_is_an_action_or_is_not_drawn(tmp_path):
    drawn = stage("modulation", tmp_path)
    drawn(**batch(drawn, "trace", n=4))
    assert all(action.noise.any() for r in drawn._held[0].rollouts for block in r.drawn for action in block)
    fixed = stage("modulation", tmp_path, "rl.variant=constants")
    fixed(**batch(fixed, "trace", n=4))
    assert not any(action.noise.any() for r in fixed._held[0].rollouts for block in r.drawn for action in block)


def test_advantages_raise_what_was_right_and_lower_what_was_wrong(tmp_path):
    built = stage("constants", tmp_path, "rl.kl=0")
    given = batch(built)
    optimiser = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], 0.05)
    built(**given)["loss"].backward()
    optimiser.step()
    held = built._held[0]
    with torch.no_grad():
        now = replay(built.backbone, built.method, held.rollouts, built.options.temperature)
    change = torch.stack([(n.logprobs - r.logprobs).mean() for n, r in zip(now, held.rollouts, strict=True)])
    assert (change * held.advantages).mean() > 0


def test_a_batch_of_prompts_is_repeated_for_every_update():
    data = Repeated(list(range(12)), batch=4, times=3)
    assert len(data) == 36
    assert [data[i] for i in range(24)] == [0, 1, 2, 3] * 3 + [4, 5, 6, 7] * 3
    with pytest.raises(IndexError):
        data[36]


def quick(folder: Path, *more: str) -> list[str]:
    given = overrides("vlpo", f"output_dir={folder}", "max_steps=4", "rl.updates=2", "rl.group=3", "warmup_steps=0")
    given += ["per_device_train_batch_size=2", "eval_strategy=no", "save_steps=2", "logging_steps=1"]
    return [*given, "use_cpu=true", "learning_rate=1e-4", *more]


@pytest.mark.slow
def test_a_resumed_run_rolls_out_what_it_would_have(tmp_path):
    def run(name: str) -> Path:
        return train(*load_recipe("glyph-monet-rl", quick(tmp_path / name)))

    def curve(final: Path) -> list[tuple[float, float]]:
        lines = map(json.loads, (final.parent / "metrics.jsonl").read_text().splitlines())
        return [(line["loss"], line["token_kl"]) for line in lines if "token_kl" in line]

    whole, cut = run("whole"), run("cut")
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(cut.parent / name)
    assert run("cut") == cut
    assert len(curve(cut)) == 4 and curve(cut) == curve(whole)
    assert curve(cut)[-1][1] > 0  # the reference is still the policy that the run started from
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(first[name].equal(second[name]) for name in first)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="save_steps is 3, but 2 steps each learn from one batch"):
        check_run(*load_recipe("glyph-monet-rl", ["save_steps=3", "rl.updates=2"]))
    for given, words in (
        (["rl.group=1"], "group is 1"),
        (["rl.temperature=0"], "temperature is 0"),
        (["rl.updates=0"], "updates is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            load_recipe("glyph-monet-rl", given)


def test_a_variant_that_does_not_fit_its_method_is_refused(tmp_path):
    for start, given, words in (
        ("vlpo", "rl.variant=modulation", "rl.variant modulation needs method deeplatent.*not 'monet'"),
        ("modulation", "rl.variant=vlpo", "rl.variant vlpo needs latents that are states fed back; .* 'deeplatent'"),
        ("text", "rl.variant=vlpo", "rl.variant vlpo needs latents .* 'text'"),
        ("constants", "rl.noise=0.1", "rl.noise is 0.1, but only"),
        ("vlpo", "rl.former=true", "rl.former needs method deeplatent"),
        (
            "modulation",
            "method_options.generation=autoregressive",
            "needs method deeplatent, whose latents are formed",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            stage(start, tmp_path, given)


@pytest.mark.slow
def test_a_run_that_dies_while_it_rolls_out_goes_on(tmp_path, monkeypatch):
    """The second phase breaks off in the middle of its responses; nothing of it is kept."""
    whole = train(*load_recipe("glyph-monet-rl", quick(tmp_path / "whole")))
    real, phases = rollouts.decode, []

    def cut(*args, **kwargs):
        phases.append(0)
        for number, event in enumerate(real(*args, **kwargs)):
            if len(phases) == 2 and number == 200:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(rollouts, "decode", cut)
    with pytest.raises(KeyboardInterrupt):
        train(*load_recipe("glyph-monet-rl", quick(tmp_path / "cut")))
    monkeypatch.setattr(rollouts, "decode", real)
    final = train(*load_recipe("glyph-monet-rl", quick(tmp_path / "cut")))
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, final))
    assert all(first[name].equal(second[name]) for name in first)


def test_a_judge_that_is_down_stops_the_run_before_its_step(tmp_path):
    given = ["rl.rewards={judge: 1}", "judge.url=http://127.0.0.1:9/v1", "judge.model=wise", "judge.retries=0"]
    with pytest.raises(JudgeFailed, match="The run stops before its step"):
        train(*load_recipe("glyph-monet-rl", quick(tmp_path / "run", *given, f"judge.cache={tmp_path / 'verdicts'}")))
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "verdicts").exists()


@pytest.mark.slow
def test_sampled_responses_are_kept_as_traces(tmp_path):
    given = quick(tmp_path / "run", "max_steps=2", "eval_strategy=steps", "eval_steps=2", "val_size=4", "rl.samples=2")
    train(*load_recipe("glyph-monet-rl", [*given, "rl.noise=0.05"]))
    folders = sorted((tmp_path / "run/rollouts").iterdir())
    assert [folder.name for folder in folders] == ["step-00000", "step-00002"]
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        assert [line["file"] for line in lines] == ["0.safetensors", "1.safetensors"]
        for line in lines:
            trace = Trace.load(folder / line["file"])
            assert trace.question == line["question"] and trace.answer == line["answer"]
            assert trace.source.checkpoint == "glyph-monet-rl" and trace.settings.temperature == 1.5
            assert trace.blocks[0].latents.shape[0] == 8 and trace.blocks[0].events[0].attention is not None
            assert view_of(trace).text


@pytest.mark.slow
def test_gradients_are_accumulated_over_batches_of_one_step(tmp_path):
    """Two batches of two prompts are rolled out before the first update, and learned from twice each."""
    given = quick(tmp_path / "run", "gradient_accumulation_steps=2", "max_steps=2", "save_strategy=no")
    recipe, arguments = load_recipe("glyph-monet-rl", given)
    built = build_stage(recipe, tmp_path).train()
    data, _ = build_data(recipe, arguments, None)
    names = [data[index][0].name for index in range(8)]
    assert names[:4] == names[4:] and len(set(names)) == 4
    for start in (0, 2, 4, 6):
        built(**built.collate([data[index] for index in range(start, start + 2)]))
        assert [batch.key[1:] for batch in built._held] == [
            tuple(names[i : i + 2]) for i in range(0, min(start, 2) + 1, 2)
        ]
    assert train(recipe, arguments).is_dir()


@pytest.mark.slow
def test_the_latent_former_learns_only_where_it_is_asked_to(tmp_path):
    for former in (False, True):
        built = stage("modulation", tmp_path, f"rl.former={str(former).lower()}")
        built(**batch(built, "trace", n=4))["loss"].backward()
        moved = {name.split(".")[1] for name, p in built.named_parameters() if p.grad is not None and p.grad.any()}
        assert ("former" in moved) == former and "steer" not in moved and "template" not in moved


@pytest.mark.parametrize(
    ("variant", "more", "words"),
    [
        ("constants", (), "under rl.variant constants there are none"),
        ("text", (), "under rl.variant text there are none"),
        ("constants", ("method_options.generation=autoregressive",), "rl.former needs method deeplatent"),
        ("vlpo", (), "rl.variant vlpo needs latents that are states"),
        ("modulation", ("method_options.blocks=0",), "LatentFormer has no blocks"),
    ],
)
def test_a_former_that_nothing_would_teach_is_refused_before_anything_is_loaded(variant, more, words):
    with pytest.raises(ValueError, match=words):
        load_recipe("glyph-deeplatent-rl", ["rl.former=true", f"rl.variant={variant}", *more])


@pytest.mark.slow
def test_activation_checkpointing_changes_no_result(tmp_path):
    def run(name: str, *more: str) -> list[float]:
        final = train(*load_recipe("glyph-monet-rl", quick(tmp_path / name, "save_strategy=no", *more)))
        lines = map(json.loads, (final.parent / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    less = run("less", "activation_checkpointing=true", "activation_checkpointing_kwargs={use_reentrant: false}")
    assert less == pytest.approx(run("more"), abs=1e-6)


def test_latents_that_a_head_makes_have_ratio_one_and_no_divergence_at_first(tmp_path):
    """The head is the policy's in what it feeds and the reference's in what that would have fed."""
    built = stage("constants", tmp_path, "rl.variant=vlpo", "rl.sigma=1")
    out = built(**batch(built, n=4))
    assert out["metrics"]["latent_ratio"] == pytest.approx(1, abs=1e-3)
    assert out["metrics"]["latent_kl"] == pytest.approx(0, abs=1e-3)
