"""The reinforcement-learning stage: what a phase holds, what each variant moves, what resuming repeats; rewards."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latent_core import glyphs
from latent_core.embedded import EMBEDDED
from latent_core.layout import Row
from trainers.data.glyphs import GlyphsDataset
from trainers.recipe import load_recipe
from trainers.rl.rewards import Reward, accuracy, boxed, invocation, same
from trainers.rl.rollouts import Rollout, replay
from trainers.rl.stage import Repeated, RlStage
from trainers.start import build_stage, check_run, train

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


@pytest.mark.parametrize("variant", STARTS)
def test_the_first_update_is_on_the_policy_and_moves_what_may_move(variant, tmp_path):
    built = stage(variant, tmp_path)
    # a family of which some answers are right and some wrong
    given = batch(built, "trace" if variant == "modulation" else "count", n=4)
    out = built(**given)
    held = built._held
    assert held.rollouts and out["metrics"]["taught"] > 0
    assert out["metrics"]["kl"] == pytest.approx(0, abs=1e-3)
    for kind in ("token", "latent"):
        if f"{kind}_ratio" in out["metrics"]:
            assert out["metrics"][f"{kind}_ratio"] == pytest.approx(1, abs=0.02)
            assert out["metrics"][f"{kind}_clipped"] == 0
    assert ("latent_ratio" in out["metrics"]) == (variant in ("vlpo", "modulation"))
    assert any(rollout.latents for rollout in held.rollouts) != (variant == "text")
    out["loss"].backward()
    moved = {name for name, p in built.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("language_model" in name for name in moved) and not any("visual" in name for name in moved)
    own = {name.split(".")[1] for name in moved if name.startswith("method.")}
    assert own <= {"of_latents", "of_image"} and (variant == "modulation") == bool(own)
    torch.optim.SGD([p for p in built.parameters() if p.grad is not None], 0.5).step()
    again = built(**given)
    assert built._held is held  # the same rollouts
    assert again["metrics"]["token_ratio"] != pytest.approx(1, abs=1e-6) and again["metrics"]["kl"] > 0


def test_what_a_method_draws_is_an_action_or_is_not_drawn(tmp_path):
    drawn = stage("modulation", tmp_path)
    drawn(**batch(drawn, "trace", n=4))
    assert all(action.noise.any() for r in drawn._held.rollouts for block in r.drawn for action in block)
    fixed = stage("modulation", tmp_path, "rl.variant=constants")
    fixed(**batch(fixed, "trace", n=4))
    assert not any(action.noise.any() for r in fixed._held.rollouts for block in r.drawn for action in block)


def test_advantages_raise_what_was_right_and_lower_what_was_wrong(tmp_path):
    built = stage("constants", tmp_path, "rl.kl=0")
    given = batch(built)
    optimiser = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], 0.05)
    built(**given)["loss"].backward()
    optimiser.step()
    held = built._held
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


def test_a_resumed_run_rolls_out_what_it_would_have(tmp_path):
    def run(name: str) -> Path:
        given = overrides("vlpo", f"output_dir={tmp_path / name}", "max_steps=4", "rl.updates=2", "rl.group=3")
        given += ["per_device_train_batch_size=2", "eval_strategy=no", "save_steps=2", "logging_steps=1"]
        return train(*load_recipe("glyph-monet-rl", [*given, "use_cpu=true", "learning_rate=1e-4"]))

    def curve(final: Path) -> list[tuple[float, float]]:
        lines = map(json.loads, (final.parent / "metrics.jsonl").read_text().splitlines())
        return [(line["loss"], line["kl"]) for line in lines if "kl" in line]

    whole, cut = run("whole"), run("cut")
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(cut.parent / name)
    assert run("cut") == cut
    assert len(curve(cut)) == 4 and curve(cut) == curve(whole)
    assert curve(cut)[-1][1] > 0  # the reference is still the policy that the run started from
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(first[name].equal(second[name]) for name in first)


def test_settings_that_cannot_work_are_refused():
    for given, words in (
        (["save_steps=3", "rl.updates=2"], "save_steps is 3, rl.updates 2"),
        (["gradient_accumulation_steps=2"], "gradient_accumulation_steps to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            check_run(*load_recipe("glyph-monet-rl", given))
    for given, words in (
        (["rl.group=1"], "group is 1"),
        (["rl.temperature=0"], "temperature is 0"),
        (["rl.updates=0"], "updates is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            load_recipe("glyph-monet-rl", given)


def test_a_variant_that_does_not_fit_its_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rl.variant modulation needs method deeplatent, not 'monet'"):
        stage("vlpo", tmp_path, "rl.variant=modulation")


def response(text: str, latents: int = 0) -> Rollout:
    values = {item.name: None for item in dataclasses.fields(Rollout)}
    return Rollout(**values | {"text": text, "latents": [torch.zeros(latents, 2)] if latents else [], "row": Row})


def test_rewards():
    example = glyphs.sample("count", 0)
    right, wrong = f"I see. \\boxed{{{example.answer}}}", "\\boxed{9}"
    assert accuracy(response(right), example) == 1 and accuracy(response(wrong), example) == 0
    assert boxed(response(wrong), example) == 1 and boxed(response(f"It is {example.answer}."), example) == 0
    assert boxed(response("\\boxed{"), example) == 0 and accuracy(response(""), example) == 0
    assert invocation(response("", 3), example) == 1 and invocation(response(""), example) == 0
    both = Reward(((0.9, accuracy), (0.1, boxed), (0.0, invocation)))
    assert both(response(right), example) == pytest.approx(1.0) and both(response(wrong), example) == pytest.approx(
        0.1
    )


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("Cross", "cross", True),
        (" tee. ", "tee", True),
        ("1,000", "1000.0", True),
        ("50%", "0.5", True),
        ("3", "3.01", False),
        ("3a", "3", False),
        ("", "0", False),
        ("-2", "2", False),
    ],
)
def test_answers_are_compared_as_words_or_numbers(answer, truth, equal):
    assert same(answer, truth) == equal
